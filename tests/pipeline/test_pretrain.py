"""`samunet_pretrain` from the command line to a file that the framework takes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import SHORT
from filelock import FileLock
from PIL import Image

from samunet.cli import plan_and_preprocess, train
from samunet.cli.pretrain import main, parse_tasks
from samunet.data.dataset import RawDataset
from samunet.errors import SamunetError
from samunet.inference.predictor import Predictor
from samunet.networks.sam.adapters import has_adapters, is_adapter_key
from samunet.networks.sam.encoder import SamImageEncoder
from samunet.networks.sam.variants import get_variant
from samunet.networks.sam.weight_files import find_weights, weights_sha256
from samunet.networks.sam.weights import build_parts, expected_shapes, read_weights
from samunet.networks.sam.weights_card import read_card
from samunet.networks.sam.weights_writer import whole_state, write_weights
from samunet.pipeline.pretrain.run import PretrainOptions, find_cuttings, with_settings
from samunet.planning.plan import Plan
from samunet.records import content_hash, to_data
from samunet.trainers.pretrain_run import load_checkpoint
from samunet.trainers.pretraining import PretrainSettings
from samunet.trainers.schedule import Timing
from samunet.workspace import FINAL, LATEST, Workspace

QUICK = ["-encoder", "vit_micro", "--steps", "2", "--batch", "2", "--set", "val_batches=1", "-np", "1"]
QUICK += ["-device", "cpu"]


def command(root: Path, *words: str) -> int:
    return main([*words, "--workspace", str(root)])


@pytest.fixture
def exclusions(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.json"
    entry = {"Dataset901_Tiny3D": {"rule": "two", "held_out": ["tiny_000", "tiny_004"]}}
    path.write_text(json.dumps({"seed": 1, "datasets": entry}))
    return path


def test_from_all_sources_to_weights_that_are_read_strictly(tiny_copy: Path, exclusions: Path) -> None:
    sources = ["--synthetic", "-d", "901", "--exclude", str(exclusions)]
    sources += ["--images", str(tiny_copy / "raw" / "Dataset902_TinyRGB" / "imagesTr")]
    assert command(tiny_copy, *sources, *QUICK, "--tasks", "prompt,mae=0.5", "--fp16", "-o", "mine") == 0
    file = tiny_copy / "weights" / "mine.pth"
    weights = read_weights(file, "vit_micro")
    run = tiny_copy / "results" / "pretraining" / "mine"
    trained = load_checkpoint(run / "checkpoint_final.pth").network
    encoder = SamImageEncoder(get_variant("vit_micro"))
    encoder.load_tables(weights.image_encoder)
    again = SamImageEncoder(get_variant("vit_micro"))
    prefix = "sam.image_encoder."
    again.load_state_dict({k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)})
    picture = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder(picture), again(picture))
    card = read_card(file)
    assert card is not None
    half = file.with_name("mine_fp16") / "mine_encoder.safetensors"
    told = json.loads((run / "pretraining.json").read_text())
    known = to_data(card)
    assert told == {key: known[key] for key in known if key not in ("sha256", "seconds", "validation")}
    assert read_weights(half, "vit_micro").count == weights.count
    assert read_card(half) is not None
    assert card.objectives == {"prompt": 1.0, "mae": 0.5}
    assert card.excluded["Dataset901_Tiny3D"] == 2
    assert sum(source.share for source in card.sources) == pytest.approx(1)
    assert card.steps == 2
    index = json.loads((run / "slices" / "Dataset901_Tiny3D" / "index.json").read_text())
    assert not {"tiny_000", "tiny_004"} & {case["name"] for case in index["cases"]}


def excluding(tmp_path: Path, *names: str) -> list[str]:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"Dataset902_TinyRGB": names}))
    return ["-d", "902", "--exclude", str(path)]


def as_before_names(checkpoint: Path) -> None:
    """What a checkpoint was before case names belonged to it."""
    content = torch.load(checkpoint, weights_only=True)
    data = content.pop("data")
    for entry in data:
        del entry["case_names_hash"], entry["excluded_names"]
    settings = to_data(with_settings(PretrainSettings(), {"encoder": "vit_micro", "steps": 2, **MAE}))
    content["identity"] = content_hash({"settings": settings, "data": data, "teacher": None})
    torch.save(content, checkpoint)


MAE = {"tasks": ["mae"], "weights": [1.0], "batch_size": 2, "val_batches": 1}


@pytest.mark.parametrize("old", [False, True])
def test_a_run_is_continued_on_the_same_cases_only(
    tiny_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: bool
) -> None:
    names = RawDataset.load(tiny_copy / "raw" / "Dataset902_TinyRGB").case_names
    words = [*QUICK, "--tasks", "mae", "-o", "mine"]
    assert command(tiny_copy, *excluding(tmp_path, names[0]), *words) == 0
    run, card_path = tiny_copy / "results/pretraining/mine", tiny_copy / "weights/mine_card.json"
    card = read_card(tiny_copy / "weights" / "mine.pth")
    assert card is not None
    assert card.sources[0].excluded_names == (names[0],)
    assert card.sources[0].case_names_hash == content_hash(sorted(names[1:]))
    if old:
        as_before_names(run / "checkpoint_latest.pth")
    slices = run / "slices" / "Dataset902_TinyRGB"
    before = {file: file.read_bytes() for file in [*slices.iterdir(), card_path]}
    capsys.readouterr()
    assert command(tiny_copy, *excluding(tmp_path, names[1]), *words, "--c") == 2
    told = capsys.readouterr().err
    assert f"{names[0]} would be seen and was not, {names[1]} was seen and would not be" in told
    assert "Traceback" not in told
    images = ["--images", str(tiny_copy / "raw" / "Dataset902_TinyRGB" / "imagesTr")]
    assert command(tiny_copy, *excluding(tmp_path, names[0]), *images, *words, "--c") == 2
    assert "was no source of it" in capsys.readouterr().err
    assert not (run / "slices" / "images_0").exists()
    assert before == {file: file.read_bytes() for file in before}
    assert command(tiny_copy, *excluding(tmp_path, names[0]), *words, "--c") == 0


def test_slices_that_are_gone_are_cut_again_from_the_same_cases(tiny_copy: Path, tmp_path: Path) -> None:
    names = RawDataset.load(tiny_copy / "raw" / "Dataset902_TinyRGB").case_names
    words = [*QUICK, "--tasks", "mae", "-o", "mine"]
    assert command(tiny_copy, *excluding(tmp_path, names[0]), *words) == 0
    shutil.rmtree(tiny_copy / "results/pretraining/mine/slices")
    assert command(tiny_copy, *excluding(tmp_path, names[1]), *words, "--c") == 2
    assert command(tiny_copy, *excluding(tmp_path, names[0]), *words, "--c") == 0


def test_the_same_command_gives_the_same_weights_and_is_not_repeated_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert command(tmp_path, "--synthetic", *QUICK, "-o", name) == 0
    files = [tmp_path / "weights" / f"{name}.pth" for name in ("one", "two")]
    states = [torch.load(file, weights_only=True) for file in files]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert command(tmp_path, "--synthetic", *QUICK, "-o", "one") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert command(tmp_path, "--synthetic", *QUICK, "-o", "one", "--c") == 0
    before = sorted((tmp_path / "results" / "pretraining" / "one").rglob("*"))
    assert before
    assert command(tmp_path, "--synthetic", *QUICK, "-o", "one", "--overwrite", "-device", "nowhere") == 2
    assert sorted((tmp_path / "results" / "pretraining" / "one").rglob("*")) == before
    assert command(tmp_path, "--synthetic", *QUICK, "-o", "one", "--overwrite") == 0
    foreign = tmp_path / "weights" / "sam_vit_b_01ec64.pth"
    foreign.write_bytes(b"official")
    assert command(tmp_path, "--synthetic", *QUICK, "-o", foreign.stem, "--overwrite") == 2
    assert foreign.read_bytes() == b"official"


def test_a_run_that_goes_on_keeps_its_time_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its length was decided at the start; the command that started it is repeated as it was."""
    quick = Timing(train_step=0.01, val_step=0.01)
    monkeypatch.setattr("samunet.trainers.pretrain_run.measure", lambda run, seconds: quick)
    words = ["--synthetic", *QUICK, "-o", "one"]
    assert command(tmp_path, *words, "--time_budget", "5") == 0
    for given in ([], ["--time_budget", "5"]):
        assert command(tmp_path, *words, "--c", *given) == 0
    capsys.readouterr()
    assert command(tmp_path, *words, "--c", "--time_budget", "6") == 2
    assert "begun with a time budget of 5 minutes" in capsys.readouterr().err
    checkpoint = tmp_path / "results/pretraining/one/checkpoint_latest.pth"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "time_budget_minutes": None}, checkpoint)
    assert command(tmp_path, *words, "--c", "--time_budget", "5") == 2
    assert "begun without a time budget" in capsys.readouterr().err


