"""Coming from elsewhere: the data of an Open WebUI or n8n that is not ours, in the place of what a box holds.

The source is only read. What is taken is a copy, checked and changed as a copy; `restore.swap` exchanges it, `revert`
puts back what was there, `finish` lets that go. The services bring older data up to date themselves at their start.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import tarfile
import time
from typing import Any

from . import backup_parts as parts
from . import imports_n8n, imports_open_webui, restore
from .backup import UPLOADS, alone, tidy
from .backup_check import N8N_KEY
from .core import Emit, Result, Spec, StepError, progress, read_json, write_json
from .counted import COUNTED
from .http import request
from .imports_index import documents
from .imports_source import Source, address, recognised, take
from .managers import manager
from .n8n import fingerprint
from .restore_parts import HINT
from .scratch import give
from .unpack import unpack

KIT_EMAIL = "ownstack@localhost"
NOTED = "import.json"
TRIES = 3
# rows that have to be there afterwards, by their id
KEPT = {
    "open_webui": ("user", "auth", "chat", "file", "knowledge", "folder", "note", "memory"),
    "n8n": ("user", "workflow_entity", "credentials_entity", "tag_entity"),
}
# as it can stand in a file of variables without quotes; those that n8n makes are of base64, and may begin with + or /
SAFE_KEY = re.compile(r"[A-Za-z0-9+/][!-~]*")


def find(spec: Spec, emit: Emit) -> Result:
    """Whether a path is on this machine. spec: path."""
    return {"changed": False, "data": {"there": os.path.exists(spec["path"])}}


def received(spec: Spec, emit: Emit) -> Result:
    """Unpack what `pack` made elsewhere and was uploaded. spec: file, folder (made anew)."""
    restore._remove(spec["folder"])
    os.makedirs(spec["folder"], 0o700)
    unpack(spec["file"], spec["folder"], {"format": "tar"})
    os.unlink(spec["file"])
    return {"changed": True}


def pack(path: str, folder: str) -> str:
    """Take the data at `path` into a tar in `folder`: for a box that is reached over SSH. The tar's path."""
    source = recognised(path)
    inside = os.path.join(folder, "taken")
    os.makedirs(inside, 0o700)
    take(source, inside)
    out = os.path.join(folder, "taken.tar")
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(inside, ".")
    shutil.rmtree(inside)
    return out


def stage(spec: Spec, emit: Emit) -> Result:
    """Take, check and change a copy, beside what the box holds. Changes nothing that a service sees.

    spec: path, var, secrets_dir, state, lock, work; services {open_webui, n8n: folder of its data, of roles that the
    box has}; open_webui {program, values (owned settings), full}; n8n {program, node, record}; key_file (n8n's key).
    data: kind, label, holds, here (what the box holds now), owner (sign-in name), notes.
    """
    os.umask(0o077)
    with alone(spec["lock"]):
        if restore._status(spec) in restore.PENDING:
            raise StepError("an earlier restore or import was cut off", hint=HINT, code="restore-pending")
        source = recognised(spec["path"])
        if source.kind not in spec["services"]:
            raise StepError(
                f"{spec['path']} holds {source.label}, which this box has not",
                hint="add it to `roles` and run `ownstack up`; nothing was changed",
                code="role-missing",
            )
        tidy(spec["work"], UPLOADS, spec["path"])
        restore._clear(spec)
        # one that is killed here leaves copies of secrets behind, which the next `up` takes away
        write_json(spec["state"], {"status": "staging", "clean": False, "import": source.kind})
        try:
            data = _staged(spec, source, emit)
        except BaseException:
            restore._end(spec, "reverted")
            raise
    return {"changed": True, "data": data}


def _staged(spec: Spec, source: Source, emit: Emit) -> dict[str, Any]:
    room, place = restore._room(spec), spec["services"][source.kind]
    need, free = source.bytes(), shutil.disk_usage(spec["var"]).free
    if free < need + (64 << 20):
        raise StepError(
            f"{spec['var']} has {free >> 20} MiB free, the import takes {need >> 20} MiB",
            hint="free space and run again; nothing was changed",
            code="disk-full",
        )
    for folder in ("new", "old"):
        os.makedirs(os.path.join(room, folder), 0o700)
    new = f"{room}/new/{source.kind}"
    os.mkdir(new, 0o700)
    progress(emit, f"copying the data of {source.label}")
    database = take(source, new)
    _check(source, database)
    secrets: dict[str, str] = {}
    items = []
    if source.kind == "open_webui":
        told = _open_webui(spec, source, new, database, place)
    else:
        place = os.path.join(place, ".n8n")
        told, secrets = _n8n(spec, source, new, database)
        record = spec["n8n"]["record"]
        write_json(f"{room}/new/record.json", {"key_fingerprint": fingerprint(secrets[N8N_KEY])}, 0o600)
        items.append({"place": record, "new": f"{room}/new/record.json", "aside": f"{room}/old/record.json"})
    _own(new, place)
    restore._lay_secrets(spec, secrets)
    folder = spec["secrets_dir"]
    items.append({"place": place, "new": new, "aside": f"{room}/old/{source.kind}"})
    items.append({"place": folder, "new": f"{folder}.restore-new", "aside": f"{folder}.restore-old"})
    noted = {"kind": source.kind, "ids": _ids(source.kind, database), "opened": told.pop("opened", None)}
    write_json(os.path.join(room, NOTED), noted, 0o600)
    os.sync()
    laid = {"status": "staged", "clean": False, "import": source.kind, "file": spec["path"], "items": items}
    write_json(spec["state"], laid)
    here = {}
    try:
        here = _now(source.kind, os.path.join(place, source.database_name))
    except sqlite3.Error as error:  # it may be why somebody imports
        told["notes"].append(f"what the box holds now cannot be counted, it may be damaged: {error}")
    return {
        "kind": source.kind, "label": source.label, "found": source.database,
        "holds": _holds(source.kind, database), "here": here, **told,
    }  # fmt: skip


