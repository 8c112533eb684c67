"""Vectors of the memories of accounts, which Open WebUI searches by nothing else.

It makes them when a memory is written. Under another embedding model, or in a database that comes from elsewhere, it
makes them anew only when each account asks for that; until then it remembers nothing.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

from .core import Spec
from .imports_source import address
from .open_webui_vectors import PAGE, Point, Store, embed

# a memory's own columns, which an older version may not have
ABOUT = ("created_at", "updated_at", "type", "path")


def memories(spec: Spec) -> int:
    """Give each memory that has none its vector, as Open WebUI does; how many.

    spec: secrets_dir, database, engine (its address), model, qdrant {url, secret, new}.
    """
    wanted = _wanted(spec["database"])
    store, name = Store(spec), f"{spec['qdrant']['new']}_memories"
    made = "memories" in store.kinds(spec["qdrant"]["new"])
    there = {point["id"] for page in store.pages(name, False, 1000) for point in page} if made else set()
    missing = [point for point in wanted if point["id"] not in there]
    for first in range(0, len(missing), PAGE):
        page = missing[first : first + PAGE]
        embed(spec, page)
        if not made:
            store.fresh(name, len(page[0]["vector"]))
            made = True
        store.ask("PUT", f"/{name}/points?wait=true", {"points": page})
    return len(missing)


def _wanted(database: str) -> list[Point]:
    with contextlib.closing(sqlite3.connect(address(database), uri=True, timeout=60)) as held:
        columns = {str(row[1]) for row in held.execute("PRAGMA table_info(memory)")}
        if not {"id", "user_id", "content"} <= columns:
            return []
        held.row_factory = sqlite3.Row
        return [_point(dict(row)) for row in held.execute("SELECT * FROM memory") if row["content"]]


def _point(row: dict[str, Any]) -> Point:
    text = f"{row['path']}\n{row['content']}" if row.get("path") else str(row["content"])
    about = {key: row[key] for key in ABOUT if row.get(key) is not None}
    return {"id": row["id"], "payload": {"text": text, "metadata": about, "tenant_id": f"user-memory-{row['user_id']}"}}
