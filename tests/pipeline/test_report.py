"""The report: complete, self-contained, well-formed, and honest about what is missing."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import SHORT
from out_of_fold_runs import DATASET, MadeUp, missing, write_predicted
from tiny_quality import FINGERPRINT

from samunet.cli import distill, plan_and_preprocess, report, train
from samunet.cli.train import settings_of
from samunet.data.geometry import FLAT_SPACING_MM, Geometry
from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.evaluation.bootstrap import Interval
from samunet.pipeline.report.collect import ScoredCase, collect_models, scored_cases
from samunet.pipeline.report.commands import training_commands
from samunet.pipeline.report.content import Cell, data_table, weight_lines, with_interval
from samunet.pipeline.report.pictures import panel_sizes, plane_name
from samunet.pipeline.report.write import ReportOptions, extremes, write_report
from samunet.pipeline.selection.find import SelectionOptions, find_best
from samunet.pipeline.selection.out_of_fold import ModelsWanted
from samunet.planning.plan import WeightsUsed
from samunet.workspace import Workspace

NAME = "Dataset901_Tiny3D"
VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Notes every tag that is not closed, every address, and the words."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def outline(file: Path) -> Outline:
    parser = Outline()
    parser.feed(file.read_text(encoding="utf-8"))
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def trained(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two trained folds of the 2D U-Net and one tagged fold `all`."""
    root = tmp_path_factory.mktemp("report") / "workspace"
    shutil.copytree(tiny_root, root)
    where = ["--workspace", str(root)]
    assert plan_and_preprocess.main(["-d", "901", "-c", "2d", "-np", "1", *where]) == 0
    for fold in ("0", "1"):
        assert train.main(["901", "2d", fold, *SHORT, *where]) == 0
    assert train.main(["901", "2d", "all", "--tag", "every", "--seed", "3", *SHORT, *where]) == 0
    return root


def test_one_file_that_needs_nothing_else(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["901", "--workspace", str(trained)]) == 0
    file = trained / "results" / NAME / "report.html"
    assert str(file) in capsys.readouterr().out
    page = outline(file)
    assert page.addresses
    assert all(re.match(r"data:image/(png|svg\+xml);base64,|#\w+$", a) for a in page.addresses)
    anchors = {a[1:] for a in page.addresses if a.startswith("#")}
    assert all(f'id="{anchor}"' in file.read_text() for anchor in anchors)
    words = " ".join(page.words)
    assert "samunet_find_best_configuration" in words
    assert "--tag every" in words
    assert "--seed 3" in words
    assert sum(a.startswith("data:image/png") for a in page.addresses) == 3


def test_the_commands_repeat_what_was_recorded(trained: Path) -> None:
    scored, tagged = collect_models(Workspace.find(trained), NAME)
    same = train.build_parser().parse_args(["901", "2d", "0", *SHORT])
    for number, command in enumerate(training_commands(NAME, [scored])):
        read = train.build_parser().parse_args(shlex.split(command)[1:])
        assert (read.configuration, read.fold, settings_of(read)) == ("2d_unet", [number], settings_of(same))
    fold = tagged.folds[0]
    more = {
        "settings": {"patch_size": [16, 32], "epochs": 3},
        "splits": "single_source:south side",
    }
    taught = {
        "teacher": "2d_autosam__samunetPlans__big",
        "folds": [0, 1],
        "checkpoint": "checkpoint_best.pth",
        "weight": 0.25,
        "target": "logits",
        "step_size": 0.75,
        "mirroring": False,
        "unlabelled_folder": "/more images",
    }
    changed = replace(fold.run, overrides=more, distillation=taught, time_budget_minutes=1.5)
    other = replace(fold.run, overrides={"weights": "/my/sam.pth"})
    runs = tuple(replace(fold, run=run) for run in (changed, other))
    distilled, weighted = training_commands(NAME, [replace(tagged, folds=runs)])
    assert weighted == "samunet_train 901 2d_unet all --tag every -w /my/sam.pth --seed 3"
    program, *words = shlex.split(distilled)
    assert program == "samunet_distill"
    read = distill.build_parser().parse_args(words)
    assert (read.dataset, read.teacher, read.student, read.fold) == ("901", "2d_autosam", "2d_unet", ["all"])
    assert (read.tag, read.seed, read.splits) == ("every", 3, "single_source:south side")
    assert (settings_of(read), read.time_budget) == ({"patch_size": [16, 32], "epochs": 3}, 1.5)
    assert (read.teacher_tag, read.teacher_folds, read.weight, read.target) == ("big", [0, 1], 0.25, "logits")
    assert (read.teacher_checkpoint, read.teacher_plans) == ("checkpoint_best.pth", None)
    assert (read.step_size, read.disable_tta, str(read.unlabelled)) == (0.75, True, "/more images")


