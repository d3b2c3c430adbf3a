"""The pages do not lie: their links lead somewhere, and the commands they show parse."""

from __future__ import annotations

import dataclasses
import re
import shlex
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from samunet.data.labels import LabelSet
from samunet.planning.plan import (
    Budget,
    Configuration,
    DataConfiguration,
    Forecast,
    IntensityProperties,
    Plan,
    Verdict,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "documentation").rglob("*.md")]
SCRIPTS = [e for e in entry_points(group="console_scripts") if e.value.startswith("samunet.")]
COMMANDS = {script.name: script.value.split(":")[0] for script in SCRIPTS}
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
PLACEHOLDERS = {"MIN": "5", "MINUTES": "5", "N": "3", "FOLD": "0", "K": "1"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    assert not [target for target in targets if not (page.parent / target).exists()]


def shown_commands(text: str) -> list[list[str]]:
    """Command lines of the code blocks and of the code spans that have arguments."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [span.replace("\n", " ") for span in re.findall(r"`(samunet_\w+ [^`]+)`", outside)]
    found = []
    for line in lines:
        words = shlex.split(line.strip(), comments=True)
        is_synopsis = "[" in line or "..." in words
        if words and words[0] in COMMANDS and len(words) > 1 and not is_synopsis:
            found.append([PLACEHOLDERS.get(word, word) for word in words])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shown_commands_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in shown_commands(page.read_text(encoding="utf-8")):
        parser = import_module(COMMANDS[words[0]]).build_parser()
        try:
            parser.parse_args(words[1:])
        except SystemExit:
            told = capsys.readouterr().err
            pytest.fail(f"{page.name} shows a command that does not parse: {shlex.join(words)}\n{told}")


def test_examples_of_the_help_parse() -> None:
    for name, module in COMMANDS.items():
        examples = getattr(import_module(module), "EXAMPLES", "")
        for words in shown_commands(f"```\n{examples}\n```\n"):
            assert words[0] == name
            import_module(module).build_parser().parse_args(words[1:])


def test_the_readme_shows_commands() -> None:
    assert len(shown_commands((ROOT / "README.md").read_text(encoding="utf-8"))) >= 3


def test_every_key_of_the_plan_has_its_line() -> None:
    records = (
        Plan,
        Budget,
        DataConfiguration,
        Configuration,
        Forecast,
        Verdict,
        IntensityProperties,
        LabelSet,
    )
    page = (ROOT / "documentation/plan_file.md").read_text(encoding="utf-8")
    keys = {field.name for record in records for field in dataclasses.fields(record)}
    assert not sorted(key for key in keys if f"`{key}`" not in page)


def test_the_students_settings_have_their_lines() -> None:
    from samunet.planning.methods import MethodConfig
    from samunet.planning.methods.student import StudentConfig

    page = (ROOT / "documentation/methods/3d_student.md").read_text(encoding="utf-8")
    common = {field.name: field.default for field in dataclasses.fields(MethodConfig)}
    own = [f.name for f in dataclasses.fields(StudentConfig) if common.get(f.name, ...) != f.default]
    assert not [name for name in own if f"`{name}`" not in page]


def test_every_key_of_the_selection_has_its_line() -> None:
    from samunet.pipeline.selection import record

    page = (ROOT / "documentation/selection.md").read_text(encoding="utf-8")
    _, _, table = page.partition("## selection.json")
    records = (
        record.Selection,
        record.Asked,
        record.Member,
        record.Estimate,
        record.CandidateScore,
        record.Comparison,
        record.PriorVerdict,
        record.EnsembleGain,
    )
    keys = {field.name for one in records for field in dataclasses.fields(one)}
    assert not sorted(key for key in keys if f"`{key}`" not in table)
