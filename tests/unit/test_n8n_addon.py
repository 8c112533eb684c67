"""The build of n8n's database driver, without compiling: what it fetches, what it packs."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ownstack.data import load_data
from ownstack.engine.builds import sqlite3_addon, toolchain
from ownstack.errors import RunError
from ownstack.kit import kit_root
from ownstack.runner.unpack import unpack

ROLE = kit_root() / "roles" / "n8n"


def variant(name: str) -> dict[str, Any]:
    artifact = next(a for a in load_data(("n8n",), fit=False).artifacts["n8n"] if a["name"] == "sqlite3-addon")
    found: dict[str, Any] = next(v for v in artifact["variant"] if v["id"] == name)
    return found


def test_the_archive_is_the_same_each_time_and_unpacks_like_the_vendors(tmp_path: Path) -> None:
    addon = tmp_path / "node_sqlite3.node"
    addon.write_bytes(b"\x7fELF" + bytes(1000))
    outs = [tmp_path / "one.tar.gz", tmp_path / "two.tar.gz"]
    for out in outs:
        sqlite3_addon._pack(addon, out)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with tarfile.open(outs[0]) as tar:
        assert tar.getnames() == ["build/Release/node_sqlite3.node"]
    unpack(str(outs[0]), str(tmp_path / "tree"), dict(variant("vendor-x64")["unpack"]))
    made = tmp_path / "tree" / "build" / "Release" / "node_sqlite3.node"
    assert made.read_bytes() == addon.read_bytes()
    assert made.stat().st_mode & 0o111


def test_sources_are_those_of_n8ns_own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], *more: object) -> str:
        commands.append(command)
        return ""

    monkeypatch.setattr(toolchain, "run", run)
    sqlite3_addon._sources(ROLE / "package-lock.json", variant("built-x64")["version"], Path("/node"), tmp_path)
    whole = json.loads((ROLE / "package-lock.json").read_text())["packages"]
    made = json.loads((tmp_path / "package-lock.json").read_text())["packages"]
    assert sorted(made) == ["", "node_modules/node-addon-api", "node_modules/sqlite3"]
    for key in made:
        if key:
            assert made[key]["integrity"] == whole[key]["integrity"]
    (command,) = commands
    assert command[0] == "/node/bin/node"
    assert {"ci", "--ignore-scripts"} <= set(command)


def test_a_lock_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"artifacts\.toml says 9\.9\.9"):
        sqlite3_addon._sources(ROLE / "package-lock.json", "9.9.9", Path("/node"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 2])
def test_an_unexpected_package_is_refused(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "modules" / "sqlite3" / "deps"
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"sqlite-autoconf-{number}.tar.gz").touch()
    with pytest.raises(RunError, match=f"holds {count} SQLite archives"):
        sqlite3_addon._compile(tmp_path / "modules", tmp_path, {"CC": "cc", "CXX": "c++"}, tmp_path)
