"""What a person sees while a run goes on: bytes and rate of downloads, and one line a role at the end."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from ownstack.cli.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("ownstack.cli.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_downloads_tell_bytes_and_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as shown:
        shown({"event": "operation", "name": "Ollama: program"})
        shown({"event": "progress", "what": "ollama", "done": 100 * 2**20, "total": 2**30})
        clock[0] += 30
        shown({"event": "progress", "what": "ollama", "done": 400 * 2**20, "total": 2**30})
    said = capsys.readouterr().err
    assert "Ollama  ollama, 400 MiB of 1.0 GiB, 10 MiB/s" in said


def test_each_role_gets_one_line_with_its_time(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as shown:
        for name, seconds in (
            ("Base: folders", 1),
            ("Qdrant: program", 2),
            ("Base: record", 3),
            ("Qdrant: service", 4),
        ):
            shown({"event": "operation", "name": name})
            clock[0] += seconds
    lines = capsys.readouterr().err.splitlines()[-2:]
    assert [line.split() for line in lines] == [["Base", "done", "4.0", "s"], ["Qdrant", "done", "6.0", "s"]]


def test_the_role_that_failed_is_marked(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(RuntimeError), Progress() as shown:
        shown({"event": "operation", "name": "Base: folders"})
        shown({"event": "operation", "name": "Qdrant: program"})
        raise RuntimeError
    done, failed = capsys.readouterr().err.splitlines()[-2:]
    assert "done" in done
    assert "Qdrant" in failed
    assert "failed" in failed


def test_verbose_names_each_operation(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        with Progress(verbose=verbose) as shown:
            for name in ("Base: folders", "Qdrant: program", "Qdrant: service"):
                shown({"event": "operation", "name": name})
        said = capsys.readouterr().err
        assert all(f"  {name}\n" in said for name in ("Qdrant: program", "Qdrant: service")) == verbose


def test_json_keeps_the_line_clean(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True) as shown:
        shown({"event": "operation", "name": "Base: folders"})
        shown({"event": "progress", "what": "x", "done": 5})
    assert capsys.readouterr() == ("", "")
