"""The models' store on another disk: copied and compared while the engine serves, taken away when the new one does."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

from .core import Emit, Result, Spec, StepError, ids, progress, sync_folder
from .fetch import sha256_of
from .ollama_pull import SPARE, _states

PARTS = ("blobs", "manifests")
OWN = (*PARTS, "metadata")  # the engine makes the last one anew
BLOCK = 1 << 20
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def files_of(store: str) -> Iterator[tuple[str, int]]:
    """Relative paths and sizes of what a store holds, manifests last: a model is whole or not there."""
    for part in PARTS:
        for folder, below, names in os.walk(os.path.join(store, part)):
            below.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                if not name.endswith((".part", ".new")) and os.path.isfile(path) and not os.path.islink(path):
                    yield os.path.relpath(path, store), os.path.getsize(path)


def copy(spec: Spec, emit: Emit) -> Result:
    """Copy a store and compare every file with its hash or its source. Goes on where it was cut off.

    spec: from, to, owner, group, bound (the engine's unit brings `to` to it), run_dir, later (either may have been
    serving since, and what is newer stays; an earlier `drop` may have begun). Dry: data says what there is to copy.
    data: files, bytes (copied now), held (bytes of the whole store), free. Raises StepError where a pull goes on, the
    engine's account may not come there, the disk is too small, or bytes differ.
    """
    source, target = os.path.realpath(spec["from"]), os.path.realpath(spec["to"])
    _check(spec, source, target)
    have = list(files_of(source))
    todo = [(path, size) for path, size in have if not _there(spec, source, target, path, size)]
    data = {"files": len(todo), "bytes": sum(size for _, size in todo), "held": sum(size for _, size in have)}
    data["free"] = shutil.disk_usage(_existing(target)).free
    if data["bytes"] + SPARE > data["free"]:
        needed = f"{data['bytes'] / 1e9:.1f} GB and 1 to spare"
        raise StepError(
            f"{target} has {data['free'] / 1e9:.1f} GB free, the models need {needed}",
            hint="free disk space there, or choose another disk; nothing was moved",
            code="disk-full",
        )
    if spec.get("dry"):
        return {"changed": bool(todo), "data": data}
    account = ids(spec.get("owner", ""), spec.get("group", ""))
    try:
        _folder(target, target, account)
        _all(source, target, todo if spec.get("later") else have, todo, account, emit)
    except OSError as error:
        raise StepError(
            f"{error.filename or target}: {error.strerror}; nothing was switched",
            hint=f"see that {target} can be written to, then run the same command again: it goes on from there",
            code="store-write",
        ) from error
    return {"changed": bool(todo), "data": data}


def _all(
    source: str,
    target: str,
    have: list[tuple[str, int]],
    todo: list[tuple[str, int]],
    account: tuple[int, int],
    emit: Emit,
) -> None:
    """Copy what is not there, and compare all."""
    whole, done = sum(size for _, size in todo), 0
    for path, size in have:
        if (path, size) in todo or path.startswith("manifests"):
            _one(os.path.join(source, path), os.path.join(target, path), target, account)
        _compare(os.path.join(source, path), os.path.join(target, path))
        done += size if (path, size) in todo else 0
        progress(emit, os.path.basename(path)[:19], done, whole)


def drop(spec: Spec, emit: Emit) -> Result:
    """Take away the store that was moved. spec: from, to, later (as for `copy`).

    Raises StepError, and removes nothing, where `to` lacks a file of it.
    """
    source, target = os.path.realpath(spec["from"]), os.path.realpath(spec["to"])
    if source == target:
        raise StepError(f"{source} is the store that serves", code="store-same")
    have = list(files_of(source))
    for path, size in have:
        if not _there(spec, source, target, path, size):
            raise StepError(
                f"{os.path.join(target, path)} is missing or has another size: {source} is kept",
                hint=f"`ownstack models move {target}` again",
                code="store-differs",
            )
    if not spec.get("dry"):
        for part in OWN:
            shutil.rmtree(os.path.join(source, part), ignore_errors=True)
        if os.path.isdir(source) and not os.listdir(source):
            os.rmdir(source)
    return {"changed": bool(have), "data": {"files": len(have), "bytes": sum(size for _, size in have)}}


def _check(spec: Spec, source: str, target: str) -> None:
    """Raises StepError where moving makes no sense or is not safe now."""
    if not os.path.isdir(os.path.join(source, "blobs")) and not spec.get("later"):
        raise StepError(f"{source} holds no models", hint="`ownstack up` pulls them", code="store-empty")
    for part in OWN:
        _no_link(os.path.join(source, part))
        _no_link(os.path.join(target, part))
    inside = os.path.commonpath([source, target])
    if inside in (source, target):
        raise StepError(f"{target} and {source} are one folder or lie in each other", code="store-same")
    going = [state["model"] for state in _states(spec["run_dir"]) if state["alive"]]
    if going:
        raise StepError(
            f"{going[0]} is being pulled",
            hint="wait until `ownstack status` says that it is there",
            code="pull-goes-on",
        )
    strange = [name for name in (os.listdir(target) if os.path.isdir(target) else []) if name not in OWN]
    if strange and strange != ["lost+found"]:
        raise StepError(
            f"{target} holds {strange[0]} and is not a models' store",
            hint="name an empty folder, or one that does not exist yet",
            code="store-foreign",
        )
    closed = "" if spec.get("bound") else _closed(spec.get("owner", ""), target)
    if closed:
        raise StepError(
            f"the account {spec['owner']}, under which the engine runs, may not enter {closed}",
            hint=f"`chmod o+x {closed}` lets it, or name another folder; nothing was moved",
            code="store-closed",
        )


def _closed(owner: str, path: str) -> str:
    """The first folder on the way to a path that an account may not enter; empty where it may, or runs this itself."""
    if not owner or os.geteuid() != 0:
        return ""
    uid, gid = ids(owner, owner)
    way, closed = _existing(path), ""
    while way != "/" and not _enters(way, uid, gid):
        way, closed = os.path.dirname(way), way
    return closed


def _enters(path: str, uid: int, gid: int) -> bool:
    """Asked as that account: modes alone do not say it, there may be access lists."""
    return subprocess.run(["test", "-x", path], user=uid, group=gid, extra_groups=[], check=False).returncode == 0


def _no_link(path: str) -> None:
    """Raises StepError where a folder of a store is a link or lies behind one; the store itself may be one."""
    if os.path.realpath(path) != path:
        raise StepError(
            f"{path} is a link, or lies behind one: what it names may be another's",
            hint="put the folder itself in its place; the store as a whole may be a link",
            code="store-link",
        )


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def _there(spec: Spec, source: str, target: str, path: str, size: int) -> bool:
    """Whether the new store has a file; later, a manifest as old as that or newer."""
    old, new = os.path.join(source, path), os.path.join(target, path)
    if not spec.get("later") or not path.startswith("manifests"):
        return _size(new) == size
    return _size(new) >= 0 and os.stat(new).st_mtime_ns >= os.stat(old).st_mtime_ns


def _folder(path: str, store: str, account: tuple[int, int]) -> None:
    """Make a folder and those above it; the store and what is below it belong to the engine's account."""
    if os.path.isdir(path):
        return
    _folder(os.path.dirname(path), store, account)
    os.mkdir(path)
    os.chmod(path, 0o711 if path == store else 0o755)
    if path == store or path.startswith(f"{store}/"):
        os.chown(path, *account)


