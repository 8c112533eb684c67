"""Releases: made under a temporary name, complete or not there, switched by a link."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from .core import Emit, Result, Spec, StepError, progress, read_json, sync_folder, write_json
from .fetch import fetch, sha256_of
from .unpack import unpack

MARK = ".ownstack-release.json"
FEW = 500  # files of a release that is looked through at each run


def complete(release: str) -> bool:
    """A release carries its mark only when everything in it was verified and unpacked."""
    return os.path.exists(os.path.join(release, MARK))


def weight(folder: str, most: int = FEW) -> list[int] | None:
    """Number and bytes of the files in a release; None where there are more than `most`: to count takes too long."""
    files = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            if name == MARK or name.endswith(".pyc"):
                continue
            files += 1
            size += os.lstat(os.path.join(place, name)).st_size
            if files > most:
                return None
    return [files, size]


def sound(release: str, mark: dict[str, Any]) -> bool:
    """Whether a release of few files is as large as it was made. Large ones are not looked through."""
    return not mark.get("weight") or weight(release) == mark["weight"]


@contextlib.contextmanager
def making(release: str, about: dict[str, Any]) -> Iterator[str]:
    """Give a folder to fill; on success it becomes `release` by one rename, else nothing is left."""
    parent = os.path.dirname(release)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    for name in os.listdir(parent):
        if name.startswith(f".{os.path.basename(release)}."):
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f".{os.path.basename(release)}.", dir=parent)
    os.chmod(folder, 0o755)  # noqa: S103 - programs are for all accounts
    try:
        yield folder
        write_json(os.path.join(folder, MARK), {**about, "weight": weight(folder)})
        if os.path.isdir(release):
            shutil.rmtree(release)
        os.rename(folder, release)
        sync_folder(parent)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        if error.errno == 28:
            raise StepError(
                f"no space left in {parent}", hint="free disk space and run again", code="disk-full"
            ) from error
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def switch(current: str, release: str) -> bool:
    """Point `current` at `release` by renaming a new link over it; False where it already does."""
    wanted = os.path.relpath(release, os.path.dirname(current))
    if os.path.islink(current) and os.readlink(current) == wanted:
        return False
    os.makedirs(os.path.dirname(current), exist_ok=True)
    new = f"{current}.new"
    if os.path.lexists(new):
        os.unlink(new)
    os.symlink(wanted, new)
    os.replace(new, current)
    sync_folder(os.path.dirname(current))
    return True


def release(spec: Spec, emit: Emit) -> Result:
    """Fetch, verify, unpack and switch one release.

    spec: name, version, release, current, mirror, and `parts`: a list of {url | path, sha256, size, unpack}.
    """
    rules = [part["unpack"] for part in spec["parts"]]
    mark = read_json(os.path.join(spec["release"], MARK), {})
    # other parts of the same archive are wanted when the hardware has changed
    held = complete(spec["release"]) and mark.get("unpack", rules) == rules and sound(spec["release"], mark)
    linked = not spec.get("current") or (
        os.path.islink(spec["current"]) and os.path.realpath(spec["current"]) == os.path.realpath(spec["release"])
    )
    if (held and linked) or spec.get("dry"):
        return {"changed": not (held and linked), "data": {"needs_files": not held}}
    if not held:
        about = {"name": spec["name"], "version": spec["version"], "sha256": _hashes(spec), "unpack": rules}
        with making(spec["release"], about) as folder:
            for part in spec["parts"]:
                archive = _bring(part, spec, emit)
                progress(emit, f"unpacking {spec['name']} {spec['version']}")
                unpack(archive, folder, part["unpack"])
        for part in spec["parts"]:
            if "path" not in part:
                os.unlink(_work(spec, part))
    if spec.get("current"):
        switch(spec["current"], spec["release"])
    return {"changed": True, "data": {"release": spec["release"]}}


def _hashes(spec: Spec) -> list[str]:
    return [part["sha256"] for part in spec["parts"]]


def _work(spec: Spec, part: Spec) -> str:
    return str(os.path.join(spec["work"], part["sha256"]))


def _bring(part: Spec, spec: Spec, emit: Emit) -> str:
    if "path" in part:
        got = sha256_of(part["path"])
        if got != part["sha256"]:
            raise StepError(
                f"the uploaded {spec['name']} has sha256 {got}, expected {part['sha256']}",
                hint="run `ownstack up` again",
                code="fetch-hash",
            )
        return str(part["path"])
    dest = _work(spec, part)
    fetch(part["url"], dest, part["sha256"], emit, mirror=spec.get("mirror", ""), size=part.get("size"))
    return dest


def remove(spec: Spec, emit: Emit) -> Result:
    """Remove folders and files that the kit made. spec: paths."""
    there = [path for path in spec["paths"] if os.path.lexists(path)]
    if not spec.get("dry"):
        for path in there:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    return {"changed": bool(there), "data": {"removed": there}}


def held(spec: Spec, emit: Emit) -> Result:
    """The marks of all complete releases below `opt`. spec: opt."""
    found = {}
    opt = spec["opt"]
    for component in sorted(os.listdir(opt)) if os.path.isdir(opt) else []:
        base = os.path.join(opt, component, "releases")
        for name in sorted(os.listdir(base)) if os.path.isdir(base) else []:
            mark = read_json(os.path.join(base, name, MARK))
            if mark is not None:
                found[os.path.join(base, name)] = mark
    return {"changed": False, "data": found}


STEPS = {"release": release, "remove": remove, "held": held}
