"""A document that was there before a change, found again by Open WebUI's own search. Reads only.

What `verify` finds it has uploaded itself a moment before, which says nothing of what lay there.
"""

from __future__ import annotations

from typing import Any

from .core import Emit, Result, Spec, StepError
from .open_webui_site import Site, kit
from .open_webui_vectors import Point, Store

KINDS = ("knowledge", "files")
LOOK = 50  # points among which one is chosen
NEAREST = 5
PATIENCE_S = 600.0  # the engine may have to load the embedding model


def again(spec: Spec, emit: Emit) -> Result:
    """Ask for a text that some document has, in the document's own words.

    spec: url, secrets_dir, qdrant {url, secret, prefix}, point ({kind, id}, as an earlier look chose it; may be left
    out). data: point (empty where there is no document), found, refused (the kit's account may not look there, so that
    nobody can tell). The text is in no specification, and not told.
    """
    store, prefix = Store(spec), spec["qdrant"]["prefix"]
    point = spec.get("point") or _chosen(store, prefix)
    found = _found(store, kit(spec), prefix, point) if point else False
    return {"changed": False, "data": {"point": point, "found": bool(found), "refused": found is None}}


def _chosen(store: Store, prefix: str) -> dict[str, Any]:
    kinds = store.kinds(prefix)
    for kind in (kind for kind in KINDS if kind in kinds):
        for point in next(store.pages(f"{prefix}_{kind}", limit=LOOK)):
            if _place(point):
                return {"kind": kind, "id": point["id"]}
    return {}


def _place(point: Point) -> tuple[str, str] | None:
    """The collection as Open WebUI names it, and the text; None for what is part of no file."""
    payload = point.get("payload") or {}
    collection, text = str(payload.get("tenant_id") or ""), str(payload.get("text") or "").strip()
    file = (payload.get("metadata") or {}).get("file_id")
    return (collection, text) if collection and text and file else None


def _found(store: Store, site: Site, prefix: str, point: dict[str, Any]) -> bool | None:
    asked = {"ids": [point["id"]], "with_payload": True}
    rows = store.ask("POST", f"/{prefix}_{point['kind']}/points", asked)
    place = _place(rows[0]) if rows else None
    if place is None:
        return False
    collection, text = place
    body = {"collection_names": [collection], "query": text, "k": NEAREST}
    path = "/api/v1/retrieval/query/collection"
    status, answer = site.call("POST", path, body, timeout=PATIENCE_S)
    if status in (401, 403):
        return None
    if status != 200:
        raise StepError(f"Open WebUI answered {status} to POST {path}", code="open-webui-refused")
    groups = (answer or {}).get("documents") or []
    return any(str(one).strip() == text for group in groups for one in group)


STEPS: dict[str, Any] = {"again": again}