@pytest.mark.parametrize(
    ("encoder", "weights", "settings", "used", "told"),
    [
        (None, None, {}, None, "no encoder of SAM; trained from scratch"),
        ("vit_tiny", "none", {"encoder": "full"}, None, "vit_tiny, trained from scratch"),
        ("vit_tiny", "random", {"encoder": "full"}, None, "vit_tiny, trained from scratch"),
        ("vit_tiny", "random", {}, None, "vit_tiny, random and frozen"),
        (
            "vit_tiny",
            "shipped",
            {},
            WeightsUsed(file="tiny.safetensors", kind="shipped", sha256="0123456789abcdef" * 4),
            "vit_tiny from tiny.safetensors (shipped weights, SHA-256 0123456789abcdef…)",
        ),
    ],
)
def test_the_weights_of_every_model_are_named(trained, encoder, weights, settings, used, told):
    model = collect_models(Workspace.find(trained), NAME)[0]
    fold = model.folds[0]
    configuration = {"encoder": encoder, "encoder_weights": weights, "settings": settings}
    run = replace(fold.run, configuration=configuration, weights=used)
    assert weight_lines([replace(model, folds=(replace(fold, run=run),))]) == (f"{model.title}: {told}",)


def test_every_scored_case_and_its_dice_is_there(trained: Path, tmp_path: Path) -> None:
    workspace = Workspace.find(trained)
    file = write_report(workspace, ReportOptions(dataset=NAME, output=tmp_path / "r.html"))
    words = " ".join(outline(file).words)
    folder = trained / "results" / NAME / "2d_unet__samunetPlans"
    for fold in ("fold_0", "fold_1"):
        summary = json.loads((folder / fold / "validation" / "summary.json").read_text())
        for case in summary["metric_per_case"]:
            dice = [scores["Dice"] for scores in case["metrics"].values() if not math.isnan(scores["Dice"])]
            if dice:
                assert case["case"] in words
                assert f"{sum(dice) / len(dice):.3f}" in words


def test_means_are_those_of_the_pooled_cases(trained: Path) -> None:
    models = collect_models(Workspace.find(trained), NAME)
    assert [model.title for model in models] == ["2d_unet", "2d_unet (every)"]
    scored, unscored = models
    pooled = [
        case.metrics["organ"]["Dice"]
        for case in scored.cases
        if not math.isnan(case.metrics["organ"]["Dice"])
    ]
    assert scored.class_means("Dice")["organ"] == pytest.approx(sum(pooled) / len(pooled))
    assert not unscored.cases  # fold `all` has seen every case
    assert unscored.folds[0].finished


