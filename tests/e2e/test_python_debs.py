"""The relocated Python of Debian's packages: built for real, unpacked by the runner, and moved about."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ownstack.data import load_artifacts
from ownstack.engine.builds import python_debs
from ownstack.runner.unpack import unpack

PROBE = """
import bz2, ctypes, hashlib, json, lzma, sqlite3, ssl, sys, uuid, zlib
maps = [line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if ".so" in line]
print(json.dumps({"prefix": sys.prefix, "version": sys.version.split()[0], "libraries": maps}))
"""


def variant() -> dict[str, Any]:
    python = next(artifact for artifact in load_artifacts("base") if artifact["name"] == "python")
    wanted = f"linux-{os.uname().machine}"
    return dict(next(v for v in python["variant"] if v["kind"] == "build" and v["platform"] == wanted))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("apt-get") is None:
        pytest.skip("this machine has no apt to take Debian's packages with")
    work = tmp_path_factory.mktemp("python")
    row = variant()
    (work / "work").mkdir()
    python_debs.build(row, work / "work", work / "out.tar.gz", print)
    unpack(str(work / "out.tar.gz"), str(work / "first place"), row["unpack"])
    (work / "first place").rename(work / "last place")
    return work / "last place"


def test_it_runs_from_any_place_with_libraries_of_its_own(release: Path) -> None:
    said = subprocess.run(
        [f"{release}/bin/python3", "-I", "-c", PROBE], capture_output=True, text=True, check=True, env={}
    )
    found = json.loads(said.stdout)
    assert (found["prefix"], found["version"]) == (str(release), variant()["version"])
    ours = {Path(name).name for name in found["libraries"] if Path(name).parent == release / "lib"}
    assert {"libssl.so.3", "libcrypto.so.3", "libsqlite3.so.0", "libffi.so.8"} <= ours
    host = [name for name in found["libraries"] if not Path(name).is_relative_to(release)]
    assert {Path(name).name.split(".so")[0] for name in host} <= {"libc", "libm", "ld-linux-x86-64", "ld-linux-aarch64"}


def test_its_library_is_compiled_and_stays_so(release: Path) -> None:
    """Services may not write here; a copy with other times must still be taken as compiled."""
    said = subprocess.run(
        [f"{release}/bin/python3", "-v", "-I", "-c", "import ssl"], capture_output=True, text=True, check=True, env={}
    )
    assert "matches" in said.stderr
    assert not [line for line in said.stderr.splitlines() if line.startswith("# wrote")]
    compiled = release / "lib/python3.11/__pycache__/ssl.cpython-311.pyc"
    assert compiled.read_bytes()[4:8] == (1).to_bytes(4, "little")  # unchecked hash, PEP 552


def test_it_says_what_it_is_made_of(release: Path) -> None:
    note = json.loads((release / "build.json").read_text())
    assert {"python3.11", "libssl3", "libsqlite3-0"} <= {item["package"] for item in note["debian"]}
    assert all(len(item["sha256"]) == 64 for item in note["debian"])
    assert (release / "share/doc/libssl3/copyright").is_file()
    outside = [link for link in release.rglob("*") if link.is_symlink() and not link.resolve().is_relative_to(release)]
    assert outside == []
