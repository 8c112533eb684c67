"""Putting a backup in the place of what a box holds: laid ready, exchanged by renames, and taken back if need be.

`<run_dir>/restore.json` says how far it is; each word is on the disk before work goes on. `staging`, `staged`: laid
ready beside, nothing changed. `swapping`, `swapped`: the replaced data lies aside and `revert` puts it back, also after
a power cut. `done`, `reverted`: at an end, and `clean` when nothing lies aside any more.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import shutil
import sqlite3
import time
from typing import Any

from .backup import UPLOADS, alone, tidy
from .backup_check import unlock
from .backup_file import Reader, opened
from .core import (
    Emit,
    Result,
    Spec,
    StepError,
    lay_ahead,
    progress,
    read_json,
    sync_folder,
    take_ahead,
    write_file,
    write_json,
)
from .managers import call, manager
from .restore_parts import HINT, load_models, load_vectors
from .scratch import give
from .secrets import NAME, read_secret, write_secret

PENDING = ("swapping", "swapped")
ENDED: dict[str, Any] = {"items": [], "vectors": None, "models": [], "clean": False}
WAIT_S = 60.0  # for a step over here that goes on after its run was cut off


def _note(spec: Spec, status: str, **more: Any) -> None:
    path = spec["state"]
    if status == "done" and take_ahead(path):  # the same, written when there was space
        return
    write_json(path, {**read_json(path, {}), "status": status, "time": time.time(), **more})


def _status(spec: Spec) -> str:
    return str(read_json(spec["state"], {}).get("status", ""))


def _room(spec: Spec) -> str:
    """The folder in which the new data is made ready and the old data waits."""
    return os.path.join(spec["var"], "restore")


def _items(spec: Spec) -> list[dict[str, str]]:
    """What is exchanged: where it belongs, where the new one is made, where the old one waits."""
    room = _room(spec)
    found = [
        {"place": one["folder"], "new": f"{room}/new/{one['name']}", "aside": f"{room}/old/{one['name']}"}
        for one in spec["services"]
    ]
    for name in spec["records"]:
        found.append(
            {"place": os.path.join(spec["var"], name), "new": f"{room}/new/{name}", "aside": f"{room}/old/{name}"}
        )
    folder = spec["secrets_dir"]
    return [*found, {"place": folder, "new": f"{folder}.restore-new", "aside": f"{folder}.restore-old"}]


def stage(spec: Spec, emit: Emit) -> Result:
    """Lay everything ready beside what is there. Changes nothing that a service sees.

    spec: file, var, work, services: [{name, folder}] (with qdrant's, which begins empty), records, secrets_dir, state,
    lock, age, passphrase_file or identity_file.
    """
    os.umask(0o077)
    with alone(spec["lock"]), opened(spec["file"]) as held:
        if _status(spec) in PENDING:
            raise StepError("an earlier restore was cut off", hint=HINT, code="restore-pending")
        tidy(spec["work"], UPLOADS, spec["file"])
        try:
            _stage(held, spec, emit)
        except (StepError, OSError):
            _end(spec, "reverted")
            raise
    return {"changed": True}


def _stage(held: Reader, spec: Spec, emit: Emit) -> None:
    room = _room(spec)
    _clear(spec)
    write_json(spec["state"], {"status": "staging", "clean": False})
    free, size = shutil.disk_usage(spec["var"]).free, os.path.getsize(spec["file"])
    if free < size + (64 << 20):
        raise StepError(
            f"{spec['var']} has {free >> 20} MiB free, the backup takes {size >> 20} MiB",
            hint="free space and run again; nothing was changed",
            code="disk-full",
        )
    for folder in ("new", "old", "vectors", "models"):
        os.makedirs(os.path.join(room, folder), 0o700)
    unlock(held, spec)
    for one in spec["services"]:
        progress(emit, f"laying ready what {one['name']} keeps")
        top = f"{room}/new/{one['name']}"
        lay(held, one, top)
        owner = os.stat(one["folder"])
        os.chmod(top, owner.st_mode & 0o777)
        give(top, owner)
    for name in spec["records"]:
        if f"records/{name}" in held.index:
            extract(held, f"records/{name}", f"{room}/new/{name}")
    _lay_secrets(spec, held.inside["secrets"])
    for member in [row["member"] for row in (held.inside["vectors"] or {}).get("collections", [])]:
        extract(held, member, os.path.join(room, member))
    for member in held.below("models"):
        extract(held, member, os.path.join(room, member))
    os.sync()
    about = {"vectors": held.inside["vectors"], "models": held.inside["models"]}
    told = {"status": "staged", "clean": False, "file": spec["file"], "items": _items(spec)}
    write_json(spec["state"], {**told, **about})


def extract(held: Reader, member: str, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as out:
        held.copy(member, out)


def lay(held: Reader, one: Spec, top: str) -> None:
    """One service's folder anew, at `top`; it will be used at one["folder"]. Whoever asks gives it its owner."""
    prefix = f"data/{one['name']}"
    os.makedirs(top, 0o700)
    for member in held.below(prefix):
        about = held.index[member]
        path = os.path.join(top, member[len(prefix) + 1 :])
        if not about["part"]:
            os.makedirs(path, exist_ok=True)
        else:
            extract(held, member, path)
            os.chmod(path, about["mode"] & 0o777)
            os.utime(path, (about["mtime"], about["mtime"]))
    for name, text in held.inside["sealed"].items():
        if name.startswith(f"{one['name']}/"):
            path = os.path.join(top, name[len(one["name"]) + 1 :])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as out:
                out.write(base64.b64decode(text))
    _move_paths(held, one, top)
    for member in held.below(prefix):
        if not held.index[member]["part"]:
            os.chmod(os.path.join(top, member[len(prefix) + 1 :]), held.index[member]["mode"] & 0o777)


def _move_paths(held: Reader, one: Spec, top: str) -> None:
    """Open WebUI writes down where its uploads lie; on a box with other folders that is elsewhere."""
    was, now = f"{held.inside['var']}/{one['name']}/", f"{one['folder']}/"
    database = os.path.join(top, "webui.db")
    if one["name"] != "open_webui" or was == now or not os.path.exists(database):
        return
    with contextlib.closing(sqlite3.connect(database)) as opened_database, opened_database as work:
        work.execute(
            "UPDATE file SET path = ? || substr(path, ?) WHERE substr(path, 1, ?) = ?",
            (now, len(was) + 1, len(was), was),
        )


def _lay_secrets(spec: Spec, secrets: dict[str, str]) -> None:
    """The present secrets, and over them those of the backup."""
    folder = spec["secrets_dir"]
    new = f"{folder}.restore-new"
    os.mkdir(new, 0o700)
    owner = os.stat(folder)
    os.chown(new, owner.st_uid, owner.st_gid)
    now = {name: read_secret(folder, name) for name in os.listdir(folder) if NAME.fullmatch(name)}
    for name, value in {**now, **secrets}.items():
        write_secret(new, name, value)


def swap(spec: Spec, emit: Emit) -> Result:
    """Stop the services and put the new data in its place, the old one aside.

    spec: as for `stage`, and manager, supervisor, units, manifest (the box's own, of which a copy is kept) and
    configuration (paths of files that are written anew for the restored data, of which copies are kept).
    """
    with alone(spec["lock"]):
        if _status(spec) != "staged":
            raise StepError("nothing is laid ready", hint="run `ownstack restore` again", code="restore-pending")
        staged = read_json(spec["state"])
        items = staged["items"]
        shutil.copy2(spec["manifest"], os.path.join(_room(spec), "old.manifest.json"))
        for item in items:
            item["had"] = os.path.lexists(item["place"])
        _keep_configuration(spec)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        _note(spec, "swapping", items=items, id=f"{'import' if staged.get('import') else 'restore'}-{stamp}")
        progress(emit, "stopping the services")
        manager(spec).stop(spec["units"])
        try:
            for item in items:
                if item["had"]:
                    _rename(item["place"], item["aside"])
                if os.path.lexists(item["new"]):
                    _rename(item["new"], item["place"])
        except OSError as error:
            raise StepError(f"{error.filename} cannot be moved: {error.strerror}", hint=HINT, code="move") from error
        lay_ahead(spec["state"], {**read_json(spec["state"]), "status": "done", **ENDED})
        _note(spec, "swapped")
    return {"changed": True}


def _keep_configuration(spec: Spec) -> None:
    """Copies of the files that are written anew for the restored data; `revert` puts them back as they were."""
    folder = os.path.join(_room(spec), "configuration")
    os.makedirs(folder, 0o700, exist_ok=True)
    for number, path in enumerate(spec.get("configuration", ())):
        if os.path.isfile(path):
            _copy(path, os.path.join(folder, str(number)))
    write_json(os.path.join(folder, "paths.json"), list(spec.get("configuration", ())))


def _put_configuration_back(spec: Spec) -> None:
    folder = os.path.join(_room(spec), "configuration")
    for number, path in enumerate(read_json(os.path.join(folder, "paths.json"), [])):
        if os.path.exists(os.path.join(folder, str(number))):
            _copy(os.path.join(folder, str(number)), path)


def _copy(source: str, target: str) -> None:
    """A file with its mode, times and owner, whole or not there."""
    state = os.stat(source)
    with open(source, "rb") as stream:
        data = stream.read()
    owner = (state.st_uid, state.st_gid) if os.geteuid() == 0 else (-1, -1)
    write_file(target, data, state.st_mode & 0o7777, *owner)


def _rename(source: str, target: str) -> None:
    """Move within a file system. Where a folder cannot be moved (in an overlay), by a copy that is whole first; where
    one is a disk of its own, which stays, by its content.
    """
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EBUSY):
            raise
        if os.path.isdir(target):
            call(["cp", "-a", "--", f"{source}/.", target])
        else:
            part = f"{target}.copying"
            _remove(part)
            call(["cp", "-a", "--", source, part])
            os.sync()
            os.rename(part, target)
        os.sync()
        sync_folder(os.path.dirname(target))  # from here on the old place counts for nothing
        gone = f"{source}.gone"
        with contextlib.suppress(OSError):  # half of it must not be taken for the whole
            os.rename(source, gone)
            source = gone
        _remove(source)
    for folder in {os.path.dirname(source), os.path.dirname(target)}:
        sync_folder(folder)


