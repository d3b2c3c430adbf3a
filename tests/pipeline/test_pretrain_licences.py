"""Licences of a pretraining's images: declared in words, held against the sources, kept in the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samunet.cli.pretrain import main, parse_licences
from samunet.data.cases import Case
from samunet.errors import SamunetError
from samunet.networks.sam.weights_card import read_card
from samunet.pipeline.pretrain.licences import declared_licences
from samunet.preprocessing.slices import Cutting
from samunet.workspace import Workspace

QUICK = ["-encoder", "vit_micro", "--steps", "2", "--batch", "2", "--set", "val_batches=1", "-np", "1"]


def cutting(source: str, licence: str = "not declared (note: x)") -> Cutting:
    return Cutting(source=source, licence=licence, cases=(Case("a", ()),), load=lambda case: [])


def test_words_are_read() -> None:
    assert parse_licences(["4=MIT", "a=b/photos = CC-BY-4.0"]) == (("4", "MIT"), ("a=b/photos", "CC-BY-4.0"))
    assert parse_licences([]) == ()
    for word in ("4", "=MIT", "4="):
        with pytest.raises(SamunetError, match="write SOURCE=LICENCE"):
            parse_licences([word])


def test_a_source_is_meant_by_id_by_name_or_by_folder(tiny_root: Path) -> None:
    workspace = Workspace.find(tiny_root, {})
    cuttings = [cutting("Dataset901_Tiny3D"), cutting("Dataset902_TinyRGB"), cutting("some/photographs")]
    given = [("901", "MIT"), ("Dataset902_TinyRGB", "CC0-1.0"), ("some/photographs/", "CC-BY-4.0")]
    assert declared_licences(workspace, given, cuttings) == {
        "Dataset901_Tiny3D": "MIT (declared with --licence)",
        "Dataset902_TinyRGB": "CC0-1.0 (declared with --licence)",
        "some/photographs": "CC-BY-4.0 (declared with --licence)",
    }


@pytest.mark.parametrize("word", ["7", "902", "synthetic", "photographs"])
def test_what_is_no_source_is_refused_with_those_that_there_are(tiny_root: Path, word: str) -> None:
    workspace = Workspace.find(tiny_root, {})
    with pytest.raises(SamunetError, match=f"{word} is no source .* are Dataset901_Tiny3D; generated"):
        declared_licences(workspace, [(word, "MIT")], [cutting("Dataset901_Tiny3D")])
    with pytest.raises(SamunetError, match=r"none \(give -d or --images\)"):
        declared_licences(workspace, [(word, "MIT")], [])


def test_one_licence_a_source(tiny_root: Path) -> None:
    given = [("901", "MIT"), ("Dataset901_Tiny3D", "CC0-1.0")]
    with pytest.raises(SamunetError, match="names Dataset901_Tiny3D twice"):
        declared_licences(Workspace.find(tiny_root, {}), given, [cutting("Dataset901_Tiny3D")])


def test_what_dataset_json_says_is_not_replaced_in_silence(
    tiny_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Workspace.find(tiny_root, {})
    declared_licences(workspace, [("901", "MIT")], [cutting("Dataset901_Tiny3D", "MIT")])
    assert not caplog.text
    declared_licences(workspace, [("901", "MIT")], [cutting("Dataset901_Tiny3D", "CC BY 4.0")])
    assert "--licence MIT goes before CC BY 4.0 of its dataset.json" in caplog.text


def test_the_card_says_it_also_after_continuing(tiny_copy: Path) -> None:
    def run(*words: str) -> list[str]:
        where = ["-device", "cpu", "-o", "mine", "--workspace", str(tiny_copy)]
        assert main(["-d", "901", "902", "--tasks", "mae", *QUICK, *where, *words]) == 0
        card = read_card(tiny_copy / "weights" / "mine.pth")
        assert card is not None
        return [source.licence for source in card.sources]

    description = tiny_copy / "raw" / "Dataset902_TinyRGB" / "dataset.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "licence": "CC BY 4.0"}))
    assert run("--licence", "901=MIT") == ["MIT (declared with --licence)", "CC BY 4.0"]
    assert run("--c") == ["MIT (declared with --licence)", "CC BY 4.0"]
    assert run("--c", "--licence", "902=CC0-1.0") == [
        "MIT (declared with --licence)",
        "CC0-1.0 (declared with --licence)",
    ]
