"""Indexing the documents of Open WebUI anew, into the collections of another embedding model.

Open WebUI answers "done" to a request for this even where files failed, so what the earlier collections hold is
compared with what the new ones got: knowledge by collection and file, and the files of chats.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import Any

from .core import Emit, Result, Spec, StepError, heartbeat, progress
from .http import request
from .imports_source import address
from .open_webui_memories import memories
from .open_webui_site import Site, kit
from .open_webui_vectors import Store
from .secrets import read_secret

PAGE = 1000
HOUR = 3600.0
ADDING_S = 10.0  # of a file that is being added to knowledge the vectors come first, and its row last


def _indexed(spec: Spec, collection: str) -> set[tuple[str, str]]:
    """(tenant, file) of every point in a collection; empty where there is none."""
    about = spec["qdrant"]
    headers = {"api-key": read_secret(spec["secrets_dir"], about["secret"])}
    found: set[tuple[str, str]] = set()
    offset = None
    while True:
        body = {"limit": PAGE, "offset": offset, "with_payload": ["tenant_id", "metadata.file_id"]}
        status, answer = request("POST", f"{about['url']}/collections/{collection}/points/scroll", body, headers)
        if status == 404:
            return found
        if status != 200:
            raise StepError(f"Qdrant answered {status} to a look into {collection}", hint="`ownstack logs qdrant`")
        for point in answer["result"]["points"]:
            payload = point.get("payload") or {}
            file = (payload.get("metadata") or {}).get("file_id") or ""
            found.add((str(payload.get("tenant_id", "")), str(file)))
        offset = answer["result"].get("next_page_offset")
        if offset is None:
            return found


def _lives(site: Site, path: str) -> bool:
    return site.call("GET", path)[0] == 200


def _taken_out(spec: Spec, pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those (knowledge, file) whose knowledge is there without that file."""
    with contextlib.closing(sqlite3.connect(address(spec["database"]), uri=True, timeout=60)) as held:
        tables = {row[0] for row in held.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"knowledge", "knowledge_file"} <= tables:
            return set()
        there = {row[0] for row in held.execute("SELECT id FROM knowledge")}
        files = set(held.execute("SELECT knowledge_id, file_id FROM knowledge_file"))
    return {(tenant, file) for tenant, file in pairs - files if file and tenant in there}


def reindex(spec: Spec, emit: Emit) -> Result:
    """Index all knowledge and all files of chats anew.

    spec: url, secrets_dir, qdrant {url, secret, old, new}: the beginnings of the collections' names; carried: the new
    ones were filled by `vectors` before, so that only what came since is left; database, engine, model (empty where
    the owner has Open WebUI embed with another: memories stay as they are then).
    data: knowledge and files, how many (collection, file) pairs and files were indexed again, and memories, how many.
    Raises StepError when something that is still there did not arrive.
    """
    about = spec["qdrant"]
    if spec.get("dry"):
        return {"changed": True, "data": {}}
    site = kit(spec)
    with heartbeat(emit, "indexing the documents anew"):
        if spec.get("carried"):
            _forget(spec, site)
            _rest(spec, site, emit)
        else:
            _all(spec, site, emit)
    missing = sorted({file or tenant for _, tenant, file in _missing(spec, site)})
    if missing:
        raise StepError(
            f"{len(missing)} of the documents could not be indexed anew: {', '.join(missing[:5])}",
            hint="`ownstack logs open_webui` and `ownstack logs ollama` show why",
            code="reindex-incomplete",
        )
    data = {name: len(_indexed(spec, f"{about['new']}_{name}")) for name in ("knowledge", "files")}
    return {"changed": True, "data": {**data, "memories": memories(spec) if spec.get("model") else 0}}


def _all(spec: Spec, site: Site, emit: Emit) -> None:
    about = spec["qdrant"]
    site.need("POST", "/api/v1/knowledge/reindex", {}, timeout=HOUR)
    site.call("POST", "/api/v1/knowledge/metadata/reindex", {}, timeout=HOUR)
    files = {tenant for tenant, _ in _indexed(spec, f"{about['old']}_files")}
    here = {tenant for tenant, _ in _indexed(spec, f"{about['new']}_files")}
    for done, tenant in enumerate(sorted(files - here)):
        progress(emit, "indexing the files of chats anew", done, len(files))
        file = tenant.removeprefix("file-")
        if _lives(site, f"/api/v1/files/{file}"):
            site.call("POST", "/api/v1/retrieval/process/file", {"file_id": file}, timeout=HOUR)


def _rest(spec: Spec, site: Site, emit: Emit) -> None:
    """What was added while the others were carried over; the files first, whose texts knowledge takes over."""
    left = sorted(_missing(spec, site))
    for done, (kind, tenant, file) in enumerate(left):
        progress(emit, "indexing what came since", done, len(left))
        asked = {"file_id": file or tenant.removeprefix("file-")}
        if kind == "knowledge":
            asked["collection_name"] = tenant
        site.call("POST", "/api/v1/retrieval/process/file", asked, timeout=HOUR)


def _forget(spec: Spec, site: Site) -> None:
    """Vectors of files that were deleted, or taken out of knowledge, while they were carried over go: nobody may find
    them any longer.
    """
    about, store = spec["qdrant"], Store(spec)
    for kind in ("knowledge", "files"):
        more = _indexed(spec, f"{about['new']}_{kind}") - _indexed(spec, f"{about['old']}_{kind}")
        out = _taken_out(spec, more) if kind == "knowledge" else set()
        if out:
            time.sleep(ADDING_S)
            out = _taken_out(spec, out)
        for tenant, file in sorted(more):
            if kind == "knowledge" and not file:  # what describes a collection
                continue
            name = file or tenant.removeprefix("file-")
            if (tenant, file) not in out and site.call("GET", f"/api/v1/files/{name}")[0] != 404:
                continue
            must = [{"key": "tenant_id", "match": {"value": tenant}}]
            must += [{"key": "metadata.file_id", "match": {"value": file}}] if file else []
            store.ask("POST", f"/{about['new']}_{kind}/points/delete?wait=true", {"filter": {"must": must}})


def _missing(spec: Spec, site: Site) -> list[tuple[str, str, str]]:
    """(kind, tenant, file) that the earlier collections hold, Open WebUI still knows, and the new ones lack."""
    about = spec["qdrant"]
    lost: list[tuple[str, str, str]] = []
    for kind in ("knowledge", "files"):
        gone = _indexed(spec, f"{about['old']}_{kind}") - _indexed(spec, f"{about['new']}_{kind}")
        if kind == "knowledge":
            gone -= _taken_out(spec, gone)
        for tenant, file in sorted(gone):
            known = not file or _lives(site, f"/api/v1/files/{file}")
            if kind == "knowledge":
                known = known and _lives(site, f"/api/v1/knowledge/{tenant}")
            if known:
                lost.append((kind, tenant, file))
    return lost


STEPS: dict[str, Any] = {"reindex": reindex}
