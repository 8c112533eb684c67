"""An Open WebUI from elsewhere: what is changed in the copy of its database before its first start here."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import sqlite3
from typing import Any

from .core import StepError


def known_revisions(program: str) -> set[str]:
    """The revisions of the schema that an installed Open WebUI knows."""
    files = glob.glob(f"{program}/lib/python3*/site-packages/open_webui/migrations/versions/*.py")
    known = set()
    for path in files:
        with open(path, encoding="utf-8") as stream:
            known.update(re.findall(r"^revision(?:: str)? = ['\"](\w+)['\"]", stream.read(), re.MULTILINE))
    if not known:
        raise StepError("the installed Open WebUI does not say what it knows", hint="`ownstack up`, then run again")
    return known


def fit(about: dict[str, Any], database: str, tables: set[str], new: str, place: str) -> tuple[str, list[str]]:
    """Let the copy in `new` fit to this box, where it will lie in `place`; the first admin, and what is to be told."""
    notes = []
    with contextlib.closing(sqlite3.connect(database)) as opened, opened as work:
        lost = _uploads(work, tables, new, place)
        notes += [f"{lost} files have no upload beside the database: only their text came along"] if lost else []
        notes += _settings(work, tables, about)
        owner = _first_admin(work)
    return owner[0] if owner else "", notes


def _first_admin(work: sqlite3.Connection) -> Any:
    """Who was there first. The oldest versions had another column for when."""
    columns = {row[1] for row in work.execute("PRAGMA table_info(user)")}
    when = "created_at" if "created_at" in columns else "rowid"
    ask = f"SELECT email FROM user WHERE role = 'admin' ORDER BY {when} LIMIT 1"  # noqa: S608 - one of our two words
    return work.execute(ask).fetchone()


def _uploads(work: sqlite3.Connection, tables: set[str], new: str, place: str) -> int:
    """Write where the uploads will lie; how many are not there."""
    columns = {row[1] for row in work.execute("PRAGMA table_info(file)")} if "file" in tables else set()
    if "path" not in columns:
        return 0
    lost = 0
    for identity, path in work.execute("SELECT id, path FROM file WHERE path IS NOT NULL AND path != ''").fetchall():
        name = os.path.basename(str(path).replace("\\", "/"))
        if os.path.isfile(os.path.join(new, "uploads", name)):
            work.execute("UPDATE file SET path = ? WHERE id = ?", (f"{place}/uploads/{name}", identity))
        else:
            lost += 1
    return lost


def _settings(work: sqlite3.Connection, tables: set[str], about: dict[str, Any]) -> list[str]:
    """The settings that the kit owns, before the first start: with others it might wait for what is not here.

    Open WebUI kept them as one text, by name below name, and keeps them one row a key.
    """
    columns = {row[1] for row in work.execute("PRAGMA table_info(config)")} if "config" in tables else set()
    values = dict(about["values"])
    if "data" in columns:
        for identity, text in work.execute("SELECT id, data FROM config").fetchall():
            held = json.loads(text) if text else {}
            notes = _without_torch(values, _flat(held), about)
            for key, value in values.items():
                _put(held, key.split("."), value)
            work.execute("UPDATE config SET data = ? WHERE id = ?", (json.dumps(held), identity))
            return notes
    if {"key", "value"} <= columns:
        # a column of JSON: SQLite keeps a number in it as a number
        read = work.execute("SELECT key, value FROM config")
        held = {key: json.loads(value) if isinstance(value, str) else value for key, value in read}
        notes = _without_torch(values, held, about)
        for key, value in values.items():
            work.execute("UPDATE config SET value = ? WHERE key = ?", (json.dumps(value), key))
        return notes
    return []


def _without_torch(values: dict[str, Any], held: dict[str, Any], about: dict[str, Any]) -> list[str]:
    if about["full"] or not held.get("rag.enable_hybrid_search") or held.get("rag.reranking_engine") == "external":
        return []
    values["rag.enable_hybrid_search"] = False
    return ["hybrid search was on with a reranking model that this box cannot run: it is off now"]


def _flat(held: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in held.items():
        found[before + key] = value
        if isinstance(value, dict):
            found.update(_flat(value, f"{before}{key}."))
    return found


def _put(held: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = held.get(name)
        held[name] = inner if isinstance(inner, dict) else {}
        held = held[name]
    held[path[-1]] = value
