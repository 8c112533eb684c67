"""Backups of a box: made while everything runs, opened again, kept in a number.

`backup_file` says what one looks like, `backup_check` looks into it, `backup_names` finds it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from . import backup_parts as parts
from .backup_check import contents, holds, own_collections, verify
from .backup_file import BOX, PART, Writer, opened
from .backup_names import find, name_of, ours
from .core import FULL, Emit, Result, Spec, StepError, progress, read_json, write_file, write_json
from .journal import holder, outlive
from .sealed import passphrase, ready, seal, unseal
from .secrets import NAME, read_secret, write_secret
from .timers import arm, disarm

WAIT_S, LOOK_S = 3600.0, 20.0  # how long a timer's backup waits for its turn, and how often it looks
# work that may be cut off -> its name, and the states in which data and programs may not belong together
UNSETTLED = {"upgrade": ("an upgrade", "taking", "taken"), "restore": ("a restore", "swapping", "swapped")}
UPLOADS = ("restore-", "import")  # what came over the connection for a restore or an import, which takes it away
LEFT = "drill-key"  # what the key of the newest backup opens, for the drill that follows at once


@contextlib.contextmanager
def alone(path: str, wait_s: float = 0.0) -> Iterator[None]:
    """One backup or restore at a time. A process that died holds nothing."""
    end = time.monotonic() + wait_s
    with open(path, "a", encoding="ascii") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise StepError(
                        "a backup or a restore of this box is going on", hint="wait until it is done", code="busy"
                    ) from None
                time.sleep(0.2)
        yield


# ------------------------------------------------------------------------------------------------------- making


def make(spec: Spec, emit: Emit) -> Result:
    """Make one backup, check it by opening it again, and remove what is over the number that is kept.

    spec: to (folder), keep, hostname, mark (of the box), kit_version, versions, services: [{name, folder, databases,
    skip, sealed}], var, records (names below var), manifest (the box's), qdrant ({url} or None), models (see
    `add_models`, or None), settings, secrets_dir, age, recipients or passphrase_file, once (remove passphrase_file),
    state (where the last one is noted), lock, work; drill (as for `drill.run`) where it is to be tried at once.
    """
    done, data = _made(spec, emit)
    if spec.get("drill"):
        from .drill import run

        done["data"]["drill"] = run({**spec["drill"], "file": done["data"]["file"], "data": data}, emit)["data"]
    return done


def _made(spec: Spec, emit: Emit) -> tuple[Result, bytes]:
    """One backup, and what only its key opens."""
    ready(spec)
    if spec.get("passphrase_file"):  # read now: who is connected may go, and the file with them
        spec = {**spec, "word": passphrase(spec)}
        if spec.get("once"):
            os.unlink(spec["passphrase_file"])
    began = time.time()
    os.umask(0o077)
    with alone(spec["lock"]):
        _settled(spec)
        folder = _folder(spec)
        _space(spec, folder)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(began))
        path = os.path.join(folder, name_of(spec, stamp))
        if os.path.exists(path):
            raise StepError(f"{path} is there already", hint="run again in a second", code="backup-exists")
        secrets = _secrets(spec)
        with tempfile.TemporaryDirectory(dir=spec["work"], prefix="backup-") as work:
            out = Writer(path, {**spec, "work": work})
            try:
                about, inside = _fill(out, spec, work, emit)
                about["created"] = stamp
                data = out.inside({**inside, **secrets})
                size = out.whole(about, _sealed(spec, data))
                _looked_at(out.part, spec, data, emit)
                out.publish()
            except BaseException as error:
                out.drop()
                if isinstance(error, OSError) and error.errno in FULL:
                    raise _full(spec, str(error.filename or folder)) from error
                raise
        dropped = _keep(folder, spec, path)
        last = {"file": path, "time": began, "bytes": size, "holds": about["holds"]}
        write_json(spec["state"], {**read_json(spec["state"], {}), "last": last, "failed": None})
    told = {"models": about["models"], "removed": dropped, "without_models": about["without_models"]}
    told["same_disk"] = os.stat(folder).st_dev == os.stat(spec["var"]).st_dev
    return {"changed": True, "data": {**last, **told, "seconds": round(time.time() - began, 1)}}, data


def _looked_at(path: str, spec: Spec, data: bytes, emit: Emit) -> None:
    """Open what was written, and look into every part, before it gets its name."""
    progress(emit, "opening the backup again")
    with opened(path) as held:
        held.check()
        held.unlock(spec, data)
        contents(held, spec["work"], emit)


def _settled(spec: Spec) -> None:
    """Raises StepError where a timer's backup has to wait: it would hold data under the name of another version.

    spec: for the timer's alone, prefix and run_dir. What a person asks for holds the box itself.
    """
    if "prefix" not in spec:
        return
    who = holder(spec["prefix"])
    if who:
        raise StepError(f"the box was being worked on: {who}", code="busy")
    for name, (what, *states) in UNSETTLED.items():
        if read_json(os.path.join(spec["run_dir"], f"{name}.json"), {}).get("status") in states:
            raise StepError(f"{what} was cut off, and `ownstack up` ends it", code="busy")


def _sealed(spec: Spec, data: bytes) -> bytes:
    """Encrypted, and by a passphrase opened again: a backup that its own key does not open is none."""
    sealed = seal(spec, data)
    if not spec.get("recipients") and unseal({**spec, "identity_file": ""}, sealed) != data:
        raise StepError("the passphrase does not open what it encrypted", hint="run again", code="seal")
    return sealed


def _folder(spec: Spec) -> str:
    """The folder for backups: made for its owner alone; what an earlier run left half-done is removed."""
    tidy(spec["work"], (LEFT, "backup-", "verify-", *UPLOADS))
    folder = str(spec["to"])
    if spec.get("elsewhere") and (not os.path.isdir(folder) or os.stat(folder).st_dev == os.stat(spec["var"]).st_dev):
        raise StepError(
            f"the disk of {folder} is not there", hint="connect it; the next backup goes on", code="disk-away"
        )
    if not os.path.isdir(folder):
        os.makedirs(folder, 0o700)
    for path in ours(folder, spec, PART):  # another box may be at work on its own
        os.unlink(path)
    return folder


def tidy(work: str, beginnings: tuple[str, ...], but: str = "") -> None:
    """Remove what runs that were cut off left among the working files. but: a path that is in use.

    Whoever asks holds the box, or has seen that nobody does.
    """
    for name in os.listdir(work):
        path = os.path.join(work, name)
        if name.startswith(beginnings) and path != but:
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def _full(spec: Spec, where: str) -> StepError:
    """The disk of the backups is full, or the box's own, on which each part lies for a moment."""
    hint = "free space, keep fewer (`--keep`), or take another disk (`--to`); earlier backups are as they were"
    if where.startswith(f"{spec['work']}/"):
        where, hint = spec["work"], "free space on this disk: each part lies there for a moment; earlier backups stay"
    return StepError(f"{where} has too little space for a backup", hint=hint, code="disk-full")


