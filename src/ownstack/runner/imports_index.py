"""Indexing the documents of an imported Open WebUI: their vectors were left where they came from."""

from __future__ import annotations

import contextlib
import sqlite3

from .core import Emit, Result, Spec, StepError, heartbeat, progress
from .imports_source import address
from .open_webui_memories import memories
from .open_webui_reindex import HOUR, _indexed
from .open_webui_site import Site, kit


def _wanted(database: str) -> tuple[dict[str, tuple[str, str]], set[tuple[str, str]]]:
    """Files with text: id -> (name, text); and (collection, file) of all knowledge."""
    with contextlib.closing(sqlite3.connect(address(database), uri=True, timeout=60)) as held:
        query = "SELECT id, filename, json_extract(data, '$.content') FROM file"
        files = {str(i): (str(n), str(t)) for i, n, t in held.execute(query) if t and str(t).strip()}
        pairs = {(str(k), str(f)) for k, f in held.execute("SELECT knowledge_id, file_id FROM knowledge_file")}
    return files, {pair for pair in pairs if pair[1] in files}


def documents(spec: Spec, emit: Emit) -> Result:
    """Index all knowledge and all files, into collections that are new.

    spec: url, secrets_dir, qdrant {url, secret, new}, database, engine, model (as for `open_webui.reindex`). data:
    files, knowledge, memories (how many arrived), left (names of what could not be indexed). Raises StepError where
    nothing could.
    """
    about, site = spec["qdrant"], kit(spec)
    files, pairs = _wanted(spec["database"])
    known = memories(spec) if spec.get("model") else 0
    if not files:
        return {"changed": bool(known), "data": {"files": 0, "knowledge": 0, "memories": known, "left": []}}
    with heartbeat(emit, "indexing the documents"):
        site.need("POST", "/api/v1/knowledge/reindex", {}, timeout=HOUR)
        site.call("POST", "/api/v1/knowledge/metadata/reindex", {}, timeout=HOUR)
        for done, file in enumerate(sorted(_without(spec, files))):
            progress(emit, "indexing the files of chats", done, len(files))
            _index(site, file, files[file][1])
    left = _without(spec, files)
    lost = pairs - _indexed(spec, f"{about['new']}_knowledge")
    names = sorted({files[file][0] for file in left} | {files[file][0] for _, file in lost})
    if len(left) == len(files):
        raise StepError(
            f"none of the {len(files)} documents could be indexed",
            hint="`ownstack logs open_webui` and `ownstack logs ollama` show why",
            code="reindex-incomplete",
        )
    data = {"files": len(files) - len(left), "knowledge": len(pairs - lost), "memories": known, "left": names}
    return {"changed": True, "data": data}


def _without(spec: Spec, files: dict[str, tuple[str, str]]) -> set[str]:
    there = {tenant for tenant, _ in _indexed(spec, f"{spec['qdrant']['new']}_files")}
    return {file for file in files if f"file-{file}" not in there}


def _index(site: Site, file: str, text: str) -> None:
    """From the upload, as Open WebUI reads it; where that is not there, from the text that it kept."""
    path = "/api/v1/retrieval/process/file"
    if site.call("POST", path, {"file_id": file}, timeout=HOUR)[0] != 200:
        site.call("POST", path, {"file_id": file, "content": text}, timeout=HOUR)
