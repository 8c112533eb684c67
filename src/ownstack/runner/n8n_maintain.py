"""n8n's database gives room back: n8n deletes old executions itself, and SQLite keeps the room that they took.

SQLite's VACUUM on a database in use would hold its lock throughout, and runs would fail to be recorded. So n8n is
stopped for it, only when no workflow runs. A copy without the empty room is written, checked, and takes the place of
the old one by a rename: cut off at any moment, the one or the other is there whole. `settle` starts n8n again where
this program was killed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
import urllib.parse
from typing import Any

from . import backup_parts as parts
from .backup import alone
from .box import wait_service
from .core import Emit, Result, Spec, StepError, progress, read_json, sync_folder, write_json
from .imports_source import address
from .journal import kept_free
from .managers import manager

LEAST = 16 << 20  # bytes that must be won, and
SHARE = 0.1  # of the file
SPARE = 64 << 20
PAGES = ("page_size", "page_count", "freelist_count")


def look(path: str) -> dict[str, int]:
    """Size of a database, and how much of that is empty, in bytes; how many workflows run at the moment."""
    with contextlib.closing(sqlite3.connect(address(path), uri=True, timeout=60)) as live:
        page, count, free = (int(live.execute(f"PRAGMA {name}").fetchone()[0]) for name in PAGES)
        running = 0
        with contextlib.suppress(sqlite3.OperationalError):
            query = "SELECT count(*) FROM execution_entity WHERE status = 'running'"
            running = int(live.execute(query).fetchone()[0])
    return {"bytes": page * count, "empty": page * free, "running": running}


def maintain(spec: Spec, emit: Emit) -> Result:
    """Make the database smaller where that wins something. What was done is noted.

    spec: database, state (where it is noted), work, lock (of backups), prefix (of the box), manager, supervisor,
    service {name, unit, ready, timeout}, least (bytes). data: did = "vacuumed", "nothing to win", "postponed"; bytes,
    before.
    """
    try:
        with alone(spec["lock"]), kept_free(spec["prefix"]) as who:
            done = _maintained(spec, who, emit)
    except (StepError, OSError, sqlite3.Error) as error:
        _note(spec, status="done", did="failed", why=str(error))
        raise
    _note(spec, status="done", **done)
    return {"changed": done["did"] == "vacuumed", "data": done}


def _maintained(spec: Spec, who: str, emit: Emit) -> dict[str, Any]:
    data, inside = os.path.split(os.path.dirname(spec["database"]))
    path = parts.own(data, os.path.join(inside, os.path.basename(spec["database"])))
    if not os.path.exists(path):
        return {"did": "nothing to win", "bytes": 0, "before": 0}
    found = look(path)
    same = {"bytes": found["bytes"], "before": found["bytes"]}
    if found["empty"] < max(int(spec.get("least", LEAST)), int(found["bytes"] * SHARE)):
        return {"did": "nothing to win", **same}
    if who:  # an upgrade, say, which starts n8n when this has stopped it
        return {"did": "postponed", "why": f"the box was being worked on: {who}", **same}
    if found["running"]:
        return {"did": "postponed", "why": f"{found['running']} workflows were running", **same}
    need, free = found["bytes"] - found["empty"] + SPARE, shutil.disk_usage(os.path.dirname(path)).free
    if free < need:
        why = f"{free >> 20} MiB are free, {need >> 20} MiB are needed"
        return {"did": "postponed", "why": why, **same}
    boss, service = manager(spec), spec["service"]
    active = bool(boss.status([service["unit"]])[0]["active"])
    _note(spec, status="working", start=active)
    try:
        progress(emit, "stopping n8n for a moment")
        boss.stop([service["unit"]])
        compact(path)
    finally:
        if active:
            boss.start([service["unit"]])
    if active:
        wait_service(boss, service, emit)
    return {"did": "vacuumed", "before": found["bytes"], "bytes": os.path.getsize(path)}


def compact(path: str) -> None:
    """Write a database anew without its empty room. Nobody may have it open. Raises StepError where it is damaged."""
    new = f"{path}.compact"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    owner = os.stat(path)
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=rw", uri=True, timeout=60)
        ) as old:
            busy, _, _ = old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            mode = old.execute("PRAGMA journal_mode").fetchone()[0]
            if busy:
                raise StepError("somebody else has n8n's database open", hint="close it", code="busy")
            old.execute("VACUUM INTO ?", (new,))
            rows = {name: old.execute(parts._count(name)).fetchone()[0] for name in parts.rows(new)}
        wrong = parts.examine(new) or ("other rows than before" if parts.rows(new) != rows else "")
        if wrong:
            raise StepError(f"the copy of n8n's database is not sound: {wrong}", hint="`ownstack verify`")
        with contextlib.closing(sqlite3.connect(new)) as made:
            made.execute(f"PRAGMA journal_mode = {'WAL' if mode == 'wal' else 'DELETE'}").fetchone()
        with open(new, "rb") as stream:  # takes a while where it is large, in which somebody may open the old one
            os.fsync(stream.fileno())
        for end in parts.SIDE:
            for name in (f"{path}{end}", f"{new}{end}"):
                if os.path.exists(name) and os.path.getsize(name):
                    raise StepError(f"{name} is not empty", hint="run again", code="busy")
        os.chmod(new, owner.st_mode & 0o777)
        os.chown(new, owner.st_uid, owner.st_gid)
        os.replace(new, path)
        sync_folder(os.path.dirname(path))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        raise


def _note(spec: Spec, **values: Any) -> None:
    held = read_json(spec["state"], {}) or {}
    if values["status"] == "working":
        write_json(spec["state"], {**held, **values, "began": time.time()}, 0o600)
        return
    write_json(spec["state"], {**values, "time": time.time()}, 0o600)


def settle(spec: Spec, emit: Emit) -> Result:
    """Where a maintenance was cut off: n8n runs again, if it ran before. spec: as for `maintain`."""
    held = read_json(spec["state"], {}) or {}
    if held.get("status") != "working":
        return {"changed": False}
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{spec['database']}.compact")
    if held.get("start"):
        manager(spec).start([spec["service"]["unit"]])
    _note(spec, status="done", did="failed", why="it was cut off; n8n runs again, with its data as it was")
    return {"changed": True}


def maintained(spec: Spec, emit: Emit) -> Result:
    """What the last maintenance did. spec: state."""
    return {"changed": False, "data": read_json(spec["state"], {}) or {}}


STEPS = {"maintain": maintain, "maintained": maintained, "settle": settle}