def _own(new: str, place: str) -> None:
    """Owner and mode as what lies there now has."""
    owner = os.stat(place)
    os.chmod(new, owner.st_mode & 0o777)
    give(new, owner)


# --------------------------------------------------------------------------------------------------------- checking


def _check(source: Source, database: str) -> None:
    wrong = parts.examine(database)
    if wrong:
        raise StepError(
            f"{source.database} is damaged: {wrong}",
            hint="repair it or take a backup of it; nothing was changed, neither there nor here",
            code="import-damaged",
        )


def _newer(source: Source, known: set[str], held: list[str]) -> None:
    """Raises StepError where the data was last written by a version that the installed one does not know."""
    unknown = [name for name in held if name not in known]
    if unknown:
        raise StepError(
            f"{source.database} was written by a newer {source.label} than the one of this box "
            f"(its schema has {unknown[-1]}, which this one does not know)",
            hint="import it with a newer ownstack (`ownstack upgrade` brings newer versions); nothing was changed",
            code="import-newer",
        )


def _column(database: str, query: str) -> list[Any]:
    with contextlib.closing(parts._readonly(database)) as held:
        return [row[0] for row in held.execute(query)]


def _tables(database: str) -> set[str]:
    return set(_column(database, "SELECT name FROM sqlite_master WHERE type = 'table'"))


def _ids(kind: str, database: str) -> dict[str, list[str]]:
    tables = _tables(database)
    # names of our own list
    return {t: [str(v) for v in _column(database, f'SELECT id FROM "{t}"')] for t in KEPT[kind] if t in tables}  # noqa: S608


def _holds(kind: str, database: str) -> dict[str, int]:
    rows = parts.rows(database)
    return {what: rows.get(table, 0) for table, what in COUNTED[kind]}


