"""The user's folder of bundles: each in a folder of its serial, with the links `current` and `previous`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import RunError
from ..kit import DataInUse, bundles, data_in_use, forget
from . import BundleError
from .check import Bundle, check, write
from .files import ABOUT


@contextlib.contextmanager
def laid_out(bundle: Bundle) -> Iterator[Path]:
    """The bundle's files in a folder beside those in use, looked at whole; gone afterwards unless it was kept."""
    root = bundles()
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root), tempfile.TemporaryDirectory(prefix=".new-", dir=root) as name:
        folder = Path(name) / "data"
        folder.mkdir(mode=0o755)
        write(bundle.files, folder)
        (folder / ABOUT).write_text(json.dumps(bundle.about, indent=1) + "\n", encoding="utf-8")
        check(folder, bundle.serial)
        yield folder


def newer(bundle: Bundle) -> bool:
    """Whether the bundle is newer than what is in use; False: it is the same. Raises BundleError for older ones."""
    now = data_in_use()
    if bundle.serial < now.serial:
        raise BundleError(
            f"the bundle {bundle.serial} is older than the data in use ({now.serial})",
            "nothing was changed; `ownstack upgrade --self --undo` goes back to what was in use before",
            "older",
        )
    if bundle.serial > now.serial:
        return True
    if now.folder is not None and json.loads((now.folder / ABOUT).read_bytes())["files"] != bundle.about["files"]:
        raise BundleError(
            f"the bundle {bundle.serial} is not the one of the same number that is in use",
            "nothing was changed; ask its publisher, every bundle has a number of its own",
            "broken",
        )
    return False


def keep(folder: Path, serial: int) -> Path:
    """Put a folder that `laid_out` gave in use, in one step; what was in use is kept as `previous`. Gives its path."""
    root = bundles()
    place = root / str(serial)
    before = _target(root / "current")
    for path in [folder, *folder.rglob("*")]:
        _sync(path)
    if place.exists():  # left by an undo
        shutil.rmtree(place)
    folder.rename(place)
    _sync(root)
    if before is not None and before != place:
        _point(root / "previous", before)
    _point(root / "current", place)
    kept = {place, _target(root / "previous")}
    for other in root.iterdir():
        if other.name.isdigit() and other not in kept:
            shutil.rmtree(other)
    forget()
    return place


def undo() -> DataInUse:
    """Go back to the bundle before, or to the program's own data. Raises RunError where no bundle is in use."""
    root = bundles()
    now = _target(root / "current")
    if now is None:
        raise RunError(
            "no bundle is in use: the program's own data are",
            hint="`ownstack upgrade --self` takes a newer one",
            code="bundle-none",
        )
    with _alone(root):
        before = _target(root / "previous")
        (root / "previous").unlink(missing_ok=True)
        if before is not None and before.is_dir():
            _point(root / "current", before)
        else:
            (root / "current").unlink()
        shutil.rmtree(now, ignore_errors=True)
    forget()
    return data_in_use()


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One at a time; the lock ends with its process. What a killed one left is taken away."""
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError("another `ownstack upgrade --self` is going on", hint="wait for it", code="busy") from error
        for left in root.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _target(link: Path) -> Path | None:
    return link.parent / os.readlink(link) if link.is_symlink() else None


def _point(link: Path, place: Path) -> None:
    new = link.with_name(f".{link.name}")
    new.unlink(missing_ok=True)
    new.symlink_to(place.name)
    new.replace(link)
    _sync(link.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