def revert(spec: Spec, emit: Emit) -> Result:
    """Put back what was there before `swap`; may be run again at any time.

    spec: as for `swap`, and mine (by the run that made the exchange; may be left out). A step of a run that was cut off
    may go on for a moment, and is waited for. data: reverted, replaced (where the data lies that people may have worked
    with since), role (by which it is discarded).
    """
    from .snapshots_aside import exchanged, fills, lying, set_aside, worked_with

    with alone(spec["lock"], WAIT_S):
        if _status(spec) not in PENDING:
            if _status(spec):
                _end(spec, "done" if _status(spec) == "done" else "reverted")
            return {"changed": False, "data": {"reverted": False}}
        if spec["units"]:
            manager(spec).stop(spec["units"])
        now = read_json(spec["state"])
        folder, about = exchanged(spec["var"], now)
        if worked_with(now.get("time", 0)) and not (spec.get("mine") and fills(spec["var"])):
            set_aside(folder, about)
        for item in now["items"]:
            if os.path.lexists(item["aside"]):
                _remove(item["place"])
                _rename(item["aside"], item["place"])
            elif not item["had"]:
                _remove(item["place"])
        _put_configuration_back(spec)
        old = os.path.join(_room(spec), "old.manifest.json")
        if os.path.exists(old):
            os.replace(old, spec["manifest"])
            sync_folder(spec["var"])
        _end(spec, "reverted")
    return {"changed": True, "data": {"reverted": True, "replaced": lying(folder), "role": about["role"]}}