def test_an_end_between_the_first_two_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, run = ["--synthetic", *QUICK, "-o", "one"], tmp_path / "results" / "pretraining" / "one"
    assert command(tmp_path, *words) == 0
    for file in (run / LATEST, run / FINAL, tmp_path / "weights" / "one.pth"):
        file.unlink()
    assert command(tmp_path, *words) == 2
    assert "holds a pretraining already" in capsys.readouterr().err
    assert command(tmp_path, *words, "--c") == 0
    assert (tmp_path / "weights" / "one.pth").is_file()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-d", "999"],
        ["--images", "absent"],
        ["-d", "901", "--exclude", "absent.json"],
        ["--synthetic", "--set", "precision=fp16"],
    ],
)
def test_a_refused_overwrite_costs_nothing(tiny_copy: Path, words: list[str]) -> None:
    folder = tiny_copy / "results" / "pretraining" / "one"
    folder.mkdir(parents=True)
    for name in ("checkpoint_latest.pth", "checkpoint_final.pth", "history.jsonl"):
        (folder / name).write_text(name)
    assert command(tiny_copy, *words, *QUICK, "-o", "one", "--overwrite") == 2
    assert sorted(f.name for f in folder.iterdir()) == [
        "checkpoint_final.pth",
        "checkpoint_latest.pth",
        "history.jsonl",
    ]
    assert [f.name for f in folder.parent.iterdir()] == ["one"]