def _one(source: str, target: str, store: str, account: tuple[int, int]) -> None:
    """Copy a file under a temporary name, and give it its own when it is on the disk. No link is followed: both stores
    belong to the engine's account, and this may run as root.
    """
    _no_link(os.path.dirname(target))
    _folder(os.path.dirname(target), store, account)
    new = f"{target}.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    with (
        open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as reading,
        open(os.open(new, NEW, 0o600), "wb") as writing,
    ):
        shutil.copyfileobj(reading, writing, BLOCK)
        writing.flush()
        os.fsync(writing.fileno())
        os.fchmod(writing.fileno(), os.fstat(reading.fileno()).st_mode & 0o777)
        os.fchown(writing.fileno(), *account)
        held = os.fstat(reading.fileno())
    os.utime(new, ns=(held.st_atime_ns, held.st_mtime_ns), follow_symlinks=False)  # Ollama lists models by these times
    os.rename(new, target)
    sync_folder(os.path.dirname(target))


def _compare(source: str, target: str) -> None:
    """Raises StepError, and takes the copy away, where its bytes are not those of its name or of its source."""
    name = os.path.basename(target)
    found = sha256_of(target)
    wanted = name[7:] if name.startswith("sha256-") else sha256_of(source)
    if found != wanted:
        os.unlink(target)
        raise StepError(
            f"{target} has other bytes than it should have: the copy was taken away, and nothing was switched",
            hint="check the disk that it lies on, then run the same command again",
            code="store-differs",
        )
