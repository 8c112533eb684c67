"""Names of backups: whose they are, how old, and which one of a folder is meant."""

from __future__ import annotations

import os
import re

from .core import Emit, Result, Spec, StepError

# host, the box's own mark (older backups have none), when
NAMED = re.compile(r"ownstack-(.+?)(?:-([0-9a-f]{12}))?-(\d{8}T\d{6}Z)\.tar")


def label(hostname: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", hostname).strip("-") or "box"


def name_of(spec: Spec, stamp: str) -> str:
    mark = f"-{spec['mark']}" if spec.get("mark") else ""
    return f"ownstack-{label(spec['hostname'])}{mark}-{stamp}.tar"


def ours(folder: str, spec: Spec, end: str = "") -> list[str]:
    """The whole backups of this box in a folder, oldest first. spec: hostname, mark. end: of those names, `PART` say.

    Another box may have the same name. So those with this box's mark, or where it has none those of its name without.
    """
    own = spec.get("mark", "")
    names = [name for name in (os.listdir(folder) if os.path.isdir(folder) else []) if name.endswith(end)]
    found = [
        (held[3], name)
        for name in [name.removesuffix(end) for name in names]
        if (held := NAMED.fullmatch(name)) and (held[2] == own if own else name == name_of(spec, held[3]))
    ]
    return [os.path.join(folder, name + end) for _, name in sorted(found)]


def newest(names: list[str], mark: str = "") -> str:
    """Of the names in a folder the newest backup: of the box with that mark, where there is one; "" without any.

    Raises StepError where they are of several boxes.
    """
    boxes: dict[tuple[str, str], tuple[str, str]] = {}
    for name in names:
        held = NAMED.fullmatch(name)
        if held is not None:
            whose = (held[1] if not held[2] else "", held[2] or "")
            boxes[whose] = max(boxes.get(whose, ("", "")), (held[3], name))
    if mark and ("", mark) in boxes:
        return boxes["", mark][1]
    if len(boxes) > 1:
        raise StepError(
            f"there are backups of {len(boxes)} boxes; the newest of each: "
            f"{', '.join(name for _, name in sorted(boxes.values()))}",
            hint="name the file",
            code="several-boxes",
        )
    return next((name for _, name in boxes.values()), "")


def find(spec: Spec, emit: Emit) -> Result:
    """The backup that a path means: itself, or the newest in a folder; empty where there is none.

    spec: path, mark (of the box whose backup is meant before all others). Raises StepError where it is not clear.
    """
    path = spec["path"]
    if os.path.isdir(path):
        name = newest(os.listdir(path), spec.get("mark", ""))
        path = os.path.join(path, name) if name else ""
    return {"changed": False, "data": {"file": path if path and os.path.isfile(path) else ""}}