def _space(spec: Spec, folder: str) -> None:
    """Raises StepError before anything is written where it cannot fit."""
    need = sum(parts.size_of(one["folder"], one["skip"]) for one in spec["services"])
    if shutil.disk_usage(folder).free < need + (16 << 20):
        raise _full(spec, folder)


def _secrets(spec: Spec) -> dict[str, dict[str, str]]:
    """Keys and passwords by name, and files with keys in them (base64)."""
    folder = spec["secrets_dir"]
    names = [name for name in sorted(os.listdir(folder)) if NAME.fullmatch(name) and name not in spec["unsaved"]]
    files = {}
    for one in spec["services"]:
        for name in one["sealed"]:
            path = parts.own(one["folder"], name)
            if os.path.isfile(path):
                with parts.plain(path) as stream:
                    files[f"{one['name']}/{name}"] = base64.b64encode(stream.read()).decode()
    return {"secrets": {name: read_secret(folder, name) for name in names}, "sealed": files}


def _fill(out: Writer, spec: Spec, work: str, emit: Emit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything into the file; what the manifest says of it, and what only the key opens.

    Databases come first: what they name is then there when folders and vectors are read.
    """
    tables: dict[str, dict[str, int]] = {}
    for one in spec["services"]:
        for name in one["databases"]:
            source, copy = parts.own(one["folder"], name), os.path.join(work, "copy")
            if not os.path.exists(source):
                continue
            progress(emit, f"copying the database of {one['name']}")
            parts.copy_database(source, copy)
            member = f"data/{one['name']}/{name}"
            tables[member] = parts.rows(copy)
            with open(copy, "rb") as stream:
                out.add(member, stream, os.path.getsize(copy))
            os.unlink(copy)
    for one in spec["services"]:
        progress(emit, f"copying what {one['name']} keeps")
        databases = [f"{name}{end}" for name in one["databases"] for end in ("", *parts.SIDE)]
        parts.add_tree(out, f"data/{one['name']}", one["folder"], [*one["skip"], *databases, *one["sealed"]])
    progress(emit, "vectors")
    asked = {**(spec["qdrant"] or {}), "secrets_dir": spec["secrets_dir"]}
    vectors = parts.add_vectors(out, asked, work) if spec["qdrant"] else None
    progress(emit, "models")
    models, silent = _models(out, spec)
    for name in spec["records"]:
        path = os.path.join(spec["var"], name)
        if os.path.isfile(path):
            with open(path, "rb") as stream:
                out.put(f"records/{name}", stream.read())
    with open(spec["manifest"], "rb") as stream:
        out.put(BOX, stream.read())
    inside = {"tables": tables, "vectors": vectors, "models": models, "var": spec["var"]}
    services = [one["name"] for one in spec["services"]]
    own = own_collections(vectors, services, read_json(spec["manifest"]))
    about = {
        "kit_version": spec["kit_version"], "hostname": spec["hostname"], "versions": spec["versions"],
        "services": services, "settings": spec["settings"], "holds": holds(inside),
        "without_models": silent, "own_collections": len(own),
        "models": [{key: row[key] for key in ("name", "digest", "size", "made_here")} for row in models],
    }  # fmt: skip
    return about, inside


def _models(out: Writer, spec: Spec) -> tuple[list[dict[str, Any]], str]:
    """The models, and why they are not in it: an engine that is down must not keep chats from being backed up."""
    if not spec["models"]:
        return [], ""
    try:
        return parts.add_models(out, spec["models"]), ""
    except StepError as error:
        if error.code != "engine-down":
            raise
        return [], error.message


def _keep(folder: str, spec: Spec, made: str) -> list[str]:
    """Remove the oldest whole backups of this box beyond the number that is kept; never the one that was just made.

    Names tell the age, and a clock that went ahead has named some for days to come.
    """
    others = [path for path in ours(folder, spec) if path != made]
    over = others[: max(0, len(others) - max(1, int(spec["keep"])) + 1)]
    for path in over:
        os.unlink(path)
    return over


def make_outliving(spec: Spec, emit: Emit) -> Result:
    """`make` in a unit of its own, so that it goes on when the connection ends. spec: also run_dir, manager, unit,
    runner."""
    return outlive("backup.make", spec, spec["manager"], spec["unit"], spec["runner"], emit)


def scheduled(spec: Spec, emit: Emit) -> Result:
    """`make` by a timer: why it failed or was put off is noted, so that `status` says it.

    While somebody works on the box it waits for its turn, and is put off to the next time where that does not come.
    Where the backup is to be tried, what its key opens is left for `drill.scheduled`, which the unit runs next: that
    needs more than this one may, and a recipient's key is not on the box.
    """
    end = time.monotonic() + WAIT_S
    while True:
        try:
            done, data = _made({**spec, "drill": None}, emit)
            break
        except (StepError, OSError) as error:
            busy = isinstance(error, StepError) and error.code == "busy"
            if busy and time.monotonic() < end:
                time.sleep(LOOK_S)
                continue
            failed = {"time": time.time(), "message": str(error), "postponed": busy}
            with contextlib.suppress(OSError):  # a full disk, say: then that is what there is to tell
                write_json(spec["state"], {**read_json(spec["state"], {}), "failed": failed})
            if busy:
                return {"changed": False, "data": {"postponed": str(error)}}
            raise
    if spec.get("drill"):
        write_file(os.path.join(spec["work"], LEFT), data)
    return done


def place(spec: Spec, emit: Emit) -> Result:
    """Make ready for backups by a timer. spec: to, var, secrets_dir, age, and recipients or passphrase_file, state.

    The passphrase becomes a secret of the box. data: elsewhere (whether the folder is on another disk).
    """
    ready(spec)
    if not os.path.isdir(spec["to"]):
        os.makedirs(spec["to"], 0o700)
    if not spec.get("recipients"):
        write_secret(spec["secrets_dir"], spec["secret"], passphrase(spec))
    elsewhere = os.stat(spec["to"]).st_dev != os.stat(spec["var"]).st_dev
    # from when on one is missed: the last one may be of long before
    write_json(spec["state"], {**read_json(spec["state"], {}), "scheduled": time.time()})
    return {"changed": True, "data": {"elsewhere": elsewhere}}


# -------------------------------------------------------------------------------------------------------- state


def state(spec: Spec, emit: Emit) -> Result:
    """The last backup. spec: state."""
    return {"changed": False, "data": read_json(spec["state"], {})}


STEPS = {
    "arm": arm,
    "disarm": disarm,
    "find": find,
    "make": make,
    "make_outliving": make_outliving,
    "place": place,
    "scheduled": scheduled,
    "state": state,
    "verify": verify,
}
