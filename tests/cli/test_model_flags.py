"""Which trained model is meant: flags that would be ignored are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from samunet.cli import calibrate_qc, export_model, predict

PREDICT = (predict, ["-i", "in", "-o", "out"])
EXPORT = (export_model, ["-o", "model.zip"])
CALIBRATE = (calibrate_qc, [])


@pytest.mark.parametrize("command", [PREDICT, EXPORT, CALIBRATE], ids=["predict", "export", "calibrate"])
def test_a_folder_is_not_named_a_second_time(command, tmp_path: Path, refused) -> None:
    module, words = command
    names = ["-c", "2d", "-tr", "2d", "--tag", "low", "-p", "other"]
    told = refused(module.main, tmp_path, *words, "-m", "folder", *names)
    assert "leave -c, -tr, --tag, -p out" in told


def test_calibration_does_not_offer_what_it_does_not_do() -> None:
    assert "averaged" in " ".join(predict.build_parser().format_help().split())
    told = calibrate_qc.build_parser().format_help()
    assert "averaged" not in told
    assert "best" not in told
