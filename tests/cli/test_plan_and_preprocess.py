"""samunet_plan_and_preprocess: what it says at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from samunet.cli import plan_and_preprocess


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        (["-c", "3d_adapter"], "samunet_train 901 3d_adapter 0"),
        (["-c", "3d_fullres", "-p", "mine"], "samunet_train 901 3d_unet 0 -p mine"),
        (["-c", "2d_linear", "2d"], "samunet_train 901 2d_unet 0"),
        ([], "samunet_train 901 2d_unet 0"),
    ],
)
def test_the_command_to_go_on_with_runs_on_what_was_prepared(
    flags: list[str], command: str, tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-d", "901", "-np", "1", *flags, "--workspace", str(tiny_copy)]
    assert plan_and_preprocess.main(words) == 0
    told = capsys.readouterr().out
    assert f"Train with: {command}\n" in told
