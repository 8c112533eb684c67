"""Backups of a box: made while everything runs, checked, kept in a number. `backup_file` says what one looks like."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from . import backup_parts as parts
from .backup_file import BOX, PART, Reader, Writer, damaged, filling, opened
from .core import FULL, Emit, Result, Spec, StepError, progress, read_json, write_file, write_json
from .gpu import arm, disarm
from .journal import holder, outlive
from .sealed import can_open, passphrase, ready, seal, unseal
from .secrets import NAME, read_secret, write_secret

N8N_KEY = "n8n_encryption_key"
WAIT_S, LOOK_S = 3600.0, 20.0  # how long a timer's backup waits for its turn, and how often it looks
# work that may be cut off -> its name, and the states in which data and programs may not belong together
UNSETTLED = {"upgrade": ("an upgrade", "taking", "taken"), "restore": ("a restore", "swapping", "swapped")}
# host, the box's own mark (older backups have none), when
NAMED = re.compile(r"ownstack-(.+?)(?:-([0-9a-f]{12}))?-(\d{8}T\d{6}Z)\.tar")
UPLOADS = ("restore-", "import")  # what came over the connection for a restore or an import, which takes it away
VECTORS = re.compile(r"[a-z0-9-]*")
LEFT = "drill-key"  # what the key of the newest backup opens, for the drill that follows at once


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
    about = {
        "kit_version": spec["kit_version"], "hostname": spec["hostname"], "versions": spec["versions"],
        "services": [one["name"] for one in spec["services"]], "settings": spec["settings"], "holds": holds(inside),
        "without_models": silent,
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
    """Make ready for backups by a timer. spec: to, var, secrets_dir, age, and recipients or passphrase_file.

    The passphrase becomes a secret of the box. data: elsewhere (whether the folder is on another disk).
    """
    ready(spec)
    if not os.path.isdir(spec["to"]):
        os.makedirs(spec["to"], 0o700)
    if not spec.get("recipients"):
        write_secret(spec["secrets_dir"], spec["secret"], passphrase(spec))
    elsewhere = os.stat(spec["to"]).st_dev != os.stat(spec["var"]).st_dev
    return {"changed": True, "data": {"elsewhere": elsewhere}}


# ----------------------------------------------------------------------------------------------------- checking


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
            plan = json.loads(held.read(BOX))["plan"]
            box = {"vectors": plan.get("vectors", ""), "models": plan["models"]}
            if not VECTORS.fullmatch(box["vectors"]):  # it goes into the configuration of Open WebUI
                raise damaged(held.path, f"{box['vectors']!r} is no beginning of a collection's name")
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


COUNTED = (
    ("open_webui", "user", "accounts"), ("open_webui", "chat", "chats"), ("open_webui", "file", "files"),
    ("open_webui", "knowledge", "knowledge collections"), ("n8n", "workflow_entity", "workflows"),
    ("n8n", "credentials_entity", "credentials"),
)  # fmt: skip


def holds(about: dict[str, Any]) -> dict[str, int]:
    """What people would count in a backup."""
    found = {}
    for service, table, what in COUNTED:
        for member, tables in about["tables"].items():
            if member.startswith(f"data/{service}/") and table in tables:
                found[what] = tables[table]
    if about["vectors"]:
        found["vectors"] = sum(row["points"][0] for row in about["vectors"]["collections"])
    return found


# -------------------------------------------------------------------------------------------------------- state


def state(spec: Spec, emit: Emit) -> Result:
    """The last backup. spec: state."""
    return {"changed": False, "data": read_json(spec["state"], {})}


def find(spec: Spec, emit: Emit) -> Result:
    """The backup that a path means: itself, or the newest in a folder; empty where there is none.

    spec: path, mark (of the box whose backup is meant before all others). Raises StepError where it is not clear.
    """
    path = spec["path"]
    if os.path.isdir(path):
        name = newest(os.listdir(path), spec.get("mark", ""))
        path = os.path.join(path, name) if name else ""
    return {"changed": False, "data": {"file": path if path and os.path.isfile(path) else ""}}


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
