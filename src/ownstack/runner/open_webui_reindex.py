"""Indexing the documents of Open WebUI anew, into the collections of another embedding model.

Open WebUI answers "done" to a request for this even where files failed, so what the earlier collections hold is
compared with what the new ones got: knowledge by collection and file, and the files of chats.
"""

from __future__ import annotations

from typing import Any

from .core import Emit, Result, Spec, StepError, heartbeat, progress
from .http import request
from .open_webui_site import Site, kit
from .secrets import read_secret

PAGE = 1000
HOUR = 3600.0


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


def reindex(spec: Spec, emit: Emit) -> Result:
    """Index all knowledge and all files of chats anew.

    spec: url, secrets_dir, qdrant {url, secret, old, new}: the beginnings of the collections' names.
    data: knowledge and files, how many (collection, file) pairs and files were indexed again.
    Raises StepError when something that is still there did not arrive.
    """
    about = spec["qdrant"]
    if spec.get("dry"):
        return {"changed": True, "data": {}}
    site = kit(spec)
    with heartbeat(emit, "indexing the documents anew"):
        site.need("POST", "/api/v1/knowledge/reindex", {}, timeout=HOUR)
        site.call("POST", "/api/v1/knowledge/metadata/reindex", {}, timeout=HOUR)
        files = {tenant for tenant, _ in _indexed(spec, f"{about['old']}_files")}
        here = {tenant for tenant, _ in _indexed(spec, f"{about['new']}_files")}
        for done, tenant in enumerate(sorted(files - here)):
            progress(emit, "indexing the files of chats anew", done, len(files))
            file = tenant.removeprefix("file-")
            if _lives(site, f"/api/v1/files/{file}"):
                site.call("POST", "/api/v1/retrieval/process/file", {"file_id": file}, timeout=HOUR)
    missing = _missing(spec, site)
    if missing:
        raise StepError(
            f"{len(missing)} of the documents could not be indexed anew: {', '.join(missing[:5])}",
            hint="`ownstack logs open_webui` and `ownstack logs ollama` show why",
            code="reindex-incomplete",
        )
    data = {"knowledge": len(_indexed(spec, f"{about['new']}_knowledge")), "files": len(files)}
    return {"changed": True, "data": data}


def _missing(spec: Spec, site: Site) -> list[str]:
    """What the earlier collections hold, Open WebUI still knows, and the new ones lack."""
    about = spec["qdrant"]
    lost: list[str] = []
    for kind in ("knowledge", "files"):
        gone = _indexed(spec, f"{about['old']}_{kind}") - _indexed(spec, f"{about['new']}_{kind}")
        for tenant, file in sorted(gone):
            known = not file or _lives(site, f"/api/v1/files/{file}")
            if kind == "knowledge":
                known = known and _lives(site, f"/api/v1/knowledge/{tenant}")
            if known:
                lost.append(file or tenant)
    return sorted(set(lost))


STEPS: dict[str, Any] = {"reindex": reindex}
