"""Templates are compiled once, and what is kept of them never counts for another text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ownstack.engine import render


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(render, "kit_root", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/a.j2").write_text("one {{ x | json }}\n")
    render.environment.cache_clear()
    yield tmp_path
    render.environment.cache_clear()


def again() -> str:
    render.environment.cache_clear()
    return render.render("a.j2", x="y")


def test_it_is_compiled_once(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert again() == 'one "y"\n'
    assert len(list((kit / "cache/ownstack/templates").iterdir())) == 1
    monkeypatch.setattr("jinja2.Environment.compile", lambda *_, **__: pytest.fail("compiled once more"))
    assert again() == 'one "y"\n'


def test_another_text_or_other_options_are_compiled_anew(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again()
    (kit / "templates/a.j2").write_text("two {{ x }}\n")
    assert again() == "two y\n"
    monkeypatch.setitem(render.OPTIONS, "keep_trailing_newline", False)
    assert again() == "two y"


@pytest.mark.parametrize("data", [b"", b"j2", None])
def test_what_is_damaged_does_not_count(kit: Path, data: bytes | None) -> None:
    again()
    (kept,) = (kit / "cache/ownstack/templates").iterdir()
    kept.write_bytes(kept.read_bytes()[:25] if data is None else data)
    assert again() == 'one "y"\n'


def test_without_a_cache_it_works_too(kit: Path) -> None:
    (kit / "cache").write_text("no folder")
    assert again() == 'one "y"\n'