def _now(kind: str, live: str) -> dict[str, int]:
    """What people have on the box so far, without the kit's own account."""
    if not os.path.exists(live):
        return {}
    found = {}
    with contextlib.closing(_live(live)) as held:
        tables = {row[0] for row in held.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, what in COUNTED[kind]:
            if table in tables:
                found[what] = int(held.execute(parts._count(table)).fetchone()[0])
        if kind == "open_webui" and "user" in tables:
            kits = held.execute("SELECT count(*) FROM user WHERE email = ?", (KIT_EMAIL,)).fetchone()[0]
            found["accounts"] -= int(kits)
    return found


def _live(path: str) -> sqlite3.Connection:
    return sqlite3.connect(address(path), uri=True, timeout=60)


# ------------------------------------------------------------------------------------------------------- Open WebUI


def _open_webui(spec: Spec, source: Source, new: str, database: str, place: str) -> dict[str, Any]:
    about = spec["open_webui"]
    known = imports_open_webui.known_revisions(about["program"])
    tables = _tables(database)
    if "alembic_version" in tables:
        _newer(source, known, _column(database, "SELECT version_num FROM alembic_version"))
    owner, notes = imports_open_webui.fit(about, database, tables, new, place)
    return {"owner": owner, "notes": notes}


# -------------------------------------------------------------------------------------------------------------- n8n


def _n8n(spec: Spec, source: Source, new: str, database: str) -> tuple[dict[str, Any], dict[str, str]]:
    about = spec["n8n"]
    known = imports_n8n.known_migrations(about["program"])
    if "migrations" in _tables(database):
        _newer(source, known, _column(database, "SELECT name FROM migrations ORDER BY timestamp"))
    key = _key(spec, source)
    opened = imports_n8n.opened(about, database, key)
    sum_of = len(opened["opened"]) + len(opened["closed"])
    if sum_of and not opened["opened"]:
        raise StepError(
            f"none of the {sum_of} credentials in {source.database} can be decrypted with the key "
            f"{'given' if spec.get('key_file') else 'in its config'}",
            hint="name the file with the right key (N8N_ENCRYPTION_KEY of that n8n): `--key-file FILE`; "
            "nothing was changed",
            code="import-key",
        )
    config = {**(read_json(os.path.join(new, "config")) or {}), "encryptionKey": key}
    write_json(os.path.join(new, "config"), config, 0o600)
    notes = []
    if opened["closed"]:
        notes.append(f"{len(opened['closed'])} credentials could not be decrypted there either: they came as they were")
    active = _active(database)
    if active:
        notes.append(f"{active} active workflows begin to work here: stop the other n8n, or they run twice")
    if (read_json(os.path.join(source.folder, "nodes", "package.json")) or {}).get("dependencies"):
        notes.append("community nodes are not taken over: workflows with them say so")
    return {"owner": imports_n8n.owner_of(database), "notes": notes, "opened": opened["opened"]}, {N8N_KEY: key}


def _active(database: str) -> int:
    columns = _column(database, "SELECT name FROM pragma_table_info('workflow_entity')")
    return len(_column(database, "SELECT id FROM workflow_entity WHERE active")) if "active" in columns else 0


def _key(spec: Spec, source: Source) -> str:
    held = str((read_json(os.path.join(source.folder, "config")) or {}).get("encryptionKey") or "")
    if spec.get("key_file"):
        with open(spec["key_file"], encoding="utf-8") as stream:
            held = stream.read().strip()
    if not held:
        raise StepError(
            f"{source.folder} has no `config` with n8n's encryption key: its credentials could not be read",
            hint="name the file with the key (N8N_ENCRYPTION_KEY of that n8n): `--key-file FILE`; nothing was changed",
            code="import-key",
        )
    if not SAFE_KEY.fullmatch(held) or set(held) & set("\"'\\"):
        raise StepError(
            "the encryption key of that n8n has blanks, quotes or backslashes in it, or begins with another sign than "
            "+ or /: this box cannot carry it",
            hint="in n8n there: give it a plain key, and enter the credentials again; nothing was changed",
            code="import-key",
        )
    return held


# ------------------------------------------------------------------------------------------------------- afterwards


def started(spec: Spec, emit: Emit) -> Result:
    """Start a service that may have much to bring up to date, and wait as long as it works on that.

    spec: manager, services: [{name, unit, ready, timeout}]. Raises StepError when it ended three times.
    """
    boss = manager(spec)
    for service in spec["services"]:
        unit, began = service["unit"], time.monotonic()
        boss.start([unit])
        first = boss.status([unit])[0]["restarts"]
        while request("GET", service["ready"], timeout=5)[0] != 200:
            now = boss.status([unit])[0]
            ended = now["restarts"] - first >= TRIES or now["state"].startswith(("failed", "fatal"))
            if ended or time.monotonic() - began > service["timeout"]:
                raise StepError(
                    f"{service['name']} does not start with this data",
                    hint=f"`ownstack logs {service['name']}` shows why",
                    code="not-ready",
                )
            progress(emit, f"{service['name']} brings the data up to date ({int(time.monotonic() - began)} s)")
            time.sleep(0.5)
    return {"changed": True}


def compare(spec: Spec, emit: Emit) -> Result:
    """Whether all that was taken is in the database that now serves. spec: var, services, n8n.

    data: counts. Raises StepError where a row is missing, or a credential can no longer be decrypted.
    """
    noted = read_json(os.path.join(restore._room(spec), NOTED))
    kind = noted["kind"]
    name = "webui.db" if kind == "open_webui" else ".n8n/database.sqlite"
    database = os.path.join(spec["services"][kind], name)
    missing = {}
    with contextlib.closing(_live(database)) as held:
        for table, wanted in noted["ids"].items():
            there = {str(row[0]) for row in held.execute(f'SELECT id FROM "{table}"')}  # noqa: S608 - our own list
            gone = set(wanted) - there
            if gone:
                missing[table] = len(gone)
    if missing:
        words = ", ".join(f"{number} of {table}" for table, number in missing.items())
        raise StepError(f"not everything arrived: {words}", hint=HINT, code="import-incomplete")
    if noted["opened"]:
        now = imports_n8n.opened(spec["n8n"], database, imports_n8n.box_key(spec["secrets_dir"]))
        lost = set(noted["opened"]) - set(now["opened"])
        if lost:
            raise StepError(f"{len(lost)} credentials can no longer be decrypted", hint=HINT, code="import-key")
    return {"changed": False, "data": {"counts": {t: len(rows) for t, rows in noted["ids"].items()}}}


STEPS = {
    "api_key": imports_n8n.api_key,
    "compare": compare,
    "documents": documents,
    "find": find,
    "received": received,
    "stage": stage,
    "started": started,
}
