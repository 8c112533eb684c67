"""What a service that runs takes out of a backup itself: Qdrant its vectors, the engine's store its models."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterable
from typing import Any

from . import backup_parts as parts
from . import ollama_api as api
from .core import Emit, Spec, StepError, progress
from .fetch import sha256_of
from .http import send_file
from .secrets import read_secret

HINT = "`ownstack up` puts back what was there"


def load_vectors(spec: Spec, about: Any, folder: str, emit: Emit) -> dict[str, int]:
    """Upload collections into an empty Qdrant; how many points each has then. `about`: as a backup has it, or None.

    spec: url, secrets_dir. `folder` holds the snapshots. Raises StepError where points are missing.
    """
    about = about or {"collections": [], "aliases": []}
    url, headers = spec["url"], {"api-key": read_secret(spec["secrets_dir"], "qdrant_api_key")}
    counts = {}
    for row in about["collections"]:
        name, path = row["collection"], os.path.join(folder, row["member"])
        progress(emit, f"vectors of {name}")
        rule = f"priority=snapshot&wait=true&checksum={sha256_of(path)}"
        at = f"{url}/collections/{urllib.parse.quote(name, safe='')}/snapshots/upload?{rule}"
        status, answer = send_file(at, path, headers)
        if status != 200:
            raise StepError(f"Qdrant refused the vectors of {name} ({status}): {str(answer)[:300]}", hint=HINT)
        counts[name] = parts.points(url, name, headers)
        least, most = row["points"]
        if not least <= counts[name] <= most:
            raise StepError(f"{name} has {counts[name]} vectors, the backup was made at {least} to {most}", hint=HINT)
    actions = [{"create_alias": row} for row in about["aliases"]]
    if actions:
        parts.qdrant("POST", url, "/collections/aliases", headers, {"actions": actions})
    return counts


def load_models(spec: Spec, held: Iterable[dict[str, Any]], staging: str, emit: Emit) -> list[dict[str, str]]:
    """Put models of a backup into the engine's store. spec: folder (the store), url. `staging`: where their files lie.

    [{name, state: added, there, not in the backup}]
    """
    from .ollama_pull import adopt

    there = api.listed(spec["url"])
    rows = []
    for row in held:
        name = api.parse(row["name"])
        if name.short in there:
            rows.append({"name": row["name"], "state": "there"})
        elif not row.get("files"):
            rows.append({"name": row["name"], "state": "not in the backup"})
        else:
            progress(emit, f"the model {row['name']}")
            with open(os.path.join(staging, "manifests", name.path), "rb") as stream:
                adopt(staging, stream.read(), spec["folder"], name)
            rows.append({"name": row["name"], "state": "added"})
    return rows