def test_a_pretraining_that_died_while_it_replaced_another_gives_it_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "results" / "pretraining" / "one"
    aside = folder.with_name(".one.replaced")
    aside.mkdir(parents=True)
    (aside / "checkpoint_latest.pth").write_text("older")
    (folder / "slices").mkdir(parents=True)
    assert command(tmp_path, "--synthetic", *QUICK, "-o", "one") == 2
    assert "holds a pretraining already" in capsys.readouterr().err
    assert (folder / "checkpoint_latest.pth").read_text() == "older"


def test_the_card_tells_the_whole_descent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--synthetic", *QUICK, "-o", "first") == 0
    first = tmp_path / "weights" / "first.pth"
    words = ["--synthetic", *QUICK, "--seed", "1", "-w", "first", "-o", "second"]
    assert command(tmp_path, *words) == 0
    assert (
        f"begins with the weights {first} (SHA-256 {weights_sha256(first)[:12]}...)"
        in capsys.readouterr().out
    )
    card = read_card(first.with_name("second.pth"))
    assert card is not None
    assert card.start is not None
    assert (card.start.sha256, card.start.card) == (weights_sha256(first), read_card(first))
    assert "Apache-2.0" in card.start.licence
    # The card is told, but is not what decides the numbers: the run is still known without it.
    first.with_name("first_card.json").unlink()
    assert command(tmp_path, *words, "--c") == 0


def test_weights_continued_in_place_keep_their_descent(tmp_path: Path) -> None:
    assert command(tmp_path, "--synthetic", *QUICK, "-o", "mine") == 0
    file = tmp_path / "weights" / "mine.pth"
    first = read_card(file)
    words = ["--synthetic", *QUICK, "--seed", "1", "-w", "mine", "-o", "mine", "--overwrite", "--fp16"]
    assert command(tmp_path, *words) == 0
    for made in (file, file.with_name("mine_fp16") / "mine_encoder.safetensors"):
        card = read_card(made)
        assert card is not None
        assert card.start is not None
        assert card.start.card == first
        assert "Apache-2.0" in card.start.licence


def test_only_names_with_the_encoder_are_found_without_being_named(tmp_path: Path) -> None:
    assert command(tmp_path, "--synthetic", *QUICK) == 0
    assert find_weights(tmp_path / "weights", "vit_micro") is None
    assert command(tmp_path, "--synthetic", *QUICK, "-o", "samunet_vit_micro") == 0
    assert find_weights(tmp_path / "weights", "vit_micro") == tmp_path / "weights" / "samunet_vit_micro.pth"


