"""Looking into a backup: opened with its key, every part of it read, its databases and vectors opened."""

from __future__ import annotations

import json
import os
import re
import tarfile
import tempfile
from typing import Any

from . import backup_parts as parts
from .backup_file import BOX, Reader, damaged, filling, opened
from .core import Emit, Result, Spec, progress
from .counted import OF_A_BOX
from .sealed import can_open, unseal

N8N_KEY = "n8n_encryption_key"
VECTORS = re.compile(r"[a-z0-9-]*")


def verify(spec: Spec, emit: Emit) -> Result:
    """Open a backup and check everything in it. Changes nothing.

    spec: file, work, age, and passphrase_file or identity_file where the secrets are to be opened too.
    """
    return {"changed": False, "data": look(spec, emit)}


def look(spec: Spec, emit: Emit) -> dict[str, Any]:
    """What a backup is and holds, after every part of it was checked. Raises StepError for the first wrong one.

    Without a key the hashes of all parts are compared; with one their contents are looked at too.
    """
    with opened(spec["file"]) as held:
        progress(emit, "reading every part")
        held.check()
        box: dict[str, Any] = {}
        if can_open(spec):
            unlock(held, spec)
            contents(held, spec["work"], emit)
            known = json.loads(held.read(BOX))
            plan = known["plan"]
            own = own_collections(held.inside["vectors"], held.manifest["services"], known)
            box = {"vectors": plan.get("vectors", ""), "models": plan["models"], "imported": known.get("imported", {}),
                   "old_vectors": known.get("old_vectors", []), "own_collections": own}  # fmt: skip
            for name in (box["vectors"], *box["old_vectors"]):  # into the configuration of Open WebUI, and to be pruned
                if not VECTORS.fullmatch(name):
                    raise damaged(held.path, f"{name!r} is no beginning of a collection's name")
        about = {key: value for key, value in held.manifest.items() if key not in ("files", "schema", "settings")}
        parts_held = len(held.files)
    size = os.path.getsize(spec["file"])
    return {**about, "file": spec["file"], "bytes": size, "parts": parts_held, "opened": can_open(spec), "box": box}


def unlock(held: Reader, spec: Spec) -> None:
    """Open what only the key opens. Raises StepError where the key does not fit, or n8n's own key is not there."""
    held.unlock(spec, unseal(spec, held.sealed()))
    if "n8n" in held.manifest["services"] and N8N_KEY not in held.inside["secrets"]:
        raise damaged(held.path, f"the secret {N8N_KEY} is missing in it")


def contents(held: Reader, folder: str, emit: Emit) -> None:
    """Look into every part of a backup that was unlocked."""
    vectors = (held.inside["vectors"] or {}).get("collections", [])
    with filling(f"{folder}/verify"), tempfile.TemporaryDirectory(dir=folder, prefix="verify-") as work:
        for member in sorted(held.inside["tables"]):
            progress(emit, f"checking {member}")
            _database(held, member, held.inside["tables"][member], os.path.join(work, "database"))
        for row in vectors:
            progress(emit, f"checking the vectors of {row['collection']}")
            _snapshot(held, row["member"], os.path.join(work, "snapshot"))
    done = {*held.inside["tables"], *[row["member"] for row in vectors]}
    for name, about in held.index.items():
        if about["part"] and name not in done:
            held.copy(name, None)
            if name.startswith("models/blobs/") and about["sha256"] != name[-64:]:
                raise damaged(held.path, f"{name} is not the file that its name says")


def _database(held: Reader, member: str, tables: dict[str, int], path: str) -> None:
    with open(path, "wb") as out:
        held.copy(member, out)
    wrong = parts.examine(path)
    if wrong:
        raise damaged(held.path, f"{member}: {wrong}")
    if parts.rows(path) != tables:
        raise damaged(held.path, f"{member} holds other rows than the manifest says")
    os.unlink(path)


def _snapshot(held: Reader, member: str, path: str) -> None:
    """A snapshot of Qdrant is a tar of its segments: every byte of it can be read."""
    with open(path, "wb") as out:
        held.copy(member, out)
    try:
        with tarfile.open(path) as tar:
            names = [one.name for one in tar if not one.isfile() or _read(tar, one)]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise damaged(held.path, f"{member}: {error}") from error
    if not names:
        raise damaged(held.path, f"{member} is empty")
    os.unlink(path)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    stream = tar.extractfile(member)
    while stream is not None and stream.read(1 << 20):
        pass
    return True


def own_collections(vectors: Any, services: list[str], known: dict[str, Any]) -> list[str]:
    """Collections, and further names for some, that are not Open WebUI's: only its vectors can be made anew from what
    else is in a backup.

    vectors: as `backup_parts.add_vectors` has them, or None. known: the box's manifest.
    """
    ours = [known["plan"].get("vectors", ""), *known.get("old_vectors", ())] if "open_webui" in services else []
    begins = tuple(f"{name}_" for name in ours if name)
    names = [row["collection"] for row in vectors["collections"]] if vectors else []
    names += [row["alias_name"] for row in vectors["aliases"]] if vectors else []
    return sorted(name for name in names if not name.startswith(begins))


def holds(about: dict[str, Any]) -> dict[str, int]:
    """What people would count in a backup."""
    found = {}
    for service, table, what in OF_A_BOX:
        for member, tables in about["tables"].items():
            if member.startswith(f"data/{service}/") and table in tables:
                found[what] = tables[table]
    if about["vectors"]:
        found["vectors"] = sum(row["points"][0] for row in about["vectors"]["collections"])
    return found