def recover(spec: Spec, emit: Emit) -> str:
    """After a start of the machine: take back a restore that was cut off. What was done, or ""; spec: as for `swap`.

    Units that run are started again; those that are yet to start are not touched: to stop one would be to cancel that.
    """
    from .snapshots_aside import told

    if _status(spec) not in PENDING:
        return ""
    boss = manager(spec)
    up = [unit for unit, now in zip(spec["units"], boss.status(spec["units"])) if now["active"]]
    paths = revert({**spec, "units": up}, emit)["data"]["replaced"]
    if up:
        boss.start(up)
    return f"a restore had been cut off: the box is as it was before it{told(paths)}"


def finish(spec: Spec, emit: Emit) -> Result:
    """The box is as it should be: what was replaced goes. spec: as for `swap`."""
    with alone(spec["lock"]):
        _end(spec, "done")
    return {"changed": True}


def _end(spec: Spec, status: str) -> None:
    """Note the end, then take away what lies aside or ready, and note that too."""
    if _status(spec) not in PENDING:  # nothing was exchanged, and a disk that it filled has no space for the word
        _clear(spec)
    _note(spec, status, **ENDED)
    _clear(spec)
    _note(spec, status, clean=True)


def _clear(spec: Spec) -> None:
    """What lies aside or ready; only when nothing is pending."""
    folder = spec["secrets_dir"]
    for path in (
        _room(spec),
        f"{spec['state']}.next",
        *[f"{folder}.restore-{end}" for end in ("new", "old", "old.gone", "old.copying")],
    ):
        _remove(path)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        try:
            shutil.rmtree(path)
        except OSError as error:  # a disk of its own stays, empty
            if error.errno != errno.EBUSY or os.listdir(path):
                raise
    elif os.path.lexists(path):
        os.unlink(path)


def vectors(spec: Spec, emit: Emit) -> Result:
    """Give Qdrant, which runs empty, the collections of the backup, and count their points.

    spec: url, secrets_dir, var, state.
    """
    counts = load_vectors(spec, read_json(spec["state"]).get("vectors"), _room(spec), emit)
    return {"changed": bool(counts), "data": {"collections": counts}}


def models(spec: Spec, emit: Emit) -> Result:
    """Give the engine's store the models that the backup holds with their files. spec: folder (the store), var, state,
    url. data: models: [{name, state: added, there, not in the backup}]."""
    rows = load_models(spec, read_json(spec["state"]).get("models", ()), os.path.join(_room(spec), "models"), emit)
    return {"changed": any(row["state"] == "added" for row in rows), "data": {"models": rows}}


STEPS = {
    "finish": finish,
    "models": models,
    "revert": revert,
    "stage": stage,
    "swap": swap,
    "vectors": vectors,
}
