"""documentation/adding_a_method.md: the file that it shows, used as a user would."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import examples.small_fcn
import pytest
import SimpleITK as sitk
from tiny_runs import SilentReporter, make_request

from samunet.cli import plan_experiment, preprocess
from samunet.cli.plan_and_preprocess import main as plan_and_preprocess
from samunet.cli.predict import main as predict
from samunet.cli.train import main as train
from samunet.errors import SamunetError
from samunet.pipeline.plan_and_preprocess import data_names
from samunet.planning.methods import get_method
from samunet.planning.plan import Plan
from samunet.trainers import get_trainer
from samunet.trainers.entry import train_fold
from samunet.workspace import Workspace

NAME = "examples.small_fcn"
PAGE = Path(__file__).resolve().parents[1] / "documentation" / "adding_a_method.md"


def test_the_page_shows_the_file() -> None:
    source = Path(examples.small_fcn.__file__).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        assert block in source, block


def test_found_by_its_dotted_name() -> None:
    assert get_method(NAME).name == NAME
    assert get_trainer(NAME) is examples.small_fcn.SmallFcnTrainer


def test_its_cases_are_preprocessed_by_a_name_that_the_plan_knows(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--workspace", str(tiny_copy)]
    assert plan_experiment.main(["-d", "901", *common]) == 0
    file = Workspace.find(tiny_copy).plan_file("Dataset901_Tiny3D")
    plan = Plan.load(file)
    own = {name: found for name, found in plan.configurations.items() if name != NAME}
    plan = replace(plan, configurations=own)  # planned by a process that had not imported the method
    plan.save(file)
    assert train(["901", NAME, "0", "-device", "cpu", *common]) == 2
    command = capsys.readouterr().err.split("Run ")[1].strip().removesuffix(".")
    program, *words = shlex.split(command)
    assert program == "samunet_preprocess"
    asked = preprocess.build_parser().parse_args(words)
    assert data_names(plan, asked.configurations) == ("2d",)


def test_a_method_that_is_wrong_about_its_cache_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples.small_fcn.SmallFcnTrainer, "cacheable", classmethod(lambda *_: True))
    request = make_request(tmp_path, NAME)
    with pytest.raises(SamunetError, match=f"{NAME} says .* only heads on SamSliceNetwork"):
        train_fold(request, SilentReporter())
    assert not request.folder.exists()


def test_from_plan_to_prediction(tiny_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--workspace", str(tiny_copy)]
    assert plan_and_preprocess(["-d", "901", "-c", "2d", "-np", "1", *common]) == 0
    short = ["--epochs", "2", "--iterations", "3", "-device", "cpu", "-np", "1", "--set", "val_iterations=1"]
    assert train(["901", NAME, "0", *short, *common]) == 0, capsys.readouterr().err
    run = next((tiny_copy / "results").rglob("fold_0"))
    assert (run / "checkpoint_final.pth").exists()
    assert (run / "validation" / "summary.json").exists()
    images, output = tiny_copy / "raw" / "Dataset901_Tiny3D" / "imagesTr", tiny_copy / "out"
    words = ["-i", str(images), "-o", str(output), "-d", "901", "-c", NAME, "-f", "0", "-device", "cpu"]
    assert predict([*words, *common]) == 0, capsys.readouterr().err
    written = sitk.ReadImage(str(output / "tiny_000.nii.gz"))
    assert written.GetSize() == sitk.ReadImage(str(images / "tiny_000_0000.nii.gz")).GetSize()
