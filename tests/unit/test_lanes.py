"""Lanes of one test run: what one has made the others take over, and it stays until they have ended."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.hosts.lanes import Lane

OTHER = """
import sys
from tests.hosts.lanes import Lane
lane = Lane()
print(lane.once("host", lambda: "made twice"), flush=True)
sys.stdin.read()
lane.finish()
"""


def test_the_maker_waits_for_those_that_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "one-run")
    lane = Lane()
    assert lane.once("host", lambda: "made once") == "made once"
    root = Path(__file__).parents[2]
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"},
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "made once\n"
    ending = threading.Thread(target=lane.finish)
    ending.start()
    ending.join(0.5)
    assert ending.is_alive(), "the other still uses it"
    other.communicate("")
    ending.join(10)
    assert not ending.is_alive()
    assert not lane.folder.exists()


def test_what_a_dead_run_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "alive")
    lane = Lane()
    left = lane.folder.with_name("shared-dead")
    left.mkdir()
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "next")
    following = Lane()
    assert not left.exists()
    assert lane.folder.exists()
    following.finish()
    lane.finish()
