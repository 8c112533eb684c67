"""Files of ours that somebody edited: noticed by their hashes, shown, and never overwritten silently.

`<var>/files.sha256` has a line `HASH  PATH` for every content that was ever written to a path; the newest is the last.
A file with another content was edited by hand. Where that is so the new version lies beside it, as `PATH.ownstack-new`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from typing import Any

from .core import Emit, Result, Spec, StepError, ids, write_file
from .secrets import MARK, NAME, read_secret

NEW, OLD = ".ownstack-new", ".ownstack-old"
FORGET = "-" * 64  # in the place of a hash: what was written there before does not count


def with_besides(paths: list[str]) -> list[str]:
    """The files, and what may lie beside them: they go together."""
    return [path + end for path in paths for end in ("", NEW, OLD)]


def known(record: str) -> dict[str, set[str]]:
    """Path -> hashes of what was written there."""
    found: dict[str, set[str]] = {}
    try:
        with open(record, encoding="utf-8", errors="surrogateescape") as stream:
            for line in stream:
                digest, _, path = line.rstrip("\n").partition("  ")
                if path and digest == FORGET:
                    found.pop(path, None)
                elif path:
                    found.setdefault(path, set()).add(digest)
    except OSError:
        return {}
    return found


def remember(record: str, path: str, digest: str) -> None:
    """Before the content is written: cut off in between, both the old and the new one are ours."""
    with open(record, "a", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(f"{digest}  {path}\n")
        stream.flush()
        os.fsync(stream.fileno())


def digest(path: str) -> str:
    """The hash of a plain file; empty where there is none, or where it cannot be read."""
    if os.path.islink(path):
        return ""
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError:
        return ""


def is_edited(path: str, written: dict[str, set[str]]) -> bool:
    """Whether the file at `path` has a content that we never wrote there. Of what is not recorded nobody can tell."""
    now = digest(path)
    return bool(now and path in written and now not in written[path])


def edited(record: str) -> list[str]:
    """Paths of the files that somebody edited."""
    written = known(record)
    return sorted(path for path in written if is_edited(path, written))


def put(item: dict[str, Any], data: bytes, record: str, dry: bool) -> bool:
    """Write a file, or beside it when it was edited; whether there was anything to do.

    item: path, mode, owner, group. data: its content. record: see above; empty: nothing is kept.
    """
    path, mode = item["path"], int(item["mode"], 8)
    written = known(record) if record else {}
    kept = bool(record) and digest(path) != hashlib.sha256(data).hexdigest() and is_edited(path, written)
    place = path + NEW if kept else path
    changed = False
    if kept and not right(path, None, mode, item["owner"], item["group"]):
        changed = True
        if not dry:
            _settle(path, mode, item["owner"], item["group"])
    if record and not kept and os.path.lexists(path + NEW):
        changed = True
        if not dry:
            os.unlink(path + NEW)
    if right(place, data, mode, item["owner"], item["group"]):
        return changed
    if not dry:
        if record:
            remember(record, path, hashlib.sha256(data).hexdigest())
        write_file(place, data, mode, *ids(item["owner"], item["group"]))
    return True


def replaces(item: dict[str, Any], data: bytes, record: str) -> bool:
    """Whether `put` would give the file itself another content; a link to one with that content stays, as in `put`."""
    path = item["path"]
    if record and is_edited(path, known(record)):
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read() != data
    except OSError:
        return True


def right(path: str, data: bytes | None, mode: int, owner: str, group: str) -> bool:
    """Whether the file has that content (None: any), mode and owner."""
    try:
        state = os.stat(path)
        with open(path, "rb") as stream:
            held = stream.read()
        uid, gid = ids(owner, group)
    except (OSError, StepError):
        return False
    owned = (uid < 0 or state.st_uid == uid) and (gid < 0 or state.st_gid == gid)
    return (data is None or held == data) and state.st_mode & 0o7777 == mode and owned


def _settle(path: str, mode: int, owner: str, group: str) -> None:
    """An edited file keeps its content; who may read it is not the editor's to say."""
    os.chown(path, *ids(owner, group))
    os.chmod(path, mode)


def differences(spec: Spec, emit: Emit) -> Result:
    """What somebody changed in files: unified diffs, from their version to ours. Reads only.

    spec: secrets_dir, files: [{path, content}]. data: files: [{path, diff}]; of a file with secrets only its name is
    told, and a secret of the box that somebody typed into another file is masked.
    """
    found = []
    values = []
    if os.path.isdir(spec["secrets_dir"]):
        values = [read_secret(spec["secrets_dir"], n) for n in os.listdir(spec["secrets_dir"]) if NAME.fullmatch(n)]
    for item in spec["files"]:
        path, text = item["path"], ""
        if not MARK.search(item["content"]):
            with open(path, encoding="utf-8", errors="replace") as stream:
                theirs = stream.read()
            lines = difflib.unified_diff(
                theirs.splitlines(), item["content"].splitlines(), path, path + NEW, lineterm="", n=1
            )
            text = "\n".join(lines)
            for value in values:
                text = text.replace(value, "***") if value else text
        found.append({"path": path, "diff": text})
    return {"changed": False, "data": {"files": found}}


def give_up(spec: Spec, emit: Emit) -> Result:
    """Let edited files be overwritten by the next writer; each is kept as `PATH.ownstack-old`. spec: record, paths."""
    taken = []
    for path in spec["paths"]:
        if not is_edited(path, known(spec["record"])):
            continue
        state = os.stat(path)
        with open(path, "rb") as stream:
            data = stream.read()
        owner = (state.st_uid, state.st_gid) if os.geteuid() == 0 else (-1, -1)
        write_file(path + OLD, data, state.st_mode & 0o7777, *owner)
        remember(spec["record"], path, FORGET)  # of what is not recorded nobody says that it was edited
        taken.append(path)
    return {"changed": bool(taken), "data": {"paths": taken}}


STEPS: dict[str, Any] = {"differences": differences, "give_up": give_up}
