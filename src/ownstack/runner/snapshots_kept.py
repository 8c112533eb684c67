"""The snapshots that can be gone back to: which there are, and how they and the programs before them go."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from .backup import alone
from .core import Emit, Result, Spec, StepError, read_json
from .restore import _remove
from .snapshots_aside import drop_replaced, replaced

PENDING = ("taking", "taken", "passed")  # states in which an upgrade or a rollback has not ended
ABOUT = "snapshot.json"
AGAIN = "`ownstack up` puts back what was there"


def folder_of(spec: Spec, identity: str) -> str:
    return os.path.join(spec["var"], "snapshots", os.path.basename(identity))


def kept(spec: Spec) -> list[dict[str, Any]]:
    """The whole snapshots, oldest first."""
    top = os.path.join(spec["var"], "snapshots")
    found = [read_json(os.path.join(top, name, ABOUT)) for name in (os.listdir(top) if os.path.isdir(top) else [])]
    return sorted((about for about in found if about), key=lambda about: float(about["created"]))


def held(spec: Spec, emit: Emit) -> Result:
    """The snapshots that can be gone back to, and what ways back have kept aside. spec: var.

    data: snapshots [{id, role, created, from, to, bytes, ..}], replaced [{id, role, created, from, to, paths, bytes}].
    """
    rows = []
    for about in kept(spec):
        told = {
            key: about[key] for key in ("id", "run", "kind", "role", "created", "from", "to", "plan", "counts", "links")
        }
        rows.append({**told, "folder": folder_of(spec, about["id"]), "bytes": about["bytes"]})
    return {"changed": False, "data": {"snapshots": rows, "replaced": replaced(spec["var"])}}


def drop(spec: Spec, emit: Emit) -> Result:
    """Remove snapshots, and what ways back to them have kept aside. spec: var, state, lock, ids."""
    with alone(spec["lock"]):
        now: dict[str, Any] = read_json(spec["state"], {})
        if now.get("status") in PENDING and now["id"] in spec["ids"]:
            raise StepError("an upgrade may still go back to it", hint=AGAIN, code="upgrade-pending")
        there = [path for path in (folder_of(spec, one) for one in spec["ids"]) if os.path.isdir(path)]
        for path in there:
            discard(path)
        for one in spec["ids"]:
            there += drop_replaced(folder_of(spec, one))
    return {"changed": bool(there), "data": {"removed": there}}


def forget(spec: Spec, emit: Emit) -> Result:
    """Remove all that ways back have kept aside, wherever it lies: before the box itself goes. spec: var."""
    rows = replaced(spec["var"])
    paths = [path for row in rows for path in row["paths"]]
    if not spec.get("dry"):
        for row in rows:
            drop_replaced(folder_of(spec, row["id"]))
    return {"changed": bool(paths), "data": {"removed": paths}}


def discard(folder: str) -> None:
    """A snapshot first stops being one, then goes."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, ABOUT))
    _remove(folder)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(folder))


def prune(opt: str, before: dict[str, str]) -> list[str]:
    """Of each component that moved keep two releases: today's and the one it came from."""
    removed = []
    used = {os.path.realpath(path) for path in _interpreters(opt)}
    for name, target in before.items():
        base = os.path.join(opt, name)
        current = os.path.realpath(os.path.join(base, "current"))
        staying = {current, os.path.realpath(os.path.join(base, target))}
        folder = os.path.join(base, "releases")
        if len(staying) < 2 or not os.path.isdir(folder):
            continue
        for one in sorted(os.listdir(folder)):
            path = os.path.realpath(os.path.join(folder, one))
            if path not in staying and not any(other.startswith(f"{path}/") for other in used):
                _remove(path)
                removed.append(path)
    return removed


def _interpreters(opt: str) -> Iterator[str]:
    """The Pythons that environments of programs were made with."""
    for component in os.listdir(opt) if os.path.isdir(opt) else []:
        folder = os.path.join(opt, component, "releases")
        for one in os.listdir(folder) if os.path.isdir(folder) else []:
            path = os.path.join(folder, one, "bin", "python")
            if os.path.islink(path):
                yield path
