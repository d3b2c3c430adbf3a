from __future__ import annotations

import re
from pathlib import Path

import pytest

from samunet.errors import SamunetError
from samunet.workspace import Workspace, fold_folder, fold_folders, short_dataset_name, split_tag


def test_the_flag_wins_over_the_variables(tmp_path: Path) -> None:
    workspace = Workspace.find(tmp_path, {"SAMUNET_WORKSPACE": "/elsewhere", "samunet_raw": "/other"})
    assert workspace.raw == tmp_path / "raw"
    assert workspace.weights == tmp_path / "weights"
    assert "--workspace" in workspace.origin


def test_a_home_that_nobody_has_is_a_mistake() -> None:
    with pytest.raises(SamunetError, match="~nobody-of-that-name/ws: this system knows no home folder"):
        Workspace.find("~nobody-of-that-name/ws")


def test_one_variable_for_the_root(tmp_path: Path) -> None:
    workspace = Workspace.find(None, {"SAMUNET_WORKSPACE": str(tmp_path), "samunet_raw": "/other"})
    assert workspace.results == tmp_path / "results"
    assert "SAMUNET_WORKSPACE" in workspace.origin


def test_three_variables_like_those_of_nnunet(tmp_path: Path) -> None:
    environment = {
        "samunet_raw": str(tmp_path / "r"),
        "samunet_preprocessed": str(tmp_path / "p"),
        "samunet_results": str(tmp_path / "s"),
        "nnUNet_raw": "/not/this",
    }
    workspace = Workspace.find(None, environment)
    assert (workspace.raw, workspace.preprocessed) == (tmp_path / "r", tmp_path / "p")
    assert workspace.weights.parts[-3:] == (".cache", "samunet", "weights")


def test_raw_data_of_an_nnunet_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace.find(None, {"nnUNet_raw": str(tmp_path / "theirs")})
    assert workspace.raw == tmp_path / "theirs"
    assert workspace.results == tmp_path / "samunet_workspace" / "results"
    assert "nnUNet_raw" in workspace.origin
    assert "samunet_results is not set" in workspace.origin


def test_the_default_lies_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace.find()
    assert workspace.raw == tmp_path / "samunet_workspace" / "raw"
    assert "default" in workspace.origin


def test_weights_have_a_variable_of_their_own(tmp_path: Path) -> None:
    workspace = Workspace.find(tmp_path, {"SAMUNET_WEIGHTS": str(tmp_path / "w")})
    assert workspace.weights == tmp_path / "w"


@pytest.mark.parametrize(
    "given", [901, "901", "0901", "Dataset901_Tiny3D", "Tiny3D", "901_Tiny3D", "Dataset901_Tiny3D/"]
)
def test_a_dataset_is_found_by_number_and_by_name(tiny_root: Path, given: str | int) -> None:
    assert Workspace.find(tiny_root).dataset_name(given) == "Dataset901_Tiny3D"


def test_an_unknown_dataset_lists_those_that_exist(tiny_root: Path) -> None:
    with pytest.raises(SamunetError, match=r"'903'.*Dataset901_Tiny3D.*--workspace"):
        Workspace.find(tiny_root).dataset_name(903)


def test_a_dataset_that_only_nnunets_folder_has_is_named_there(tmp_path: Path) -> None:
    theirs, root = tmp_path / "theirs", tmp_path / "root"
    (theirs / "Dataset007_Heart").mkdir(parents=True)
    (root / "results" / "Dataset008_Liver").mkdir(parents=True)
    (theirs / "Dataset008_Liver").mkdir()
    for flag, environment in ((root, {}), (None, {"SAMUNET_WORKSPACE": str(root)})):
        workspace = Workspace.find(flag, {**environment, "nnUNet_raw": str(theirs)})
        with pytest.raises(
            SamunetError, match=re.escape(f"nnUNet_raw has {theirs / 'Dataset007_Heart'}, but")
        ):
            workspace.dataset_name(7)
        with pytest.raises(
            SamunetError, match=re.escape(f"nnUNet_raw has {theirs / 'Dataset008_Liver'}, but")
        ):
            workspace.raw_folder(workspace.dataset_name(8))
        with pytest.raises(SamunetError) as told:
            workspace.dataset_name(9)
        assert "nnUNet_raw" not in str(told.value)
    assert Workspace.find(None, {"nnUNet_raw": str(theirs)}).dataset_name(7) == "Dataset007_Heart"


