"""Parsing, exit codes and messages that every command shares."""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from samunet.cli import common, train
from samunet.cli.common import CommandParser, fold, parse_settings, positive_float, run_command
from samunet.cli.process import _chain, explain
from samunet.errors import SamunetError
from samunet.planning.methods import build_config, get_method
from samunet.whole_files import atomic_path


def parser() -> CommandParser:
    made = CommandParser("tool", "A tool.")
    made.add_argument("-d", nargs="+")
    made.add_argument("-device", choices=("cpu", "cuda"))
    made.add_argument("-step", type=float)
    common.add_common(made)
    return made


def run(action, *words: str) -> int:
    return run_command(parser(), action, list(words))


def test_success_and_help_return_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda arguments: 0) == 0
    assert run(lambda arguments: 0, "-h") == 0
    assert "usage: tool" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "storage"),
    [
        (["1", "2d", "0", "--npz"], "fp16"),
        (["--npz", "1", "2d", "0"], "fp16"),
        (["--npz", "uint8", "1", "2d", "0"], "uint8"),
        (["1", "2d", "0", "--npz=uint8"], "uint8"),
        (["1", "2d", "0"], None),
    ],
)
def test_a_flag_with_an_optional_value_may_stand_anywhere(words: list[str], storage: str | None) -> None:
    arguments = train.build_parser().parse_args(words)
    assert (arguments.storage, arguments.dataset) == (storage, "1")


@pytest.mark.parametrize(
    "words", [["-devise", "cpu"], ["--d", "1"], ["-dev", "cpu"], ["--workspac", "x"], ["-x"]]
)
def test_unknown_flags_are_errors_that_name_the_closest(words: list[str], capsys) -> None:
    assert run(lambda arguments: 0, *words) == 2
    told = capsys.readouterr().err
    assert "Unknown flag" in told
    assert words[0] in told


def test_a_misspelt_flag_gets_a_hint(capsys) -> None:
    run(lambda arguments: 0, "-devise", "cpu")
    assert "Did you mean -device" in capsys.readouterr().err


def test_negative_numbers_are_values() -> None:
    seen: list[argparse.Namespace] = []
    assert run(lambda arguments: seen.append(arguments) or 0, "-step", "-1.5") == 0
    assert seen[0].step == -1.5


def test_argparse_errors_are_one_message_and_exit_2(capsys) -> None:
    assert run(lambda arguments: 0, "-device", "tpu") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def fail_with(error: BaseException):
    def action(arguments: argparse.Namespace) -> int:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SamunetError("The label is missing."), "The label is missing."),
        (
            OSError(errno.ENOSPC, "No space left on device", "plan.json"),
            "No space left on the disk while writing",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "results"), "Not allowed to use results"),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", "a/.7.partial.out", None, "a/out"),
            "a/out is a folder where a file is needed",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "raw/case_0000.nii.gz"),
            "There is no file or folder raw/case_0000.nii.gz",
        ),
        (MemoryError(), "Not enough main memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Not enough main memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "Not enough main memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling it"), "Not enough GPU memory"),
    ],
)
def test_users_mistakes_are_one_message_and_exit_2(error: BaseException, words: str, capsys) -> None:
    assert run(fail_with(error)) == 2
    told = capsys.readouterr().err
    assert told.startswith("tool: ")
    assert words in told
    assert "Traceback" not in told


def test_errors_that_lead_in_a_circle_are_looked_at_once() -> None:
    alone, first, second = OSError(errno.EIO, "Input/output error"), ValueError("one"), ValueError("two")
    alone.__cause__ = alone
    first.__cause__, second.__cause__ = second, first
    assert list(islice(_chain(alone), 3)) == [alone]
    assert list(islice(_chain(first), 3)) == [first, second]
    assert explain(first) is None


def test_faults_of_the_program_are_not_hidden() -> None:
    with pytest.raises(RuntimeError):
        run(fail_with(RuntimeError("sizes differ")))
    with pytest.raises(KeyError):
        run(fail_with(KeyError("x")))


def test_an_interrupt_has_its_own_code() -> None:
    assert run(fail_with(KeyboardInterrupt())) == 130


def test_a_scheduler_that_ends_a_command_leaves_nothing_half_written(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def ended(_arguments: argparse.Namespace) -> int:
        with atomic_path(tmp_path / "large.npy") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        return 0

    assert run(ended) == 130
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


def test_names_that_a_log_cannot_hold_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", log)

    def told(_arguments: argparse.Namespace) -> int:
        sys.stdout.write("Workspace: /данные")
        return 0

    assert run(told) == 0
    assert log.buffer.getvalue().startswith(rb"Workspace: /\u0434")  # type: ignore[attr-defined]


def test_processes_of_a_training_may_be_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.build_parser().parse_args(["1", "2d", "0", "-np", "0"]).np == 0
    with pytest.raises(SystemExit):
        train.build_parser().parse_args(["1", "2d", "0", "-np", "-1"])
    assert "whole number from 0" in capsys.readouterr().err


def test_settings_are_json_where_they_can_be() -> None:
    pairs = ["a=1", "b=1e-4", "c=true", "d=None", "e=full", "f=[8, 64]", "g=False", "h=a=b"]
    expected = {"a": 1, "b": 1e-4, "c": True, "d": None, "e": "full", "f": [8, 64], "g": False, "h": "a=b"}
    assert parse_settings(pairs) == expected


def test_numbers_with_commas_are_a_list() -> None:
    found = parse_settings(["context_blocks=2,5,8", "patch_size=[32, 48]", "rates=1e-4, 0.5", "word=a,1"])
    expected = {"context_blocks": [2, 5, 8], "patch_size": [32, 48], "rates": [1e-4, 0.5], "word": "a,1"}
    assert found == expected
    method = get_method("2d_desam")
    config = build_config(method, {"context_blocks": found["context_blocks"]})
    assert config.context_blocks == (2, 5, 8)
    with pytest.raises(SamunetError, match=r"context_blocks: expected a list such as \[2, 5, 8\]"):
        build_config(method, parse_settings(["context_blocks=2 5 8"]))


def test_none_is_a_word_and_null_is_nothing() -> None:
    """`augmentation=none` names a preset."""
    found = parse_settings(["augmentation=none", "head_width=null", "num_depth=None"])
    assert found == {"augmentation": "none", "head_width": None, "num_depth": None}


@pytest.mark.parametrize("pairs", [["a"], ["=1"], ["a=1", "a=2"]])
def test_bad_settings_are_refused(pairs: list[str]) -> None:
    with pytest.raises(SamunetError):
        parse_settings(pairs)


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "0", "-1", "1e999", "many"])
def test_numbers_are_finite_and_above_zero(text: str) -> None:
    assert positive_float("1e-3") == 1e-3
    with pytest.raises(argparse.ArgumentTypeError):
        positive_float(text)


def test_folds() -> None:
    assert fold("3") == 3
    assert fold("all") == "all"
    for text in ("-1", "first", "1.0"):
        with pytest.raises(argparse.ArgumentTypeError):
            fold(text)


def test_epochs_twice_is_refused(tmp_path: Path, capsys) -> None:
    words = ["101", "2d", "0", "--epochs", "3", "--set", "epochs=4", "--workspace", str(tmp_path)]
    (tmp_path / "raw" / "Dataset101_X").mkdir(parents=True)
    assert train.main(words) == 2
    assert "keep one" in capsys.readouterr().err
