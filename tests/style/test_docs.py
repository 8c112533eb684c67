"""The documentation is true: reference pages come from the code, links lead somewhere, commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ownstack.cli import COMMANDS

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
