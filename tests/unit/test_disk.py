"""What folders take on the disk: held against du, and who is charged for what several share."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli.disk import folders
from ownstack.plan import Schedule
from ownstack.runner import disk
from tests.unit import machines


def usage(*paths: Path) -> dict[str, Any]:
    spec = {"folders": [{"name": path.name, "path": str(path), "kind": "x"} for path in paths]}
    data: dict[str, Any] = disk.usage(spec, lambda event: None)["data"]
    return data


def du(*paths: Path) -> int:
    """Bytes on the disk as du counts them, without those of the folders named themselves."""
    said = subprocess.run(["du", "-s", "-c", "--block-size=512", *paths], capture_output=True, text=True, check=True)
    own = sum(path.stat().st_blocks for path in paths)
    return (int(said.stdout.splitlines()[-1].split()[0]) - own) * 512


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for release in ("1-aa", "2-bb"):
        (tmp_path / "app/releases" / release / "lib").mkdir(parents=True)
        (tmp_path / "app/releases" / release / "lib/blob").write_bytes(
            os.urandom(300_000 if release == "1-aa" else 500_000)
        )
    (tmp_path / "app/current").symlink_to("releases/2-bb")
    os.link(tmp_path / "app/releases/2-bb/lib/blob", tmp_path / "app/releases/2-bb/again")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/out").symlink_to(tmp_path / "app")
    with (tmp_path / "data/sparse").open("wb") as stream:
        stream.truncate(1 << 30)
    return tmp_path


def test_bytes_are_those_that_du_counts(tree: Path) -> None:
    app, data = tree / "app", tree / "data"
    found = {row["name"]: row for row in usage(app, data, tree / "absent")["folders"]}
    assert set(found) == {"app", "data"}
    assert found["app"]["bytes"] == du(app)
    assert found["data"]["bytes"] == du(data) < 1 << 20  # neither the hole of a sparse file nor what a link points at
    assert 300_000 < found["app"]["older_bytes"] < 400_000
    assert found["app"]["unread"] == 0


def test_what_two_folders_share_is_charged_once(tree: Path) -> None:
    os.link(tree / "app/releases/2-bb/lib/blob", tree / "data/blob")
    rows = usage(tree / "app", tree / "data")["folders"]
    assert sum(row["bytes"] for row in rows) == du(tree / "app", tree / "data")
    assert rows[1]["bytes"] < 500_000


def test_a_bound_folder_is_followed_to_its_disk(tree: Path) -> None:
    (tree / "bound").symlink_to(tree / "app")
    data = usage(tree / "bound")
    assert data["folders"][0]["bytes"] > 800_000
    (one,) = data["disks"]
    held = os.statvfs(tree)
    assert one["total"] == held.f_blocks * held.f_frsize
    assert os.path.ismount(one["mount"])


def test_a_folder_that_may_not_be_read_is_said(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("lib"):
            raise PermissionError(path)
        return plain(path)

    monkeypatch.setattr("os.scandir", refuse)
    (row,) = usage(tree / "app")["folders"]
    assert row["unread"] == 1
    assert row["bytes"] < 900_000


def test_each_folder_of_a_box_is_named_once() -> None:
    plan = machines.plan(machines.report("bare-server"))
    plan = plan.model_copy(
        update={
            "folders": (("ollama:models", "/big/models", True), ("notes", "/home/me/notes", False)),
            "backup": Schedule(every="day", to="/mnt/usb/backups"),
        }
    )
    rows = folders(plan)
    assert len({row["path"] for row in rows}) == len(rows)
    assert {
        "/opt/ownstack/qdrant",
        "/var/lib/ownstack/n8n",
        "/var/lib/ownstack/models",
        "/etc/ownstack",
        "/big/models",
        "/var/lib/ownstack-backups",
        "/mnt/usb/backups",
        "/var/lib/ownstack/restore",
        "/var/lib/ownstack/scratch",
    } <= {row["path"] for row in rows}
