"""Files that are no models of ours, or mean harm: one message each, and nothing is left behind."""

from __future__ import annotations

import json
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from shared_models import Change, changed_zip, write_model

from samunet.cli import install_model as command
from samunet.errors import SamunetError
from samunet.pipeline.model_file import archive
from samunet.pipeline.model_file.export import ExportRequest, export_model
from samunet.pipeline.model_file.install import InstallRequest, install_model
from samunet.workspace import Workspace

ELSEWHERE = {"variant": "vit_b", "file": "../sam.pth", "sha256": "0" * 64, "prefix": "encoder."}
HERE = {**ELSEWHERE, "file": "sam.pth"}
WEIGHTS = "fold_0/weights.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    model = write_model(root / "results", folds=(0,))
    return export_model(ExportRequest(model_folder=model, output=root / "good.zip")).file


def refused(file: Path, root: Path) -> str:
    """The message with which a file is refused; asserts that the disk is as it was."""
    target = root / "place/model"
    with pytest.raises(SamunetError) as caught:
        install_model(InstallRequest(file=file, folder=target, workspace=Workspace.find(root)))
    assert not target.parent.exists()
    assert not (root / "evil.txt").exists()
    told = str(caught.value)
    assert file.name in told
    assert "Traceback" not in told
    return told


def add(name: str, content: bytes = b"x") -> Change:
    return lambda files: files.update({name: content})


def edit(name: str, change: Callable[[dict], object]) -> Change:
    """Change a JSON file."""

    def act(files: dict[str, bytes]) -> None:
        data = json.loads(files[name])
        change(data)
        files[name] = json.dumps(data).encode()

    return act


def nested(depth: int) -> list:
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path("pickle_was_read").touch, ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add("../evil.txt"), "lead out of the folder"),
        (add("fold_0/../../evil.txt"), "lead out of the folder"),
        (add("/evil.txt"), "lead out of the folder"),
        (add("C:/evil.txt"), "lead out of the folder"),
        (add("fold_0\\..\\evil.txt"), "lead out of the folder"),
        (add("fold_0/checkpoint_final.pth", pickle.dumps(Bomb())), "pickles"),
        (add("fold_0/weights.PKL"), "pickles"),
        (add("run.py"), "no files of a shared model"),
        (add("fold_0/"), "no files of a shared model"),
        (add("fold_x/weights.safetensors"), "no files of a shared model"),
        (add("PLAN.json"), "no files of a shared model"),
        (add(WEIGHTS, pickle.dumps(Bomb())), "cannot be read as safetensors"),
        (add(WEIGHTS, b""), "cannot be read as safetensors"),
        (lambda files: files.pop("plan.json"), "lacks plan.json"),
        (lambda files: files.pop("model.json"), "lacks model.json"),
        (lambda files: files.pop(WEIGHTS), "do not go with its files"),
        (add("fold_1/fold.json", b"{}"), "do not go with its files"),
        (edit("plan.json", lambda plan: plan.pop("labels")), r"plan.json: $: missing keys ['labels']"),
        (edit("plan.json", lambda plan: plan.update(dataset="Dataset001_X")), "its plan is of Dataset001_X"),
        (edit("fold_0/fold.json", lambda fold: fold.update(extra=1)), "unknown keys ['extra']"),
        (edit("fold_0/fold.json", lambda fold: fold.update(fold=3)), "says that it is fold 3"),
        (
            edit("fold_0/fold.json", lambda fold: fold.update(base_weights=ELSEWHERE)),
            "not the name of a file",
        ),
        (edit("fold_0/fold.json", lambda fold: fold.update(method="2d_cnn")), "different methods"),
        (
            edit("fold_0/fold.json", lambda fold: fold.update(base_weights={**HERE, "variant": "x\x1b[2J"})),
            "fold_0/fold.json holds control characters",
        ),
        (
            edit("fold_0/fold.json", lambda fold: fold.update(configuration="2d\x1b[2J")),
            "fold_0/fold.json holds control characters",
        ),
        (edit("plan.json", lambda plan: plan.update({"\x1b[2J": 1})), "plan.json holds control characters"),
        (edit("dataset.json", lambda data: data.update(description="\x9b2J")), "holds control characters"),
        (add("MODEL_CARD.md", b"# Model\n\x1b]0;title\x07"), "MODEL_CARD.md holds control characters"),
        (add("MODEL_CARD.md", b"\xff"), "MODEL_CARD.md is no text"),
        (add("plan.json", b"[" * 200_000), "plan.json is not valid JSON"),
        (edit("dataset.json", lambda data: data.update(x=nested(200))), "nested more than"),
        (edit("plan.json", lambda plan: plan.update(num_training=10**30)), "num_training"),
    ],
)
def test_a_changed_zip(good: Path, tmp_path: Path, change: Change, words: str) -> None:
    file = changed_zip(good, tmp_path / "bad.zip", change, relist="model.json" not in words)
    assert words in refused(file, tmp_path)
    assert not Path("pickle_was_read").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.update(format=2), "format 2"),
        (lambda model: model.update(more=1), "unknown keys ['more']"),
        (lambda model: model.update(method="os"), "'os' is not part of samunet"),
        (lambda model: model.update(method="examples.small_fcn"), "is not part of samunet"),
        (lambda model: model.update(dataset="../../evil"), "no plain names"),
        (lambda model: model.update(plans="a/b"), "no plain names"),
        (lambda model: model.update(tag=".."), "no plain names"),
        (lambda model: model.update(licence="free\x1b[2J"), "control characters"),
        (lambda model: model.update(licence="free \u202egnp.exe"), "control characters"),
        (lambda model: model.update(dataset="Dataset101_\ud800x"), "control characters"),
        (lambda model: model.update(folds=[]), "do not go with its files"),
        (lambda model: model["files"].update({"x": {"sha256": "0", "bytes": 0}}), "listed but not there"),
        (lambda model: model["files"].pop("plan.json"), "there but not listed"),
        (lambda model: model["files"][WEIGHTS].update(sha256="0" * 64), "is not the file that model.json"),
        (lambda model: model["files"][WEIGHTS].update(bytes=1), "bytes, not the 1 that are listed"),
        (lambda model: model["files"][WEIGHTS].update(bytes=10**400), f"{WEIGHTS}.bytes"),
        (lambda model: model.update(plans="\x1b[2J"), "control characters"),
        (lambda model: model.update({"\x1b[2J": 1}), "control characters"),
        (lambda model: model.update(folds=nested(200)), "nested more than"),
    ],
)
def test_a_changed_record(good: Path, tmp_path: Path, change: Callable[[dict], object], words: str) -> None:
    file = changed_zip(good, tmp_path / "bad.zip", edit("model.json", change), relist=False)
    assert words in refused(file, tmp_path)


