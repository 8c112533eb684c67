"""Removing hosts and runs by the records in their folders, also from another process than theirs."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from .commands import run


def control_groups() -> list[Path]:
    """The cgroup trees in which a host gets a group of its own: the unified one and systemd's."""
    hybrid = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd")]
    return [tree for tree in hybrid if tree.is_dir()] or [Path("/sys/fs/cgroup")]


def clear(folder: Path) -> None:
    """Remove a run: first its hosts, then its bridge, rules and files."""
    if not folder.is_dir():
        return
    for host in sorted((folder / "space/hosts").glob("*")):
        clear_host(host)
    unmount(folder / "space")
    facts = record(folder)
    if "table" in facts:
        run("nft", "delete", "table", "ip", facts["table"], check=False)
    if "bridge" in facts:
        run("ip", "link", "del", facts["bridge"], check=False)
    _delete(folder)


def clear_host(folder: Path) -> None:
    """End a host's processes, remove its namespace and mounts, delete its files. Idempotent."""
    facts = record(folder)
    if "group" in facts:
        end_group(facts["group"])
    if "netns" in facts:
        run("ip", "netns", "del", facts["netns"], check=False)
        run("ip", "link", "del", facts["veth"], check=False)
    unmount(folder / "root")
    _delete(folder)


def record(folder: Path) -> dict[str, str]:
    path = folder / "record.json"
    try:
        facts: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return facts


def end_group(name: str, timeout_s: float = 15) -> None:
    """Kill everything in the control groups of this name and remove them.

    The group is the host's own, so nothing else can be hit. The kernel offers `cgroup.kill` from
    5.14 on in the unified tree, which every member is in.
    """
    for tree in control_groups():
        top = tree / name
        end = time.monotonic() + timeout_s
        while top.is_dir() and time.monotonic() < end:
            if (top / "cgroup.kill").exists():
                (top / "cgroup.kill").write_text("1")
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    continue  # still has members, or has just gone
            if top.is_dir():
                time.sleep(0.02)


def unmount(path: Path, timeout_s: float = 10) -> None:
    """Unmount, waiting for the kernel to let go of the processes just killed."""
    end = time.monotonic() + timeout_s
    while os.path.ismount(path) and time.monotonic() < end:
        if run("umount", "--recursive", path, check=False).returncode:
            time.sleep(0.05)
    if os.path.ismount(path):
        run("umount", "--recursive", "--lazy", path, check=False)


def _delete(folder: Path) -> None:
    inside = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if any(point.startswith(f"{folder}/") for point in inside):
        raise RuntimeError(f"{folder} still holds a mount; not deleted")
    shutil.rmtree(folder, ignore_errors=True)