def test_cases_that_a_fold_was_trained_on_are_no_scores_of_it(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    run = moved / "results" / NAME / "2d_unet__samunetPlans" / "fold_0" / "run.json"
    content = json.loads(run.read_text())
    seen, *others = content["val"]
    run.write_text(json.dumps({**content, "train": [*content["train"], seen], "val": [*others, "absent"]}))
    scored = next(m for m in collect_models(Workspace.find(moved), NAME) if m.title == "2d_unet")
    assert [case.name for case in scored.folds[0].cases] == others
    assert scored.folds[1].cases
    assert f"scores of 1 case ({seen}) that it was trained on" in caplog.text


def test_no_pictures_shows_no_patient(trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "plain.html"
    assert report.main(["901", "-o", str(output), "--no_pictures", "--workspace", str(trained)]) == 0
    assert "data:image/png" not in output.read_text()
    assert "#pictures" not in output.read_text()


def test_missing_files_cost_a_picture_and_no_more(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    shutil.rmtree(moved / "raw")
    file = write_report(Workspace.find(moved), ReportOptions(dataset=NAME))
    assert "data:image/png" not in file.read_text()
    assert "worst: tiny_" in " ".join(outline(file).words)


def test_a_damaged_image_and_a_lost_label_cost_a_picture_and_no_more(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    raw = next((moved / "raw").glob("*Tiny3D"))
    for image in (raw / "imagesTr").iterdir():
        image.write_bytes(image.read_bytes()[:100])
    next((raw / "labelsTr").iterdir()).unlink()
    file = write_report(Workspace.find(moved), ReportOptions(dataset=NAME))
    assert "data:image/png" not in file.read_text()
    assert "worst: tiny_" in " ".join(outline(file).words)


def test_planes_are_named_by_the_patient_and_not_by_the_array() -> None:
    """A volume that was stored in sagittal slices, and one in axial ones."""
    sagittal = Geometry(shape=(2, 2, 2), spacing_mm=(1.0, 1.0, 1.0), direction=(0, 0, 1, 1, 0, 0, 0, -1, 0))
    axial = Geometry(shape=(2, 2, 2), spacing_mm=(1.0, 1.0, 1.0))
    assert [plane_name(axial, axis) for axis in range(3)] == ["axial", "coronal", "sagittal"]
    assert [plane_name(sagittal, axis) for axis in range(3)] == ["sagittal", "axial", "coronal"]


def test_names_from_files_are_escaped(trained: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(trained, hostile)
    summary = hostile / "results" / NAME / "2d_unet__samunetPlans" / "fold_0" / "validation" / "summary.json"
    content = json.loads(summary.read_text())
    content["metric_per_case"][0]["case"] = "<script>alert(1)</script>"
    summary.write_text(json.dumps(content))
    file = write_report(Workspace.find(hostile), ReportOptions(dataset=NAME, pictures=False))
    assert "<script>alert" not in file.read_text()
    assert "&lt;script&gt;alert" in file.read_text()


def test_nothing_trained_is_one_message(tiny_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["901", "--workspace", str(tiny_copy)]) == 2
    assert "samunet_train" in capsys.readouterr().err


def test_scores_of_other_classes_are_refused(trained: Path) -> None:
    folder = trained / "results" / NAME / "2d_unet__samunetPlans" / "fold_0" / "validation"
    with pytest.raises(SamunetError, match="but the dataset has liver"):
        scored_cases(folder / "summary.json", "0", LabelSet(labels={"background": (0,), "liver": (1,)}))


def scored(name: str, dice: float) -> ScoredCase:
    metrics = {"organ": {"Dice": dice, "SurfaceDice": dice, "HD95": 1.0, "ASSD": 1.0, "n_ref": 9.0}}
    file = Path(name)
    return ScoredCase(
        name=name,
        fold="0",
        group=None,
        patient=None,
        metrics=metrics,
        reference_file=file,
        prediction_file=file,
    )


def test_extremes_are_worst_median_best() -> None:
    cases = [scored("a", 0.7), scored("b", 0.2), scored("c", math.nan), scored("d", 0.9)]
    assert [(rank, case.name) for rank, case in extremes(cases)] == [
        ("worst", "b"),
        ("median", "a"),
        ("best", "d"),
    ]
    assert [rank for rank, _ in extremes(cases[:1])] == ["best"]
    assert extremes(cases[2:3]) == []


def test_planes_of_thin_volumes_stay_legible() -> None:
    widths, height = panel_sizes([0.8, 1.0, 1.2])  # a cube or nearly: one height
    assert [width / ratio for width, ratio in zip(widths, [0.8, 1.0, 1.2])] == pytest.approx([height] * 3)
    assert sum(widths) == pytest.approx(6.9)
    widths, height = panel_sizes([0.85, 4.4, 4.0])  # ten thick slices
    assert widths[0] / 0.85 == height
    assert widths[0] > 0.2 * sum(widths)
    assert panel_sizes([0.5]) == ([2.25], 4.5)  # a high picture alone


def test_an_undefined_interval_is_left_out() -> None:
    assert with_interval(0.5, Interval(0.5, 0.4, 0.61, 6)) == Cell(text="0.500", interval="[0.400, 0.610]")
    assert with_interval(0.5, Interval(0.5, 0.4, 0.61, 5)).interval == "[0.400, 0.610] n = 5"
    assert with_interval(0.5, Interval(0.5, math.nan, math.nan, 1)).interval == "n = 1"
    assert with_interval(math.nan, Interval(math.nan, math.nan, math.nan)) == Cell(text="–")
    assert with_interval(math.nan, None).text == "–"


def test_volumes_of_planes_do_not_take_their_nominal_thickness() -> None:
    cases = tuple(
        replace(case, is_2d=True, spacing_mm=(FLAT_SPACING_MM, 2.0, 0.5), class_voxels={"organ": 3000})
        for case in FINGERPRINT.cases
    )
    labels = LabelSet(labels={"background": (0,), "organ": (1,)})
    table = data_table(replace(FINGERPRINT, cases=cases, labels=labels))
    assert ("organ, ml", "3", "3", "3") in table.rows


def note(made: MadeUp, **options: Any) -> str:
    """What the page says, without pictures."""
    asked = ReportOptions(dataset=DATASET, pictures=False, output=made.root / "r.html", **options)
    return " ".join(" ".join(outline(write_report(made.workspace, asked)).words).split())


@pytest.mark.parametrize("kind", ["patient", "group"])
def test_patients_on_both_sides_of_a_fold_are_named(tmp_path: Path, kind: str) -> None:
    made = MadeUp(root=tmp_path, **{f"{kind}s": {f"case_{i:02d}": f"p{i // 2}" for i in range(20)}})
    made.add("2d_unet", missing(0.3))
    told = f"of the cases are of {kind}s with other cases in the training of the fold"
    assert told in note(made)
    assert (told in note(made, ignore_groups=True)) == (kind == "patient")
    apart = MadeUp(root=tmp_path / "apart", patients={f"case_{i:02d}": f"p{i}" for i in range(20)})
    apart.add("2d_unet", missing(0.3))
    assert "in the training of the fold" not in note(apart)


def test_folds_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    """One trained with other settings, one predicted in another way: the selection refuses to mix them."""
    made = MadeUp(root=tmp_path, num_cases=10)
    model = made.add("2d_unet", missing(0.3))
    assert "different" not in note(made)
    run = model / "fold_4" / "run.json"
    run.write_text(json.dumps({**json.loads(run.read_text()), "configuration_hash": "other"}))
    told = note(made)
    assert "in the means: folds 0 1 2 3 and fold 4 were trained on different plans" in told
    assert "predicted in different ways" not in told
    write_predicted(model / "fold_1" / "validation", mirroring=False, checkpoint="checkpoint_best.pth")
    assert "fold 1: checkpoint_best.pth, step 0.5, no mirroring), which the means mix" in note(made)
    made.add("2d_cnn", missing(0.3))
    assert "2d_unet: The cases were predicted in different ways" in note(made)


def in_plan(model: Path, plans: str = "samunetPlans") -> None:
    """The model as one of this plan."""
    method, _, *tags = model.name.split("__")
    moved = model.rename(model.with_name("__".join([method, plans, *tags])))
    plan = json.loads((moved / "plan.json").read_text())
    (moved / "plan.json").write_text(json.dumps({**plan, "name": plans}))


def test_a_plan_and_a_tag_of_one_name_are_two_models(tmp_path: Path) -> None:
    made = MadeUp(root=tmp_path, num_cases=10)
    in_plan(made.add("2d_unet", missing(0.1)), "big")
    in_plan(made.add("2d_unet__big", missing(0.5)))
    models = collect_models(made.workspace, DATASET)
    assert [model.title for model in models] == ["2d_unet (plan big)", "2d_unet (big)"]
    assert [model.tag for model in models] == [None, "big"]


def test_the_verdict_is_of_the_plan_whose_models_were_compared(tmp_path: Path) -> None:
    """However well a single fold of another plan does."""
    made = MadeUp(root=tmp_path, num_cases=10)
    in_plan(made.add("2d_unet", missing(0.0, 0.0), folds=(0,)), "big")
    assert "Nothing has been compared yet. Run samunet_find_best_configuration 950 -p big" in note(made)
    for name, share in (("2d_unet", 0.3), ("2d_cnn", 0.4)):
        in_plan(made.add(name, missing(share)))
    wanted = ModelsWanted(dataset=DATASET)
    find_best(made.workspace, SelectionOptions(wanted=wanted, ensembles=False, postprocessing=False))
    told = note(made)
    assert "Recommended:" in told
    assert "This is of the plan samunetPlans alone; models of other plans are scored too" in told
    assert "samunet_report 950 -p big" in told
    assert "Nothing has been compared yet" in note(made, plans="big")
