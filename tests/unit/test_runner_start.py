"""The zipapp of the runner keeps what Python compiled of it, and never trusts that more than itself."""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from ownstack.engine.zipapp import runner_zipapp
from ownstack.runner import start


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "runner.pyz"
    path.write_bytes(runner_zipapp())
    return path


def missing(archive: Path) -> list[str]:
    """A step that imports little; its answer."""
    words = ["box.missing", "--json", '{"paths": ["/", "/not/there"]}']
    done = subprocess.run([sys.executable, "-I", str(archive), *words], capture_output=True, text=True, check=True)
    answer: list[str] = json.loads(done.stdout)["data"]["missing"]
    return answer


def beside(archive: Path) -> Path:
    return Path(start.beside(str(archive)))


def test_what_was_compiled_is_kept_beside_it(archive: Path) -> None:
    assert missing(archive) == ["/not/there"]
    made = beside(archive)
    assert sorted(archive.parent.iterdir()) == [archive, made]
    assert made.stat().st_mode & 0o777 == 0o644
    before = made.stat().st_mtime_ns
    assert missing(archive) == ["/not/there"]
    assert made.stat().st_mtime_ns == before


def test_it_is_what_runs(archive: Path) -> None:
    missing(archive)
    codes = start.kept(str(archive))
    assert {"ownstack_runner", "ownstack_runner.__main__", "ownstack_runner.box"} <= set(codes)
    source = "import json\ndef main(words):\n    print(json.dumps({'data': {'missing': 'mine'}}))\n"
    codes["ownstack_runner.__main__"] = marshal.dumps(compile(source, "mine", "exec"))
    write(archive, marshal.dumps(codes))
    assert missing(archive) == "mine"  # type: ignore[comparison-overlap]


def write(archive: Path, body: bytes) -> None:
    data = start.made_of(str(archive)) + zlib.crc32(body).to_bytes(4, "big") + body
    beside(archive).write_bytes(data)


@pytest.mark.parametrize("at", [0, 40, -1])
def test_what_is_damaged_does_not_count_and_is_made_anew(archive: Path, at: int) -> None:
    missing(archive)
    good = beside(archive).read_bytes()
    bad = bytearray(good)
    bad[at] ^= 1
    beside(archive).write_bytes(bad)
    assert start.kept(str(archive)) == {}
    assert missing(archive) == ["/not/there"]
    assert start.kept(str(archive))


@pytest.mark.parametrize("data", [b"", b"x" * 7])
def test_what_is_cut_short_does_not_count(archive: Path, data: bytes) -> None:
    beside(archive).write_bytes(data)
    assert start.kept(str(archive)) == {}


def test_another_archive_in_its_place_is_compiled_anew(archive: Path) -> None:
    missing(archive)
    os.utime(archive, ns=(1, 1))
    assert start.kept(str(archive)) == {}
    assert missing(archive) == ["/not/there"]
    assert start.kept(str(archive))


def test_who_may_not_write_there_leaves_nothing(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert start.keep(str(archive)) == {}
    assert list(archive.parent.iterdir()) == [archive]


def test_a_full_disk_leaves_no_part(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "ownstack_runner.box" in start.keep(str(archive))
    assert list(archive.parent.iterdir()) == [archive]
