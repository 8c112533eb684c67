"""Imports from elsewhere as specifications of runner steps. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

from ..kit import activate
from ..plan import VECTORS, Plan
from . import backups

KINDS = ("open_webui", "n8n")


def spec(plan: Plan, path: str, key_file: str = "") -> dict[str, Any]:
    """The specification that the steps of an import share: `imports.*`, and those of `restore` that it uses."""
    activate()
    from roles import n8n, open_webui

    found: dict[str, Any] = {
        **backups.restore_spec(plan, "", {}),
        "path": path,
        "services": {name: plan.layout.data(name) for name in KINDS if plan.has(name)},
        "units": [],
    }
    if plan.has("open_webui"):
        found["open_webui"] = {
            "program": plan.layout.current("open_webui"),
            "values": open_webui.configure_spec(plan)["values"],
            "full": bool(plan.role("open_webui").settings.get("full")),
        }
    if plan.has("n8n"):
        found["n8n"] = {
            "program": plan.layout.current("n8n"),
            "node": plan.layout.current("node"),
            "record": n8n.record_path(plan),
        }
    if key_file:
        found["key_file"] = key_file
    return found


def vectors_for(plan: Plan, stamp: str) -> str:
    """The beginning of the names of the collections into which imported documents go: one that never was."""
    mark = hashlib.sha256(f"{plan.vectors} {stamp}".encode()).hexdigest()[:8]
    return f"{VECTORS}-import-{mark}"


def documents_spec(plan: Plan) -> dict[str, Any]:
    """The specification of `imports.documents`."""
    activate()
    from roles import open_webui

    return {
        **open_webui.identity(plan),
        "qdrant": {"url": open_webui.qdrant_url(plan), "secret": "qdrant_api_key", "new": plan.vectors},
        **open_webui.embedding(plan),
    }


def drop_spec(plan: Plan, prefix: str) -> dict[str, Any]:
    """The specification of `qdrant.drop` for the collections of one time."""
    return {"url": backups.qdrant_url(plan), "secrets_dir": plan.layout.secrets, "prefixes": [prefix]}


def stopped(plan: Plan, kind: str) -> list[str]:
    return [plan.layout.unit(kind)]
