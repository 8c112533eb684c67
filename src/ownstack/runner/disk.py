"""Who holds what on the disks of the box."""

from __future__ import annotations

import os
from typing import Any

from .core import Emit, Result, Spec, progress

BLOCK = 512  # bytes of st_blocks, on every system


def usage(spec: Spec, emit: Emit) -> Result:
    """What folders take on the disk, and what is free there. Reads only; links are not followed.

    spec: folders [{name, path}]. data: folders [{name, path, bytes, older_bytes, unread}], in the same order and
    without those that are not there; disks [{mount, total, free}]. A file with several names counts once, in the first
    folder that holds it. `older_bytes`: of releases that are not the current one. `unread`: folders that could not be
    read.
    """
    counted: set[tuple[int, int]] = set()
    found, disks = [], {}
    for folder in spec["folders"]:
        path = os.path.realpath(folder["path"])
        if not os.path.isdir(path):
            continue
        progress(emit, folder["name"])
        releases = os.path.join(path, "releases")
        current = os.path.realpath(os.path.join(path, "current"))
        older = unread = 0
        for release in sorted(os.listdir(releases)) if os.path.isdir(releases) else []:
            one = os.path.join(releases, release)
            if one != current:
                older += weigh(one, counted)[0]
        total, unread = weigh(path, counted)
        found.append({**folder, "bytes": total + older, "older_bytes": older, "unread": unread})
        disks[os.stat(path).st_dev] = path
    return {"changed": False, "data": {"folders": found, "disks": [_disk(path) for path in disks.values()]}}


def weigh(path: str, counted: set[tuple[int, int]]) -> tuple[int, int]:
    """Bytes on the disk below a path, and how many folders could not be read; files in `counted` are left out."""
    total = unread = 0
    waiting = [path]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    held = entry.stat(follow_symlinks=False)
                    if (held.st_dev, held.st_ino) in counted:
                        continue
                    counted.add((held.st_dev, held.st_ino))
                    total += held.st_blocks * BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except FileNotFoundError:  # a service deleted it meanwhile
            continue
        except OSError:
            unread += 1
    return total, unread


def _disk(path: str) -> dict[str, Any]:
    device = os.stat(path).st_dev
    while path != "/" and os.stat(os.path.dirname(path)).st_dev == device:
        path = os.path.dirname(path)
    held = os.statvfs(path)
    return {"mount": path, "total": held.f_blocks * held.f_frsize, "free": held.f_bavail * held.f_frsize}
