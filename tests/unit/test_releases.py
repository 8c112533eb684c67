"""Releases: complete under their final name or not there at all, and switched in one step."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import artifacts
from ownstack.runner.core import Event, StepError

ROOT = Path(__file__).parents[2]


def silent(event: Event) -> None:
    """Nobody listens."""


def archive(path: Path, files: int = 3, text: str = "content") -> dict[str, Any]:
    """A part of a release: an archive at `path` and how it is unpacked."""
    with tarfile.open(path, "w:gz") as tar:
        for index in range(files):
            info = tarfile.TarInfo(f"bin/program{index}")
            info.mode, info.size = 0o755, len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return {
        "path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "unpack": {"format": "tar.gz"}
    }  # fmt: skip


def spec(tmp_path: Path, version: str, *parts: dict[str, Any]) -> dict[str, Any]:
    base = tmp_path / "opt/thing"
    return {
        "name": "thing", "version": version, "release": str(base / "releases" / version),
        "current": str(base / "current"), "work": str(tmp_path / "work"), "parts": list(parts),
    }  # fmt: skip


def tree(tmp_path: Path) -> set[str]:
    return {str(p.relative_to(tmp_path / "opt")) for p in (tmp_path / "opt").rglob("*")}


def test_a_release_is_made_once_and_its_mark_says_what_it_is(tmp_path: Path) -> None:
    wanted = spec(tmp_path, "1.0", archive(tmp_path / "a"))
    assert artifacts.release({**wanted, "dry": True}, silent) == {"changed": True, "data": {"needs_files": True}}
    assert not (tmp_path / "opt").exists()
    assert artifacts.release(wanted, silent)["changed"]
    assert os.readlink(tmp_path / "opt/thing/current") == "releases/1.0"
    assert (tmp_path / "opt/thing/current/bin/program0").read_text() == "content"
    assert not artifacts.release(wanted, silent)["changed"]
    assert artifacts.release({**wanted, "dry": True}, silent) == {"changed": False, "data": {"needs_files": False}}
    marks = artifacts.held({"opt": str(tmp_path / "opt")}, silent)["data"]
    assert [(mark["name"], mark["version"]) for mark in marks.values()] == [("thing", "1.0")]


def test_a_lost_link_needs_no_files_again(tmp_path: Path) -> None:
    wanted = spec(tmp_path, "1.0", archive(tmp_path / "a"))
    artifacts.release(wanted, silent)
    (tmp_path / "opt/thing/current").unlink()
    (tmp_path / "a").unlink()
    assert artifacts.release({**wanted, "dry": True}, silent) == {"changed": True, "data": {"needs_files": False}}
    assert artifacts.release(wanted, silent)["changed"]
    assert (tmp_path / "opt/thing/current/bin/program0").exists()


def test_a_release_without_its_mark_is_made_anew(tmp_path: Path) -> None:
    wanted = spec(tmp_path, "1.0", archive(tmp_path / "a"))
    artifacts.release(wanted, silent)
    release = Path(wanted["release"])
    (release / artifacts.MARK).unlink()
    (release / "stale").write_text("")
    assert artifacts.release(wanted, silent)["changed"]
    assert not (release / "stale").exists()


def test_other_parts_of_the_same_archive(tmp_path: Path) -> None:
    part = archive(tmp_path / "a")
    wanted = spec(tmp_path, "1.0", {**part, "unpack": {"format": "tar.gz", "include": ["bin/program0"]}})
    artifacts.release(wanted, silent)
    assert not (tmp_path / "opt/thing/current/bin/program1").exists()
    assert artifacts.release(spec(tmp_path, "1.0", part), silent)["changed"]
    assert (tmp_path / "opt/thing/current/bin/program1").exists()


def test_a_second_part_lies_over_the_first(tmp_path: Path) -> None:
    wanted = spec(tmp_path, "1.0", archive(tmp_path / "a"), archive(tmp_path / "b", files=1, text="over"))
    artifacts.release(wanted, silent)
    assert (tmp_path / "opt/thing/current/bin/program0").read_text() == "over"
    assert (tmp_path / "opt/thing/current/bin/program1").read_text() == "content"


@pytest.mark.parametrize("fault", ["hash", "unsafe", "damaged", "second-part", "missing"])
def test_a_failure_leaves_the_running_release_and_nothing_of_the_new_one(fault: str, tmp_path: Path) -> None:
    artifacts.release(spec(tmp_path, "1.0", archive(tmp_path / "a")), silent)
    before = tree(tmp_path)
    part = archive(tmp_path / "b", text="new")
    if fault == "hash":
        part["sha256"] = "0" * 64
    elif fault == "unsafe":
        with tarfile.open(tmp_path / "b", "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("../evil"))
    elif fault == "damaged":
        (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:60])
    if fault in ("unsafe", "damaged"):
        part["sha256"] = hashlib.sha256((tmp_path / "b").read_bytes()).hexdigest()
    parts = [part]
    if fault == "second-part":
        parts.append({**archive(tmp_path / "c"), "sha256": "0" * 64})
    if fault == "missing":
        parts = [{"url": "https://vendor.example/x", "sha256": "0" * 64, "unpack": {"format": "tar.gz"}}]
    wanted = {**spec(tmp_path, "2.0", *parts), "mirror": str(tmp_path / "mirror")}
    with pytest.raises(StepError):
        artifacts.release(wanted, silent)
    assert tree(tmp_path) == before
    assert os.readlink(tmp_path / "opt/thing/current") == "releases/1.0"


def test_killed_while_unpacking_nothing_bears_the_final_name(tmp_path: Path) -> None:
    part = archive(tmp_path / "big", files=4_000)
    wanted = spec(tmp_path, "1.0", part)
    code = (
        "import json, sys; from ownstack.runner import artifacts;"
        "artifacts.release(json.load(sys.stdin), lambda event: print(event, flush=True))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(wanted))
    process.stdin.close()
    assert "unpacking" in process.stdout.readline()
    deadline = time.monotonic() + 10
    releases = tmp_path / "opt/thing/releases"
    while not list(releases.glob(".1.0.*/bin/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    left = os.listdir(releases)
    assert left, "it was killed before it began"
    assert all(name.startswith(".1.0.") for name in left)
    assert not (tmp_path / "opt/thing/current").exists()
    assert artifacts.held({"opt": str(tmp_path / "opt")}, silent)["data"] == {}
    assert artifacts.release(wanted, silent)["changed"]
    assert os.listdir(releases) == ["1.0"]


def test_the_link_is_never_absent_while_it_is_switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two file operations of the switch, `current` names one of the two releases."""
    for version in ("1.0", "2.0"):
        (tmp_path / "releases" / version).mkdir(parents=True)
    current = tmp_path / "current"
    artifacts.switch(str(current), str(tmp_path / "releases/1.0"))
    seen = []
    real = {name: getattr(os, name) for name in ("symlink", "unlink", "replace", "rename")}
    for name, function in real.items():

        def watched(*given: Any, _function: Any = function) -> None:
            seen.append(os.readlink(current))
            _function(*given)
            seen.append(os.readlink(current))

        monkeypatch.setattr(os, name, watched)
    assert artifacts.switch(str(current), str(tmp_path / "releases/2.0"))
    monkeypatch.undo()
    assert seen[0] == "releases/1.0"
    assert seen[-1] == "releases/2.0"
    assert not artifacts.switch(str(current), str(tmp_path / "releases/2.0"))
    (tmp_path / "current.new").symlink_to("left-over")
    assert artifacts.switch(str(current), str(tmp_path / "releases/1.0"))


def test_no_space_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts, "unpack", full)
    with pytest.raises(StepError) as caught:
        artifacts.release(spec(tmp_path, "1.0", archive(tmp_path / "a")), silent)
    assert caught.value.code == "disk-full"
    assert os.listdir(tmp_path / "opt/thing/releases") == []


def test_remove_takes_what_is_there_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "gone/deep").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    paths = [str(tmp_path / name) for name in ("gone", "link", "never")]
    assert artifacts.remove({"paths": paths, "dry": True}, silent)["changed"]
    assert (tmp_path / "gone").exists()
    assert artifacts.remove({"paths": paths}, silent)["data"]["removed"] == paths[:2]
    assert os.listdir(tmp_path) == ["kept"]
    assert not artifacts.remove({"paths": paths}, silent)["changed"]
