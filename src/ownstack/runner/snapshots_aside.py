"""What a way back takes from its place when people may have worked with it since: kept aside, named, never lost.

An upgrade, a restore or an import whose client has died is put back by the next `up`, or at the next start of the
machine, maybe a week later. `<var>/snapshots/<id>.replaced` then holds what was there, and a record of it; what an
upgrade had on another disk lies beside its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterable
from typing import Any

from .core import FULL, StepError, read_json, sync_folder, write_json
from .disk import weigh
from .restore import _remove
from .snapshots_data import copy_folder

KEEP_S = 600
SPARE = 64 << 20
END = ".replaced"
RECORD = "replaced.json"


def worked_with(since: float) -> bool:
    """Whether people may have worked with the newer version; a clock that was put back says nothing against it."""
    return not 0 <= time.time() - since <= KEEP_S


def fills(var: str) -> bool:
    """Whether the disk is full: a run that takes back its own work then needs the space of what it made."""
    return shutil.disk_usage(var).free < SPARE


def exchanged(var: str, now: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a restore or an import has put in place, as `set_aside` takes it: the folder, and about."""
    kind, role = ("import", now["import"]) if now.get("import") else ("restore", "restore")
    items = [
        {**item, "name": os.path.basename(item["place"]).lstrip("."), "copy": item["aside"]} for item in now["items"]
    ]
    about = {"id": now.get("id", kind), "kind": kind, "role": role, "items": items, "inside": True}
    return os.path.join(var, "snapshots", about["id"]), about


def set_aside(folder: str, about: dict[str, Any]) -> None:
    """Move what lies in the places of a snapshot's items aside, each under a name of its own.

    Raises StepError where there is no space for that; everything is in its place then.
    """
    moved: list[tuple[str, str]] = []
    try:
        for item in about["items"]:
            place = item["place"]
            done = item["had"] and not os.path.lexists(item["copy"])  # what was there before is in its place already
            if not done and (os.listdir(place) if os.path.isdir(place) else os.path.isfile(place)):
                path = _name(folder, about, item)
                moved.append((place, path))
                _move(place, path)
    except (OSError, StepError) as error:
        for place, path in moved:
            if os.path.exists(place):
                _remove(path)
            else:
                os.rename(path, place)
        if isinstance(error, OSError) and error.errno not in FULL:
            raise
        what = "the restore" if about["kind"] == "restore" else f"the {about['kind']} of {about['role']}"
        raise StepError(
            f"what was made since {what} cannot be kept aside: {error}",
            hint="nothing was put back; free space (`ownstack disk`), then run `ownstack up`",
            code="disk-full",
        ) from error


def _name(folder: str, about: dict[str, Any], item: dict[str, Any]) -> str:
    """A free name for an item, which is on record before anything is moved there.

    `inside`: in the folder, also from another disk. An import exchanges a folder within a service's data, and what lay
    beside that would go with the service's data.
    """
    place, room = item["place"], folder + END
    os.makedirs(room, 0o700, exist_ok=True)
    here = os.path.ismount(place) or os.stat(room).st_dev == os.stat(os.path.dirname(place)).st_dev
    first = os.path.join(room, item["name"]) if here or about.get("inside") else f"{place}.replaced-{about['id']}"
    path, number = first, 1
    while os.path.lexists(path):
        number += 1
        path = f"{first}.{number}"
    record = os.path.join(room, RECORD)
    told = {key: about.get(key) for key in ("id", "kind", "role", "from", "to")}
    held = read_json(record, {**told, "created": time.time(), "paths": []})
    write_json(record, {**held, "paths": [*dict.fromkeys([*held["paths"], path])]}, 0o600)
    sync_folder(os.path.dirname(room))
    return path


def _move(place: str, path: str) -> None:
    """By a rename; what cannot be renamed, a disk of its own say, is copied whole and stays where it is too."""
    try:
        os.rename(place, path)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EBUSY):
            raise
        part = f"{path}.part"
        _remove(part)
        try:
            if os.path.isdir(place):
                copy_folder(place, part)
            else:
                shutil.copy2(place, part)
        except (OSError, StepError):
            _remove(part)
            raise
        os.sync()
        os.rename(part, path)
    for one in (place, path):
        sync_folder(os.path.dirname(one))


def replaced(var: str) -> list[dict[str, Any]]:
    """What lies aside, oldest first."""
    top = os.path.join(var, "snapshots")
    rows = []
    for name in os.listdir(top) if os.path.isdir(top) else []:
        about = read_json(os.path.join(top, name, RECORD)) if name.endswith(END) else None
        if about is not None:
            paths = [path for path in about["paths"] if os.path.lexists(path)]
            rows.append({**about, "paths": paths, "bytes": sum(map(_bytes, paths))})
    return sorted((row for row in rows if row["paths"]), key=lambda row: float(row["created"]))


def _bytes(path: str) -> int:
    return weigh(path, set())[0] if os.path.isdir(path) else os.path.getsize(path)


def told(paths: Iterable[str]) -> str:
    """The end of a sentence on a way back: where what it has replaced lies; empty where nothing does."""
    where = ", ".join(paths)
    return f"; what was there since is kept in {where}" if where else ""


def lying(folder: str) -> list[str]:
    """Where that of one snapshot lies."""
    about = read_json(os.path.join(folder + END, RECORD), {"paths": []})
    return [path for path in about["paths"] if os.path.lexists(path)]


def drop_replaced(folder: str) -> list[str]:
    """Remove that of one snapshot; its record last. What was removed."""
    paths = lying(folder)
    for path in read_json(os.path.join(folder + END, RECORD), {"paths": []})["paths"]:
        _remove(f"{path}.part")  # of a copy that was cut off
        _remove(path)
    _remove(folder + END)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(folder))
    return paths