def test_a_number_that_python_does_not_read(good: Path, tmp_path: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        files["model.json"] = b'{"format": ' + b"1" * 5000 + b"}"

    file = changed_zip(good, tmp_path / "bad.zip", change, relist=False)
    assert "model.json is not valid JSON" in refused(file, tmp_path)


def test_a_name_that_is_no_text_and_a_place_that_is_none(good: Path, tmp_path: Path) -> None:
    file = changed_zip(good, tmp_path / "name.zip", add("ü.json"))
    file.write_bytes(file.read_bytes().replace("ü".encode(), b"\xff\xff"))
    assert "cannot be read as a zip" in refused(file, tmp_path)
    content = bytearray(good.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    content[end + 18] ^= 0x80  # of the directory's offset, by which all others are corrected
    file = tmp_path / "place.zip"
    file.write_bytes(bytes(content))
    assert "cannot be read as a zip" in refused(file, tmp_path)


def test_more_files_than_any_model_has(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_FILES", 5)
    assert "files are more than any model has" in refused(good, tmp_path)


def test_one_changed_byte(good: Path, tmp_path: Path) -> None:
    def flip(files: dict[str, bytes]) -> None:
        content = bytearray(files[WEIGHTS])
        content[-1] ^= 1
        files[WEIGHTS] = bytes(content)

    file = changed_zip(good, tmp_path / "bad.zip", flip, relist=False)
    assert f"{WEIGHTS} is not the file that model.json lists" in refused(file, tmp_path)


def test_links_doubles_and_passwords(good: Path, tmp_path: Path) -> None:
    def rewritten(name: str, info: zipfile.ZipInfo, content: bytes) -> Path:
        file = changed_zip(good, tmp_path / name, lambda files: files.pop("scores.json", None))
        with zipfile.ZipFile(file, "a") as writer:
            writer.writestr(info, content)
        return file

    link = zipfile.ZipInfo("scores.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "links or special files" in refused(rewritten("link.zip", link, b"/etc/passwd"), tmp_path)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = rewritten("twice.zip", zipfile.ZipInfo("plan.json"), b"{}")
    assert "are there twice" in refused(twice, tmp_path)
    locked = zipfile.ZipInfo("scores.json")
    file = rewritten("locked.zip", locked, b"{}")
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"scores.json"))
    content[entry + 8] |= 1
    file.write_bytes(bytes(content))
    assert "are encrypted" in refused(file, tmp_path)


def test_bombs(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = changed_zip(good, tmp_path / "zeros.zip", add(WEIGHTS, bytes(20_000_000)))
    monkeypatch.setattr(archive, "LARGEST_RATIO", 20)
    assert "would unpack to" in refused(zeros, tmp_path)
    monkeypatch.setattr(archive, "LARGEST_TEXT", 1000)
    assert "are text of more than" in refused(good, tmp_path)
    monkeypatch.setattr(archive, "LARGEST_TEXT", 10**9)
    monkeypatch.setattr(archive, "LARGEST_MODEL", 10_000)
    assert "would unpack to" in refused(good, tmp_path)


def test_what_is_no_zip(good: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.zip"
    cut.write_bytes(good.read_bytes()[:-2000])
    assert "cannot be read as a zip" in refused(cut, tmp_path)
    text = tmp_path / "text.zip"
    text.write_text("hello")
    assert "cannot be read as a zip" in refused(text, tmp_path)
    assert "There is no file" in refused(tmp_path / "none.zip", tmp_path)
    torn = bytearray(good.read_bytes())
    torn[torn.index(b"plan.json") + 60] ^= 0xFF
    file = tmp_path / "torn.zip"
    file.write_bytes(bytes(torn))
    assert "cannot be read as a zip" in refused(file, tmp_path)


def test_a_foreign_zip(tmp_path: Path) -> None:
    file = tmp_path / "photos.zip"
    with zipfile.ZipFile(file, "w") as writer:
        for number in range(9):
            writer.writestr(f"{number}.jpg", b"x")
    assert "9 of its entries are no files of a shared model: '0.jpg', '1.jpg'" in refused(file, tmp_path)


def test_the_command_has_one_message(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = changed_zip(good, tmp_path / "bad.zip", add("../evil.txt"))
    assert command.main([str(file)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("samunet_install_model: ")
    assert told.count("\n") == 1
    assert "'../evil.txt'" in told
    assert not (tmp_path / "samunet_workspace").exists()
