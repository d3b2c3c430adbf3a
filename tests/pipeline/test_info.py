"""What samunet_info gathers."""

from __future__ import annotations

from pathlib import Path

from samunet.pipeline.info import collect, describe
from samunet.workspace import Workspace


def test_weights_that_could_be_meant_in_two_ways_do_not_hide_the_rest(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    for name in ("med_vit_b.pth", "tuned_vit_b.pth"):
        (tmp_path / "weights" / name).touch()
    facts = collect(Workspace.find(tmp_path))
    assert "med_vit_b.pth, tuned_vit_b.pth" in facts["weights"]["vit_b"]
    assert facts["weights"]["vit_l"] is None
    (line,) = (line for line in describe(facts).splitlines() if line.startswith("  vit_b "))
    assert "several files" in line


def test_copies_of_folds_are_no_folds(tmp_path: Path) -> None:
    workspace = Workspace.find(tmp_path)
    (workspace.raw / "Dataset001_A").mkdir(parents=True)
    model = workspace.model_folder("Dataset001_A", "2d_cnn", "samunetPlans")
    for fold in ("10", "2", "all", "2_old"):
        (model / f"fold_{fold}").mkdir(parents=True)
        (model / f"fold_{fold}" / "checkpoint_final.pth").touch()
    (model / "fold_3").mkdir()  # begun
    for name in ("selection__big.json", "postprocessing__big.json"):  # of a plan with another name
        (model.parent / name).write_text("{}")
    assert collect(workspace)["datasets"]["Dataset001_A"]["trained_folds"] == {model.name: ["2", "10", "all"]}
