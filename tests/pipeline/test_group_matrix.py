"""Scores that do not belong together get into no source -> target matrix; a place tells why it is empty."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from out_of_fold_runs import DATASET, MadeUp, Predict, missing, no_lesion, reference, turned, write_predicted
from tiny_runs import REGIONS

from samunet.data.splits import Split
from samunet.errors import SamunetError
from samunet.pipeline.group_matrix import files
from samunet.pipeline.group_matrix.collect import GroupMatrix, collect_matrix
from samunet.pipeline.group_matrix.differences import differences_of
from samunet.pipeline.group_matrix.runs import MatrixRequest
from samunet.records import read_json

SITES = {f"case_{i:02d}": "north" if i < 3 else "south" for i in range(6)}
THREE = {f"case_{i:02d}": ("east", "north", "south")[i // 2] for i in range(6)}
BEST = "checkpoint_best.pth"
USUAL = missing(0.2)


def of_sites(root: Path, sites: dict[str, str] = SITES, **changes: Any) -> MadeUp:
    return MadeUp(root=root, num_cases=len(sites), groups=sites, **changes)


def add(made: MadeUp, name: str, source: str, predict: Predict = USUAL) -> Path:
    """A model that was trained on one site as fold 0; returns the folder of its validation."""
    train = tuple(case for case in made.names if made.groups[case] == source)
    made.splits = (Split(train, tuple(case for case in made.names if case not in train)),)
    return made.add(name, predict, folds=(0,)) / "fold_0/validation"


def collected(made: MadeUp, *tags: str, **request: Any) -> GroupMatrix:
    return collect_matrix(made.workspace, MatrixRequest(dataset=DATASET, tags=tags, **request))


def refusal(made: MadeUp, *tags: str) -> str:
    with pytest.raises(SamunetError) as fault:
        collected(made, *tags)
    return str(fault.value)


def shown(matrix: GroupMatrix, metric: str = "Dice") -> str:
    return files.describe(matrix, differences_of(matrix), metric)


def as_json(matrix: GroupMatrix, folder: Path) -> dict[str, Any]:
    files.save_json(matrix, differences_of(matrix), folder / "matrix.json")
    return read_json(folder / "matrix.json")


def drawn(matrix: GroupMatrix, metric: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The picture before it was written."""
    figures, save = [], Figure.savefig

    def kept(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", kept)
    files.draw(matrix, metric, folder / "matrix.png")
    return figures[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": BEST}, f"{BEST}, step 0.5, mirroring"),
        ({"settings": {"grid_side": 1}}, "checkpoint_final.pth, step 0.5, mirroring, grid_side=1"),
        ({"step_size": 0.25}, "checkpoint_final.pth, step 0.25, mirroring"),
        ({"mirroring": False}, "checkpoint_final.pth, step 0.5, no mirroring"),
    ],
)
def test_runs_that_were_predicted_in_different_ways_are_not_averaged(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    made = of_sites(tmp_path)
    write_predicted(add(made, "2d_unet__seed0", "north"), **changes)
    add(made, "2d_unet__seed1", "north")
    message = refusal(made, "seed0", "seed1")
    assert "2d_unet" in message
    assert f"{words}: seed0 fold 0" in message
    assert "checkpoint_final.pth, step 0.5, mirroring: seed1 fold 0" in message
    command = "samunet_train 950 2d_unet 0 --tag seed0 --splits single_source:north --val"
    assert [line.strip() for line in message.splitlines() if "samunet_train 950" in line] == [command]
    assert "--tag" in message.splitlines()[-2]
    assert collected(made, "seed1").cells["2d_unet"]


def test_sources_that_were_predicted_in_different_ways_are_not_set_side_by_side(tmp_path: Path) -> None:
    made = of_sites(tmp_path)
    write_predicted(add(made, "2d_unet__single_source-north", "north"), checkpoint=BEST)
    add(made, "2d_unet__single_source-south", "south")
    assert f"{BEST}, step 0.5, mirroring: single_source-north fold 0" in refusal(made)


def test_a_validation_of_which_nobody_knows_how_it_was_predicted(tmp_path: Path) -> None:
    made = of_sites(tmp_path)
    (add(made, "2d_unet__seed0", "north") / "predict_args.json").unlink()
    command = "samunet_train 950 2d_unet 0 --tag seed0 --splits single_source:north --val"
    assert command in refusal(made, "seed0")


def test_how_cases_were_predicted_is_written_down(tmp_path: Path) -> None:
    made = of_sites(tmp_path)
    add(made, "2d_unet__seed0", "north")
    matrix = collected(made, "seed0", configurations=("2d_unet", "2d_cnn"))
    methods = as_json(matrix, tmp_path)["methods"]
    usual = {"checkpoint": "checkpoint_final.pth", "step_size": 0.5, "mirroring": True, "settings": {}}
    assert methods["2d_unet"]["predicted"] == {**usual, "chosen_on_targets": False}
    assert methods["2d_cnn"]["predicted"] is None
    assert "redicted" not in shown(matrix)


def test_a_checkpoint_that_was_chosen_on_the_targets_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = of_sites(tmp_path)
    for seed in (0, 1):
        validation = add(made, f"2d_desam__seed{seed}", "north")
        write_predicted(validation, checkpoint=BEST, settings={"grid_side": 1})
    add(made, "2d_unet__seed0", "north")
    matrix = collected(made, "seed0", "seed1")
    methods = as_json(matrix, tmp_path)["methods"]
    assert methods["2d_desam"]["predicted"] == {
        "checkpoint": BEST,
        "step_size": 0.5,
        "mirroring": True,
        "settings": {"grid_side": 1},
        "chosen_on_targets": True,
    }
    assert not methods["2d_unet"]["predicted"]["chosen_on_targets"]
    note = (
        f"2d_desam is predicted with {BEST}, step 0.5, mirroring, grid_side=1; the epoch was chosen on the "
        "target cases, so the scores are optimistic."
    )
    assert [line for line in shown(matrix).splitlines() if "checkpoint" in line] == [note]
    below = drawn(matrix, "Dice", tmp_path, monkeypatch).get_supxlabel()
    assert " ".join(below.split()) == note
    assert "\n" in below  # wider than the picture otherwise


@pytest.mark.parametrize("change", [no_lesion, turned])
@pytest.mark.parametrize(("older", "newer"), [("2d_cnn", "2d_unet"), ("2d_unet", "2d_cnn")])
def test_methods_that_were_scored_against_different_references(
    tmp_path: Path, older: str, newer: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Whichever stands first; none had predicted the class where it is corrected away."""
    made = of_sites(tmp_path)
    add(made, f"{older}__single_source-north", "north", lambda truth, _: no_lesion(truth))
    made.correct("case_04", change)
    add(made, f"{newer}__single_source-north", "north", lambda truth, _: no_lesion(truth))
    message = refusal(made)
    assert "1 case (case_04) was scored against different references" in message
    commands = [line.strip() for line in message.splitlines() if "samunet_train" in line]
    tag = "--tag single_source-north --splits single_source:north"
    assert commands == [f"samunet_train 950 {older} 0 {tag} --val"]


def test_seeds_and_sources_that_were_scored_against_different_references(tmp_path: Path) -> None:
    made = of_sites(tmp_path, THREE)
    older = add(made, "2d_unet__seed0", "north")
    write_predicted(older, checkpoint=BEST, settings={"grid_side": 1})
    made.correct("case_04", no_lesion)
    for name, source in (("2d_unet__seed1", "north"), ("2d_unet__seed0-east", "east")):
        write_predicted(add(made, name, source), checkpoint=BEST, settings={"grid_side": 1})
    command = (
        "samunet_train 950 2d_unet 0 --tag seed0 --splits single_source:north --val "
        f"-chk {BEST} --set grid_side=1"
    )
    for other in ("seed1", "seed0-east"):
        message = refusal(made, "seed0", other)
        assert [line.strip() for line in message.splitlines() if "samunet_train" in line] == [command]
    assert collected(made, "seed1", "seed0-east").cells["2d_unet"]
    made.score(older)
    write_predicted(older, checkpoint=BEST, settings={"grid_side": 1})
    assert len(collected(made, "seed0", "seed1").cells["2d_unet"]["north", "south"].folders) == 2


def test_references_that_cannot_be_read_now(tmp_path: Path) -> None:
    made = of_sites(tmp_path)
    add(made, "2d_cnn__single_source-north", "north")
    made.correct("case_04", no_lesion)
    add(made, "2d_unet__single_source-north", "north")
    (made.raw / "labelsTr/case_04.nii.gz").write_bytes(b"")
    message = refusal(made)
    assert "1 case (case_04) was scored against different references, and the labels do not tell" in message
    assert "case_04.nii.gz" in message


def test_a_run_that_counts_for_no_target_is_not_asked_for_its_references(tmp_path: Path) -> None:
    made = of_sites(tmp_path)
    older = add(made, "2d_cnn__single_source-north", "north")
    (older / "case_05.nii.gz").unlink()
    made.score(older)
    made.correct("case_04", no_lesion)
    add(made, "2d_unet__single_source-north", "north")
    assert not collected(made).cells["2d_cnn"]


def test_a_metric_without_a_value_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HD95 where every case was missed; south was not trained on."""
    made = of_sites(tmp_path)
    add(made, "2d_unet__single_source-north", "north", lambda truth, _: np.zeros_like(truth))
    matrix = collected(made)
    figure = drawn(matrix, "HD95", tmp_path, monkeypatch)
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["source", "-", "-", "missing", "source", "missing"]
    hatches = [patch.get_hatch() for patch in axes.patches]
    assert [bool(hatch) for hatch in hatches] == [False, False, False, True, False, True]
    assert "HD95 is defined in no case" in figure.get_supxlabel()
    assert "misses up to 100% of the objects (north -> south)" in figure.get_supxlabel().replace("\n", " ")
    text = shown(matrix, "HD95")
    assert "Scored, but HD95 is defined in no case: 2d_unet north -> south." in text
    assert "2d_unet, south -> north:" in text
    usual = drawn(matrix, "Dice", tmp_path, monkeypatch)
    assert "defined" not in usual.get_supxlabel()
    assert "defined in no case" not in shown(matrix)


def test_the_mean_over_the_others_lacks_a_value_for_the_same_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = of_sites(tmp_path, THREE)
    south = {i for i, case in enumerate(made.names) if THREE[case] == "south"}

    def nothing_of_south(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        case = int(rng.bit_generator.seed_seq.entropy[1])  # type: ignore[attr-defined]
        return np.zeros_like(truth) if case in south else truth

    validation = add(made, "2d_unet__single_source-north", "north", nothing_of_south)
    add(made, "2d_unet__single_source-east", "east")
    figure = drawn(collected(made), "HD95", tmp_path, monkeypatch)
    row = [text.get_text() for text in figure.axes[0].texts][4:8]
    assert row == ["0.000", "source", "-", "-"]
    for case in made.names[-2:]:
        (validation / f"{case}.nii.gz").unlink()
    made.score(validation)
    figure = drawn(collected(made), "HD95", tmp_path, monkeypatch)
    row = [text.get_text() for text in figure.axes[0].texts][4:8]
    assert row == ["0.000", "source", "missing", "missing"]


def test_objects_that_were_missed_stand_beside_distances(tmp_path: Path) -> None:
    """They have none, so a method that misses the difficult ones would look better for it."""
    made = of_sites(tmp_path)

    def no_second_class(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(truth == 2, 0, truth)

    add(made, "2d_unet__single_source-north", "north", no_second_class)
    add(made, "2d_unet__single_source-south", "south", lambda truth, _: truth)
    matrix = collected(made)
    cell = matrix.cells["2d_unet"]["north", "south"]
    assert cell.mean("HD95") == 0  # of the first class
    assert cell.missed == (cell.cases,)
    assert cell.missed_share == 0.5
    told = "2d_unet misses up to 50% of the objects (north -> south): they have no HD95, and the means"
    assert told in shown(matrix, "HD95")
    assert "misses" not in shown(matrix)
    targets = as_json(matrix, tmp_path)["methods"]["2d_unet"]["sources"]["north"]["targets"]
    assert targets["south"]["missed"] == [cell.cases]
    files.save_csv(matrix, tmp_path / "matrix.csv")
    rows = list(csv.DictReader((tmp_path / "matrix.csv").read_text().splitlines()))
    assert {(row["source"], float(row["missed"])) for row in rows} == {("north", 0.5), ("south", 0.0)}


def test_regions_are_scored_as_regions(tmp_path: Path) -> None:
    """They overlap: losing the lesion leaves `lesion` empty and takes its part from the region around it."""
    made = of_sites(tmp_path, labels=REGIONS)
    add(made, "2d_unet__single_source-north", "north", lambda truth, _: np.where(truth == 2, 0, truth))
    matrix = collected(made)
    cell = matrix.cells["2d_unet"]["north", "south"]
    names = list(REGIONS.foreground)
    lesion = names.index(next(name for name in names if REGIONS.labels[name] == (2,)))
    whole = names.index(next(name for name in names if REGIONS.labels[name] == (1, 2)))
    assert cell.dice.shape == (1, cell.cases, len(names))
    assert (cell.dice[0, :, lesion] == 0).all()
    # 30 of 42 voxels of each slice are left (`reference`).
    assert cell.dice[0, :, whole] == pytest.approx(2 * 30 / (30 + 42))
    assert cell.missed == (cell.cases,)


@pytest.mark.parametrize("methods", [(), ("2d_unet",)])
def test_groups_of_one_case_alone_are_no_sources(tmp_path: Path, methods: tuple[str, ...]) -> None:
    made = of_sites(tmp_path, {f"case_{i:02d}": f"patient {i}" for i in range(4)})
    with pytest.raises(SamunetError) as fault:
        collected(made, configurations=methods)
    message = str(fault.value)
    assert "each of the 4 groups (patient 0, patient 1, patient 2, patient 3) has one case" in message
    assert "none can be a source" in message
    assert "column patient of groups.csv" in message


def sites_of(patients: dict[str, list[int]]) -> dict[str, Any]:
    """Groups and patients of sites whose cases are of these patients."""
    pairs = [(site, f"p{patient}") for site, found in patients.items() for patient in found]
    names = [f"case_{number:02d}" for number in range(len(pairs))]
    groups = {name: site for name, (site, _) in zip(names, pairs)}
    return {"sites": groups, "patients": {name: patient for name, (_, patient) in zip(names, pairs)}}


def test_target_cases_of_patients_whom_the_source_knew_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three patients of the north were scanned in the south too, all of the east in the north."""
    made = of_sites(tmp_path, **sites_of({"east": [1, 2], "north": [1, 2, 3], "south": [2, 3, 4, 5]}))
    for site in ("east", "north", "south"):
        add(made, f"2d_unet__single_source-{site}", site)
    matrix = collected(made)
    cells = matrix.cells["2d_unet"]
    assert {place: cell.cases for place, cell in cells.items()} == {
        ("east", "north"): 1,
        ("east", "south"): 3,
        ("north", "south"): 2,
        ("south", "east"): 1,
        ("south", "north"): 1,
    }
    assert matrix.missing == ()
    assert matrix.to_others("2d_unet", "north", "Dice") == cells["north", "south"].mean("Dice")
    assert matrix.overall("2d_unet", "Dice") > 0
    told = " ".join(shown(matrix).split())
    assert "their patients have cases in the source too: east -> north 2, east -> south 1," in told
    assert "all patients of the target have cases in the source too: north -> east;" in told
    left_out = as_json(matrix, tmp_path)["left_out"]
    assert [entry["cases"] for entry in left_out if entry["all"]] == [2]
    figure = drawn(matrix, "Dice", tmp_path, monkeypatch)
    assert "same\npatients" in [text.get_text() for text in figure.axes[0].texts]


def test_methods_are_compared_where_sources_knew_different_patients_of_a_target(tmp_path: Path) -> None:
    """The north's targets lack one patient for the east and another for the south."""
    sites = {"east": [1, 6, 7], "north": [1, 2, 3, 4, 5], "south": [2, 3, 8, 9]}
    made = of_sites(tmp_path, **sites_of(sites))
    for site in sites:
        add(made, f"2d_unet__single_source-{site}", site, missing(0.1))
        add(made, f"2d_cnn__single_source-{site}", site, missing(0.5))
    matrix = collected(made)
    cells = matrix.cells["2d_unet"]
    assert [len(cells[source, "north"].unit_names) for source in ("east", "south")] == [4, 3]
    differences = differences_of(matrix)
    assert differences is not None
    assert {("east", "north"), ("south", "north")} <= set(differences.places)
    (pair,) = differences.pairs
    assert (pair.first, pair.second) == ("2d_unet", "2d_cnn")
    assert pair.interval.low < pair.interval.value < pair.interval.high
    assert pair.interval.value > 0.1


def test_sites_of_the_same_patients_cannot_be_tested(tmp_path: Path) -> None:
    made = of_sites(tmp_path, **sites_of({"north": [1, 2, 3], "south": [1, 2, 3]}))
    add(made, "2d_unet__single_source-north", "north")
    message = refusal(made)
    assert "every patient of a target has cases in the source too" in message
    assert "samunet_train" not in message


def holding(*cases: int) -> Callable[[np.random.Generator], np.ndarray]:
    """References of which these cases alone hold foreground; cases are told apart by their first number."""
    first = {int(np.random.default_rng(case).integers(1 << 30)) for case in cases}

    def truth(rng: np.random.Generator) -> np.ndarray:
        is_held = int(rng.integers(1 << 30)) in first
        return reference(rng) * np.uint8(is_held)

    return truth


@pytest.mark.parametrize(("held", "is_compared"), [((0, 3), False), ((0, 1, 3, 4), True)])
def test_a_single_holder_of_a_class_gives_no_interval(
    tmp_path: Path, held: tuple[int, ...], is_compared: bool
) -> None:
    """However many other patients a target has: their draws change nothing, and the interval has no width."""
    made = of_sites(tmp_path, truth=holding(*held))
    for site in ("north", "south"):
        add(made, f"2d_unet__single_source-{site}", site, missing(0.1))
        add(made, f"2d_cnn__single_source-{site}", site, missing(0.5))
    matrix = collected(made)
    assert (differences_of(matrix) is not None) == is_compared
    told = shown(matrix)
    assert ("2d_unet - 2d_cnn:" in told) == is_compared
    assert ("too narrow: in one group a class is held by 2" in told) == is_compared
    assert ("The methods are not compared" in told) != is_compared
