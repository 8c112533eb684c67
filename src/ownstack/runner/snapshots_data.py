"""The data of a service as a snapshot holds it: copied, opened as the service would, put back in its place."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import urllib.parse
from collections.abc import Iterator
from typing import Any

from .artifacts import switch
from .core import FULL, Emit, Spec, StepError, progress, sync_folder, write_file
from .managers import call
from .restore import _remove, _rename
from .secrets import NAME, read_secret, write_secret
from .snapshots_counts import N8N_DATABASE, database_counts

HINT = "nothing was changed; the service runs on as before"


@contextlib.contextmanager
def room(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StepError(
            f"no space left for the snapshot in {folder}", hint=f"free space and run again; {HINT}", code="disk-full"
        ) from error


def copy_folder(source: str, target: str) -> None:
    """A folder with owners, modes and times; blocks are shared where the file system can do that."""
    if not os.path.isdir(source):
        return
    os.makedirs(target, 0o700, exist_ok=True)
    try:
        call(["cp", "-a", "--reflink=auto", "--", f"{source}/.", target])
    except StepError as error:
        if "No space left" in error.message or "quota" in error.message:
            raise OSError(errno.ENOSPC, error.message) from error
        raise


def copy_small(spec: Spec, folder: str) -> None:
    """The records, the manifest and the secrets that belong to the data."""
    for name in [*spec["records"], os.path.basename(spec["manifest"])]:
        path = os.path.join(spec["var"], name)
        if os.path.isfile(path):
            shutil.copy2(path, os.path.join(folder, name))
    os.mkdir(os.path.join(folder, "secrets"), 0o700)
    os.mkdir(os.path.join(folder, "configuration"), 0o700)
    for number, path in enumerate(spec["configuration"]):
        if os.path.isfile(path):
            shutil.copy2(path, os.path.join(folder, "configuration", str(number)))
    for name in secret_names(spec["secrets_dir"], spec["secrets"]):
        write_secret(os.path.join(folder, "secrets"), name, read_secret(spec["secrets_dir"], name))


def secret_names(folder: str, beginnings: list[str]) -> list[str]:
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [name for name in names if NAME.fullmatch(name) and name.startswith(tuple(beginnings))] if beginnings else []


def opened(spec: Spec, folder: str, items: list[dict[str, Any]], emit: Emit) -> dict[str, Any]:
    """Open every copy as its service would. Raises StepError with what is wrong; gives the rows that people count."""
    tables: dict[str, Any] = {}
    for item in items:
        for name in item.get("databases", ()):
            path = os.path.join(item["copy"], name)
            if os.path.exists(path):
                progress(emit, f"opening the copy of {item['name']}'s database")
                settle(path, os.path.join(item["place"], name))
                tables[item["name"]] = database_counts(item["name"], path, spec["count"].get("since", ""), still=True)
        if item["name"] == "qdrant":
            collections(item["copy"])
    if any(item["name"] == "n8n" for item in items):
        data, record = os.path.join(folder, "data", "n8n"), os.path.join(folder, "n8n-content.json")
        n8n_key(os.path.join(folder, "secrets"), data, record)
    return tables


def settle(path: str, source: str) -> None:
    """Let SQLite take in what its log still holds, and check all of it."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=rw", uri=True)) as opened:
            opened.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            found = [str(row[0]) for row in opened.execute("PRAGMA integrity_check(5)")]
        wrong = "" if found == ["ok"] else "; ".join(found)
    except sqlite3.Error as error:
        wrong = str(error)
    if wrong:
        raise StepError(
            f"{source} is damaged: {wrong}",
            hint=f"restore a backup (`ownstack restore`) before the version changes; {HINT}",
            code="snapshot",
        )


def collections(copy: str) -> None:
    """Each collection has its description, and each of its segments says which version wrote it."""
    top = os.path.join(copy, "storage", "collections")
    for name in sorted(os.listdir(top)) if os.path.isdir(top) else []:
        try:
            with open(os.path.join(top, name, "config.json"), encoding="utf-8") as stream:
                json.load(stream)
        except (OSError, ValueError) as error:
            raise StepError(
                f"Qdrant's collection {name} cannot be read: {error}",
                hint=f"restore a backup (`ownstack restore`) before the version changes; {HINT}",
                code="snapshot",
            ) from error


def n8n_key(secrets_dir: str, data: str, record: str) -> None:
    """The key among the secrets is the one that n8n's data was made with. Raises StepError otherwise."""
    from .n8n import preflight

    if os.path.exists(os.path.join(data, N8N_DATABASE)):
        preflight({"secrets_dir": secrets_dir, "data": data, "state": record}, lambda event: None)


def put_programs(spec: Spec, folder: str, about: dict[str, Any], leave: Any = ()) -> None:
    """Links, records and secrets of a snapshot in their places, and on the disk. The snapshot stays as it is."""
    for name, target in about["links"].items():
        base = os.path.join(spec["opt"], name)
        if os.path.isdir(os.path.join(base, target)):  # what is gone, whoever puts back makes anew
            switch(os.path.join(base, "current"), os.path.join(base, target))
    for name in set(about["records"]) - set(leave):
        put_file(os.path.join(folder, name), os.path.join(spec["var"], name))
    kept = os.path.join(folder, "secrets")
    beginnings = [name for name in about["secrets"] if name.rstrip("_") not in leave]
    for name in secret_names(kept, beginnings):
        write_secret(spec["secrets_dir"], name, read_secret(kept, name))
    os.sync()


def put_data(about: dict[str, Any], keep: bool, leave: Any = ()) -> None:
    """Data of a snapshot in its places. `keep`: the snapshot stays as it is."""
    for item in about["items"]:
        if item["name"] not in leave:
            put_item(item, keep)
    os.sync()


def put_configuration(folder: str, paths: list[str]) -> None:
    """Files as they were; whoever puts back writes them anew where the kit writes them otherwise today."""
    for number, path in enumerate(paths):
        copy = os.path.join(folder, "configuration", str(number))
        if os.path.exists(copy):
            state = os.stat(copy)
            with open(copy, "rb") as stream:
                data = stream.read()
            now = os.stat(path) if os.path.exists(path) else state
            write_file(path, data, state.st_mode & 0o7777, now.st_uid, now.st_gid)


def put_item(item: dict[str, Any], keep: bool) -> None:
    """One folder. Run again after it was cut off, it ends the same."""
    copy, place = item["copy"], item["place"]
    if not item["had"]:
        _remove(place)
        return
    if not os.path.isdir(copy):  # it was moved into its place already
        return
    if keep or os.path.ismount(place) or not one_disk(copy, place):
        empty(place)
        copy_folder(copy, place)
        os.sync()
        if not keep:
            gone = f"{copy}.gone"
            os.rename(copy, gone)  # half of it must not be taken for the whole by whoever puts back again
            sync_folder(os.path.dirname(copy))
            _remove(gone)
        return
    _remove(place)
    _rename(copy, place)


def one_disk(copy: str, place: str) -> bool:
    return os.stat(copy).st_dev == os.stat(os.path.dirname(place)).st_dev


def empty(place: str) -> None:
    """What is in a folder; the folder itself may be a mount, and stays."""
    os.makedirs(place, 0o700, exist_ok=True)
    for name in os.listdir(place):
        _remove(os.path.join(place, name))


def put_file(copy: str, place: str) -> None:
    if os.path.exists(copy):
        part = f"{place}.putting"
        shutil.copy2(copy, part)
        os.replace(part, place)
    elif os.path.exists(place):
        os.unlink(place)
    sync_folder(os.path.dirname(place))