def test_a_teacher_is_learnt_from_and_named_in_the_card(tmp_path: Path) -> None:
    teacher = tmp_path / "weights" / "sam_of_somebody.pth"
    torch.manual_seed(1)
    write_weights(whole_state(build_parts(get_variant("vit_micro")), "vit_micro"), teacher)
    words = ["--synthetic", *QUICK, "-teacher", teacher.stem, "-o", "student"]
    assert command(tmp_path, *words) == 0
    card = read_card(tmp_path / "weights" / "student.pth")
    assert card is not None
    assert card.objectives == {"prompt": 1.0, "mae": 0.5, "teacher": 1.0}
    assert card.teacher is not None
    assert (card.teacher.name, card.teacher.sha256) == (teacher.name, weights_sha256(teacher))
    assert set(torch.load(tmp_path / "weights" / "student.pth", weights_only=True)) == set(
        expected_shapes("vit_micro")
    )
    run = tmp_path / "results" / "pretraining" / "student"
    names = load_checkpoint(run / "checkpoint_final.pth").network
    assert not [name for name in names if name.startswith("teacher")]
    # Another teacher under the same name is another pretraining.
    write_weights(whole_state(build_parts(get_variant("vit_micro")), "vit_micro"), teacher)
    assert command(tmp_path, *words, "--c") == 2


