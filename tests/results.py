"""Result pages of the full matrices: `docs/reference/results/<name>.md`, written by the slow tests that fill them.

A matrix collects a row a case and writes its page at the end, also when some of its cases failed: the page says so.
The pages are committed; each names the commit that was tested.
"""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/reference/results"


@dataclass
class Matrix:
    """Rows of one page. `title` and `about` head it; `columns` name the cells of each row."""

    name: str
    title: str
    about: str
    columns: Sequence[str]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(tuple(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells))

    def page(self, commit: str) -> str:
        today = datetime.datetime.now(datetime.UTC).date()
        lines = [
            f"# {self.title}", "", f"<!-- Written by `tests/run --full`: {self.name}. -->", "", self.about, "",
            f"Measured on {today} at commit {commit}: {len(self.rows)} cases.", "",
            "| " + " | ".join(self.columns) + " |", "|" + " --- |" * len(self.columns),
            *("| " + " | ".join(row) + " |" for row in self.rows),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def write(self) -> Path:
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{self.name}.md"
        path.write_text(self.page(commit()))
        return path


def commit() -> str:
    """The commit at hand, and whether the tree differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    # result pages that an earlier matrix wrote are no change of what is tested
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!docs/reference/results")
    return git("rev-parse", "--short=10", "HEAD") + (" with uncommitted changes" if changed else "")


@contextmanager
def matrix(name: str, title: str, about: str, columns: Sequence[str]) -> Iterator[Matrix]:
    """A matrix whose page is written at the end, whatever became of the cases."""
    made = Matrix(name, title, about, columns)
    try:
        yield made
    finally:
        if made.rows:
            made.write()
