"""The documentation is true: reference pages come from the code, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

from ownstack.cli import COMMANDS, cli, run
from ownstack.settings import load

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_reference_pages_are_what_the_code_says() -> None:
    command = [sys.executable, "-m", "tools.reference_docs", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"run tools/reference-docs\n{run.stdout}{run.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    for name in re.findall(r"(?:\./|`|^    |\n)ownstack ([a-z]+)", page.read_text()):
        assert name in COMMANDS, f"{page.name} names `ownstack {name}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_taken_as_they_are_written(page: Path) -> None:
    """Each with its words and options, up to what it would do."""
    for line in re.findall(r"(?m)(?:^ *|`)\./ownstack ([^`\n]+)", page.read_text()):
        words = shlex.split(line, comments=True)
        command: click.Command = cli
        context = click.Context(cli, info_name="ownstack", **cli.context_settings)
        while isinstance(command, click.Group):
            found = command.get_command(context, words.pop(0)) if words else None
            assert found, f"{page.name}: ./ownstack {line}"
            command = found
            if isinstance(command, click.Group) and (not words or words[0] not in command.list_commands(context)):
                break
        command.make_context("ownstack", words, parent=context).close()


def test_settings_of_the_pages_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `config set` is taken, every block of a settings file is read, every other key that is named exists."""
    monkeypatch.chdir(tmp_path)
    Path("ownstack.toml").touch()
    known = {key for key, _, _ in load({}, None, {}).flat()}
    texts = {page: page.read_text() for page in PAGES if "reference" not in page.parts}
    sets = [words for text in texts.values() for words in re.findall(r"ownstack config set (\S+) ([^`\s]+)", text)]
    assert len(sets) > 4
    for key, value in sets:
        assert run(["config", "set", key, value]) == 0, f"config set {key} {value}"
    blocks = [block for text in texts.values() for block in re.findall(r"(?m)^    \[.+\]\n(?:^    .+\n)+", text)]
    assert len(blocks) > 1
    for block in blocks:
        file = tmp_path / "box.toml"
        file.write_text(textwrap.dedent(block))
        load({}, str(file), {})
    tables = {key.partition(".")[0] for key in known if "." in key} - {"folders"}
    for page, text in texts.items():
        for table, name in re.findall(r"`([a-z_0-9]+)\.([a-z_0-9]+)(?: = [^`]*)?`", text):
            if table in tables:
                assert f"{table}.{name}" in known, f"{page.name} names the setting {table}.{name}"


def test_readme_has_the_two_commands_of_the_first_screen() -> None:
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:60])
    assert "./ownstack up --yes" in screen
    assert "./tests/run" in screen
    assert "WSL2" in screen


def test_the_guarantees_name_tests_that_exist() -> None:
    text = (ROOT / "docs/reference/guarantees.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    assert len(rows) > 15
    for row in rows:
        named = NAMED.findall(row)
        assert named, f"no test shows: {row.split('|')[1]}"
        assert row.count("::") == len(named), f"a name that is none: {row}"
        for file, name in named:
            path = ROOT / file
            assert path.is_file(), f"{file} is named and not there"
            assert f"\ndef {name}(" in path.read_text(), f"{file} has no {name}"
            told = f"`{file}::{name}` (part of `tests/run --full`)" in row
            assert told == is_slow(path.read_text(), name), f"{name}: whether CI runs it is told wrongly"


def is_slow(text: str, name: str) -> bool:
    """Whether only `tests/run --full` runs a test of a module."""
    marks = text[: text.index(f"\ndef {name}(") + 1].rsplit("\n\n\n", 1)[-1]
    return "\npytestmark = pytest.mark.slow" in text or "@pytest.mark.slow" in marks


def test_a_mark_counts_for_its_own_test_alone() -> None:
    text = "import pytest\n\n\n@pytest.mark.slow\ndef test_long() -> None: ...\n\n\ndef test_short() -> None: ...\n"
    assert is_slow(text, "test_long")
    assert not is_slow(text, "test_short"), "the mark is that of the one before"