def test_samples_are_shown(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert command(tmp_path, "--synthetic", "-encoder", "vit_micro", "--show", "9", str(sheet)) == 0
    assert Image.open(sheet).size == (8 * 64, 2 * 2 * 64)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_showing_samples_leaves_the_slices_of_a_pretraining_alone(
    tiny_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = RawDataset.load(tiny_copy / "raw" / "Dataset902_TinyRGB").case_names
    words = [*QUICK, "--tasks", "mae", "-o", "mine"]
    show = ["--show", "2", str(tmp_path / "sheet.png")]
    run = tiny_copy / "results/pretraining/mine"
    for name in names[:2]:  # without a pretraining slices are nobody's
        assert command(tiny_copy, *excluding(tmp_path, name), *words, *show) == 0
    assert command(tiny_copy, *excluding(tmp_path, names[0]), *words) == 0
    before = files_of(run)
    assert command(tiny_copy, *excluding(tmp_path, names[1]), *words, *show) == 2
    assert "would replace its slices of Dataset902_TinyRGB" in capsys.readouterr().err
    assert command(tiny_copy, *excluding(tmp_path, names[0]), *words, *show) == 0
    assert files_of(run) == before
    with FileLock(run.with_name(".mine.lock")):  # while it is being trained
        assert command(tiny_copy, *excluding(tmp_path, names[0]), *words, *show) == 2
    assert "Another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to train on"),
        (["--synthetic", "--tasks", "prompt,maee"], "Did you mean mae"),
        (["--synthetic", "--tasks", "prompt=much"], "not a number"),
        (["--synthetic", "--set", "learning_rat=1"], "learning_rat"),
        (["--synthetic", "--set", "steps=5", "--steps", "6"], "repeats a flag"),
        (["--synthetic", "--set", "seed=-1"], "seed: -1 must be at least 0"),
        (["--synthetic", "-encoder", "vit_t"], "MobileSAM"),
        (["--synthetic", "--c"], "without --c"),
        (["--synthetic", "--c", "--overwrite"], "exclude each other"),
        (["--synthetic", "--show", "no", "x.png"], "--show"),
        (["--synthetic", "--synthetic_share", "2"], "synthetic_share"),
        (["-d", "901", "--synthetic_share", "0.3"], "no effect without --synthetic"),
        (["--synthetic", "-o", "a/b"], "name of the result"),
        (["--synthetic", "--tasks", "teacher"], "-teacher FILE"),
        (["--synthetic", "--tasks", "mae", "-teacher", "vit_b"], "add teacher=1"),
        (["--synthetic", "-teacher", "vit_b"], "no weights of vit_b"),
        (["--synthetic", "-teacher", "absent.pth"], "absent.pth"),
        (["--images", "absent"], "no folder absent"),
        (["-d", "999"], "999"),
        (["-d", "901", "--exclude", "absent.json"], "absent.json"),
    ],
)
def test_mistakes_get_a_message_and_exit_code_2(
    tiny_root: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert command(tiny_root, *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_prompts_need_labels(tiny_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tiny_copy / "raw" / "Dataset902_TinyRGB" / "imagesTr"
    never_drawn = ["--synthetic", "--synthetic_share", "0"]
    for more in ([], never_drawn):
        assert command(tiny_copy, "--images", str(images), "--tasks", "prompt", *QUICK, *more) == 2
        assert "no source has labels" in capsys.readouterr().err


def test_prompts_are_no_default_where_nothing_has_labels(
    tiny_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tiny_copy / "raw" / "Dataset902_TinyRGB" / "imagesTr"
    assert command(tiny_copy, "--images", str(images), *QUICK, "-o", "plain") == 0
    assert "the task is mae" in capsys.readouterr().out
    card = read_card(tiny_copy / "weights" / "plain.pth")
    assert card is not None
    assert card.objectives == {"mae": 1.0}


def test_a_dataset_needs_no_labels(tiny_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tiny_copy / "raw" / "Dataset902_TinyRGB" / "labelsTr")
    words = ["-d", "902", *QUICK, "-o", "plain"]
    assert command(tiny_copy, *words, "--tasks", "mae") == 0
    assert command(tiny_copy, *words, "--overwrite") == 2
    assert "no source has labels" in capsys.readouterr().err


def test_an_exclusion_file_of_another_form_is_refused(
    tiny_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.json"
    path.write_text('{"Dataset901_Tiny3D": "tiny_000"}')
    assert command(tiny_copy, "-d", "901", "--exclude", str(path), *QUICK) == 2
    assert "Dataset901_Tiny3D" in capsys.readouterr().err


def test_unknown_cases_are_not_excluded_in_silence(
    tiny_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.json"
    lists = {
        "Dataset901_Tiny3D": ["tiny_000", "tiny_9", "tiny_8"],
        "Dataset902_TinyRGB": ["no"],
        "Other": ["x"],
    }
    path.write_text(json.dumps(lists))
    words = ["--exclude", str(path), *QUICK, "--tasks", "mae"]
    assert command(tiny_copy, "-d", "901", "902", *words) == 2
    assert "Dataset901_Tiny3D has no tiny_8, tiny_9; Dataset902_TinyRGB has no no." in capsys.readouterr().err
    assert not (tiny_copy / "results" / "pretraining" / "pretrained" / "slices").exists()


def test_what_is_left_out_is_said(tiny_copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"Dataset901_Tiny3D": ["tiny_000"], "Dataset902_Tiny": ["x"]}))
    options = PretrainOptions(
        name="x", settings=PretrainSettings(), datasets=("901", "902"), exclude=path, images=()
    )
    with caplog.at_level("INFO"):
        find_cuttings(Workspace.find(tiny_copy, {}), options)
    assert "Dataset901_Tiny3D: 1 of 6 cases are left out" in caplog.text
    assert "has no entry for Dataset902_TinyRGB (it names Dataset901_Tiny3D Dataset902_Tiny)" in caplog.text
    caplog.clear()
    find_cuttings(Workspace.find(tiny_copy, {}), replace(options, datasets=()))
    assert "has no effect" in caplog.text


def test_tasks_are_read_with_their_weights() -> None:
    assert parse_tasks("prompt=1, mae=0.5") == (["prompt", "mae"], [1.0, 0.5])
    assert parse_tasks("shed") == (["shed"], [1.0])
    with pytest.raises(SamunetError):
        parse_tasks("mae=x")


def adapted(root: Path, *words: str, name: str = "adapted") -> int:
    base = ["-w", "base", "--adapters", "--set", "input_size=48", "--tasks", "mae"]
    return command(root, "--synthetic", *QUICK, *base, "-o", name, *words)


@pytest.fixture
def with_base(tiny_copy: Path) -> Path:
    """A workspace with whole weights of `vit_micro` in its weights folder, as base.pth."""
    torch.manual_seed(5)
    state = whole_state(build_parts(get_variant("vit_micro")), "vit_micro")
    (tiny_copy / "weights").mkdir(exist_ok=True)
    write_weights(state, tiny_copy / "weights" / "base.pth")
    return tiny_copy


def test_adapters_are_trained_on_weights_that_stay(with_base: Path) -> None:
    assert adapted(with_base) == 0
    file = with_base / "weights" / "adapted.pth"
    base, made = (read_weights(path, "vit_micro") for path in (file.with_name("base.pth"), file))
    assert made.adapted
    assert not base.adapted
    for part in ("image_encoder", "prompt_encoder", "mask_decoder"):
        kept = getattr(base, part)
        assert all(torch.equal(getattr(made, part)[key], value) for key, value in kept.items())
    own = {key: value for key, value in made.image_encoder.items() if is_adapter_key(key)}
    assert own
    assert all(bool(value.any()) for key, value in own.items() if key.endswith("up.weight"))
    card = read_card(file)
    assert card is not None
    assert card.start is not None
    assert (card.start.name, card.start.sha256) == ("base.pth", base.sha256)
    stored = load_checkpoint(with_base / "results/pretraining/adapted/checkpoint_final.pth").network
    encoder_keys = [key for key in stored if key.startswith("sam.image_encoder.")]
    assert encoder_keys
    assert all(map(is_adapter_key, encoder_keys))  # the base is not copied into every checkpoint

    # They serve where an encoder is taken: frozen, then from the checkpoint alone.
    words = ["901", "2d_linear", "0", *SHORT, "-encoder", "vit_micro", "-w", str(file)]
    where = ["--workspace", str(with_base)]
    assert plan_and_preprocess.main(["-d", "901", "-c", "2d", "-np", "1", *where]) == 0
    assert train.main([*words, *where]) == 0
    model = with_base / "results/Dataset901_Tiny3D/2d_linear__samunetPlans"
    network = Predictor.load(model, (0,), device="cpu").networks[0]
    assert has_adapters(network.encoder)
    assert network.settings.frozen  # also without --set, though the plan would train the encoder too
    loaded = dict(network.encoder.named_parameters())
    assert all(torch.equal(loaded[key], value) for key, value in own.items())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--adapters"], "name its weights with -w"),
        (["--set", "input_size=48"], "input_size goes with --adapters"),
        (["--adapters", "-w", "base", "--set", "input_size=50"], "must be a multiple of 16"),
        (["--adapters", "-w", "absent"], "There is no weights file absent"),
    ],
)
def test_adapters_that_cannot_be_trained(
    words: list[str], told: str, with_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(with_base, "--synthetic", *QUICK, *words, "-o", "adapted") == 2
    assert told in capsys.readouterr().err


def test_where_adapted_weights_do_not_go(with_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adapted(with_base) == 0
    file = with_base / "weights" / "adapted.pth"
    assert command(with_base, "--synthetic", *QUICK, "-w", str(file), "-o", "whole") == 2
    assert "add --adapters to train them further" in capsys.readouterr().err
    assert adapted(with_base, "-w", str(file), "--set", "adapter_width=3", name="wider") == 2
    assert "has adapters 8 channels wide" in capsys.readouterr().err
    state = torch.load(file, weights_only=True)
    gone = next(key for key in state if is_adapter_key(key))
    write_weights({key: value for key, value in state.items() if key != gone}, file.with_name("cut.pth"))
    with pytest.raises(SamunetError, match="1 missing"):
        read_weights(file.with_name("cut.pth"), "vit_micro")
    where = ["--workspace", str(with_base)]
    assert plan_and_preprocess.main(["-d", "901", "-c", "3d_adapter", "-np", "1", *where]) == 0
    volume = ["901", "3d_adapter", "0", *SHORT, "-encoder", "vit_micro", "-w", str(file), *where]
    assert train.main(volume) == 2
    assert "adapters for 2D slices" in capsys.readouterr().err


def test_a_plan_knows_adapted_weights(with_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adapted(with_base, name="samunet_vit_micro") == 0
    where = ["--workspace", str(with_base)]
    words = ["-d", "901", "-encoder", "vit_micro", "-np", "1", *where]
    assert plan_and_preprocess.main([*words, "-c", "2d_cnn"]) == 0
    assert "What is at hand of vit_micro is an encoder with adapters" in capsys.readouterr().out
    plan = Plan.load(with_base / "preprocessed/Dataset901_Tiny3D/samunetPlans.json")
    assert plan.weights["vit_micro"].adapted
    assert plan.configuration("2d_cnn").settings.get("encoder", "frozen") == "frozen"
    assert "3d_adapter" not in plan.configurations
    assert train.main(["901", "3d_adapter", "0", *SHORT, *where]) == 2
    assert "adapters for 2D slices; 3d_adapter brings its own" in capsys.readouterr().err