def test_an_id_with_two_names_is_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "raw" / "Dataset005_One").mkdir(parents=True)
    (tmp_path / "results" / "Dataset005_Two").mkdir(parents=True)
    (tmp_path / "raw" / "Dataset0051_Three").mkdir()
    with pytest.raises(SamunetError, match="ambiguous: Dataset005_One, Dataset005_Two"):
        Workspace.find(tmp_path).dataset_name("5")


def test_file_names(tmp_path: Path) -> None:
    workspace = Workspace.find(tmp_path)
    model = workspace.model_folder("Dataset901_Tiny3D", "2d_cnn", tag="fast")
    assert model == tmp_path / "results" / "Dataset901_Tiny3D" / "2d_cnn__samunetPlans__fast"
    assert fold_folder(model, "all").name == "fold_all"
    assert workspace.plan_file("D").name == "samunetPlans.json"
    assert workspace.case_folder("D", "samunetPlans", "2d").name == "samunetPlans_2d"
    assert workspace.splits_file("D").name == "splits_final.json"


@pytest.mark.parametrize("tag", ["a/b", "a__b", "..", "_x", "a b"])
def test_a_tag_that_breaks_the_folder_name_is_refused(tmp_path: Path, tag: str) -> None:
    with pytest.raises(SamunetError, match="tag"):
        Workspace.find(tmp_path).model_folder("D", "2d_cnn", tag=tag)


def test_a_missing_raw_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SamunetError, match="Dataset901"):
        Workspace.find(tmp_path).raw_folder("Dataset901_Tiny3D")


def test_splits_have_tags_of_their_own() -> None:
    assert split_tag(None) is split_tag("kfold") is None
    assert split_tag("leave_one_group_out") == "leave_one_group_out"
    assert split_tag("single_source:UCL-2_b.c") == "single_source-UCL-2_b.c"
    groups = ("site A/3", "site A 3", "x__y", "x_y", "北京", "上海", "a", "a-", "-a", "a--b", "a-b")
    tags = [split_tag(f"single_source:{group}") for group in groups]
    assert len(set(tags)) == len(tags)
    assert tags[0].startswith("single_source-site-A-3-")
    for tag in tags:
        Workspace.find(environment={}).model_folder("Dataset001_A", "2d_cnn", tag=tag)


def test_splits_have_files_of_their_own(tmp_path: Path) -> None:
    workspace = Workspace.find(tmp_path)
    assert workspace.splits_file("D", "single_source:UCL").name == "splits_single_source_UCL.json"
    groups = ("A B", "A/B", "A_B", "北京", "上海")
    names = [workspace.splits_file("D", f"single_source:{group}").name for group in groups]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)


def test_names_of_a_selection(tmp_path: Path) -> None:
    workspace = Workspace.find(tmp_path)
    assert workspace.selection_file("Dataset101_A").name == "selection.json"
    assert workspace.selection_file("Dataset101_A", "mine").name == "selection__mine.json"
    assert workspace.postprocessing_file("Dataset101_A", "mine").name == "postprocessing__mine.json"
    pair = workspace.fold_ensemble_folder("Dataset101_A", "mine", ["2d_cnn", "3d_unet__tag"])
    assert pair.relative_to(tmp_path).as_posix().endswith("Dataset101_A/ensembles/mine/2d_cnn+3d_unet__tag")
    many = [workspace.fold_ensemble_folder("D", "mine", [f"model_{i}_{k}" for i in range(20)]) for k in "ab"]
    assert all(len(folder.name) < 30 for folder in many)
    assert many[0] != many[1]


@pytest.mark.parametrize(("full", "short"), [("Dataset007_Liver", "7"), ("Liver", "Liver")])
def test_what_a_user_types_for_a_dataset(full: str, short: str) -> None:
    assert short_dataset_name(full) == short


def test_folds_of_a_model_without_copies(tmp_path: Path) -> None:
    for fold in (10, 2, "all", "0_old", "01", "0 (copy)"):
        fold_folder(tmp_path, fold).mkdir()
    assert list(fold_folders(tmp_path)) == [2, 10, "all"]
    assert fold_folders(tmp_path)["all"] == tmp_path / "fold_all"
    assert fold_folders(tmp_path / "nothing") == {}
