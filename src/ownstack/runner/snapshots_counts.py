"""What people would count on a box: accounts, chats, workflows, vectors, models; and n8n's key by its fingerprint."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import urllib.parse
from typing import Any

from . import ollama_api as api
from . import qdrant
from .core import Emit, Result, Spec, StepError, read_json
from .counted import COUNTED
from .n8n import fingerprint

N8N_DATABASE = os.path.join(".n8n", "database.sqlite")
# finished runs are pruned by n8n itself when they are old, and all but the newest 10,000: only the younger ones that it
# has not marked as deleted have to be there, and no more than it surely keeps. By column, which a version may not have.
RUNS = {
    "startedAt": '"startedAt" >= ?',
    "deletedAt": '"deletedAt" IS NULL',
    "status": "status NOT IN ('new', 'running', 'waiting')",
}
MOST_RUNS = 9_000


def database_counts(service: str, path: str, since: str = "", still: bool = False) -> dict[str, int]:
    """Rows of the tables that people would miss. A table that is not there is left out. still: nobody writes to it."""
    found: dict[str, int] = {}
    address = f"file:{urllib.parse.quote(path)}?mode=ro{'&immutable=1' if still else ''}"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=30)) as db:
            names = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table, what in COUNTED.get(service, ()):
                if table in names:
                    found[what] = int(db.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0])  # noqa: S608
            if service == "n8n" and since and "execution_entity" in names:
                found["runs"] = _runs(db, since)
    except sqlite3.Error as error:
        raise StepError(
            f"{path} cannot be counted: {error}", hint=f"`ownstack logs {service}`", code="database"
        ) from error
    return found


def _runs(db: sqlite3.Connection, since: str) -> int:
    there = {str(row[1]) for row in db.execute("PRAGMA table_info(execution_entity)")}
    rules = " AND ".join(rule for column, rule in RUNS.items() if column in there)
    number = db.execute(f"SELECT count(*) FROM execution_entity WHERE {rules}", (since,)).fetchone()[0]  # noqa: S608
    return min(int(number), MOST_RUNS)


def key_of(data: str) -> str:
    """The fingerprint of the key that n8n's data was made with; empty where there is none."""
    held = (read_json(os.path.join(data, ".n8n", "config")) or {}).get("encryptionKey")
    return fingerprint(str(held)) if held else ""


def counts(spec: Spec, emit: Emit) -> Result:
    """Count while the services run, or stand still. Reads only.

    spec: databases: [{service, path}], since (runs of n8n from then on), qdrant ({url, secrets_dir} or None), engine
    (address or empty), n8n_data (folder or empty). data: tables, vectors, models (name -> digest), key.
    """
    data: dict[str, Any] = {"tables": {}, "vectors": {}, "models": {}, "key": ""}
    for one in spec["databases"]:
        if os.path.exists(one["path"]):
            data["tables"][one["service"]] = database_counts(one["service"], one["path"], spec.get("since", ""))
    if spec.get("qdrant"):
        data["vectors"] = qdrant.counts(spec["qdrant"], emit)["data"]
    if spec.get("engine"):
        there = api.ask(spec["engine"], "/api/tags", what="the models of the box")["models"]
        data["models"] = {str(one["name"]): str(one["digest"]) for one in there}
    if spec.get("n8n_data"):
        data["key"] = key_of(spec["n8n_data"])
    return {"changed": False, "data": data}
