"""The restore drill: a backup is put to work in a second instance of the services, counted, and taken away again.

It shows what a look at the file cannot: that the services start on it, that the kit's own identities open them, and
that n8n's key decrypts what it keeps. The box goes on meanwhile; nothing of it is stopped or changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from typing import Any

from . import scratch
from .backup import LEFT, alone
from .backup_check import contents, unlock
from .backup_file import Reader, opened
from .box import read_environment
from .core import Emit, Result, Spec, StepError, ids, progress, read_json, write_json
from .counted import OF_A_BOX
from .journal import outlive
from .n8n import API_KEY, preflight
from .n8n_api import key_works
from .open_webui_site import kit
from .restore import extract, lay
from .restore_parts import load_vectors
from .secrets import ensure, has_secret, read_secret, write_secret

# these say nothing about the backup: it was not tried
UNTRIED = ("port-taken", "memory", "disk-full", "busy")
WEEK_S = 6.5 * 86400  # a timer that comes a little earlier than a week ago


def run(spec: Spec, emit: Emit) -> Result:
    """Try a backup in a second instance. What came of it is noted for `status`.

    spec: file, age and what opens it (passphrase_file, identity_file, or `data`: what its key opens), work, lock,
    state, services (as for `backup.make`), without_vectors (they are not to be loaded), place (as for `scratch`),
    secrets (that services may need), and n8n {node, entry, gate, env, user}. data: counts, seconds, file, created.
    Raises StepError where the backup is not restorable.
    """
    began = time.time()
    os.umask(0o077)
    noted: dict[str, Any] = {"file": spec["file"], "time": began}
    try:
        with alone(spec["lock"]), opened(spec["file"]) as held:
            noted["created"] = held.manifest["created"]
            _open(held, spec, emit)
            _space(spec)
            with scratch.place(spec["place"]):
                counts = _tried(held, spec, emit)
    except (StepError, OSError) as error:
        code = getattr(error, "code", "")
        if code != "wrong-passphrase":
            _note(spec, {**noted, "ok": False, "tried": code not in UNTRIED, "message": str(error)})
        raise
    noted.update(ok=True, tried=True, message="", counts=counts, seconds=round(time.time() - began, 1))
    _note(spec, noted)
    return {"changed": False, "data": noted}


def _note(spec: Spec, drill: dict[str, Any]) -> None:
    now = read_json(spec["state"], {})
    good = {"restorable": drill} if drill["ok"] else {}
    write_json(spec["state"], {**now, "drill": drill, **good})


def _open(held: Reader, spec: Spec, emit: Emit) -> None:
    """What was just made was looked at already, in its making."""
    if spec.get("data"):
        held.unlock(spec, spec["data"])
        return
    progress(emit, "reading every part")
    held.check()
    unlock(held, spec)
    contents(held, spec["work"], emit)


def _space(spec: Spec) -> None:
    where, need = os.path.dirname(os.path.dirname(spec["place"]["root"])), os.path.getsize(spec["file"])
    free = shutil.disk_usage(where).free
    if free < 2 * need + (64 << 20):
        raise StepError(
            f"{where} has {free >> 20} MiB free, trying the backup takes {2 * need >> 20} MiB",
            hint="free space and run again",
            code="disk-full",
        )


def _tried(held: Reader, spec: Spec, emit: Emit) -> dict[str, int]:
    """Lay out, start, count. What was counted, by name."""
    place, counts = spec["place"], {}
    for name, value in held.inside["secrets"].items():
        write_secret(place["secrets_dir"], name, value)
    ensure({"secrets_dir": place["secrets_dir"], "secrets": spec["secrets"]}, emit)
    kept = {one["name"] for one in spec["services"]} & set(held.manifest["services"])
    for name in sorted(kept):
        progress(emit, f"laying out what {name} keeps")
        lay(held, {"name": name, "folder": _folder(spec, name)}, _folder(spec, name))
        scratch.at_rest(place, name)
        scratch.own(place, name)
    if held.inside["vectors"] is not None and any(one["name"] == "qdrant" for one in place["services"]):
        _qdrant(spec, emit)
        if not spec.get("without_vectors"):
            counts["vectors"] = _vectors(held, spec, emit)
    if "open_webui" in kept:
        scratch.start(place, "open_webui", emit)
        _signed_in(held, spec)
        scratch.stop(place, "open_webui")
    if any(one["name"] == "qdrant" for one in place["services"]):
        scratch.stop(place, "qdrant")
    if "n8n" in kept:
        _n8n(held, spec, emit)
    progress(emit, "counting")
    counts.update(_counted(held, spec))
    if "n8n" in kept and counts.get("credentials"):
        counts["credentials decrypted"] = _decrypted(held, spec, counts["credentials"], emit)
    return counts


def _folder(spec: Spec, name: str) -> str:
    return str(scratch.service(spec["place"], name)["folder"])


def _url(spec: Spec, name: str) -> str:
    ready: str = scratch.service(spec["place"], name)["ready"]
    return ready[: ready.index("/", len("http://"))]


def _qdrant(spec: Spec, emit: Emit) -> None:
    os.makedirs(_folder(spec, "qdrant"), 0o700, exist_ok=True)
    scratch.own(spec["place"], "qdrant")
    scratch.start(spec["place"], "qdrant", emit)


def _vectors(held: Reader, spec: Spec, emit: Emit) -> int:
    """Give Qdrant the backup's collections; how many points they have together."""
    place = spec["place"]
    with tempfile.TemporaryDirectory(dir=place["root"]) as folder:
        for row in held.inside["vectors"]["collections"]:
            extract(held, row["member"], os.path.join(folder, row["member"]))
        about = {"url": _url(spec, "qdrant"), "secrets_dir": place["secrets_dir"]}
        return sum(load_vectors(about, held.inside["vectors"], folder, emit).values())


def _signed_in(held: Reader, spec: Spec) -> None:
    """Open WebUI as the kit's own account, with the key of the backup, names as many accounts as the backup holds."""
    site = kit({"url": _url(spec, "open_webui"), "secrets_dir": spec["place"]["secrets_dir"]})
    status, answer = site.call("GET", "/api/v1/users/?page=1")
    if status != 200:
        raise _not(held, f"Open WebUI refuses the kit's own account with the backup's key ({status})")
    found, wanted = int(answer["total"]), _rows(held, "open_webui").get("user", 0)
    if found != wanted:
        raise _not(held, f"Open WebUI names {found} accounts, the backup holds {wanted}")


def _not(held: Reader, what: str) -> StepError:
    return StepError(
        f"{held.path} is not restorable: {what}",
        hint="take another backup and try it; the box itself is as it was",
        code="not-restorable",
    )


def _rows(held: Reader, service: str) -> dict[str, int]:
    """Rows of each table when the backup was made."""
    found: dict[str, int] = {}
    for member, tables in held.inside["tables"].items():
        if member.startswith(f"data/{service}/"):
            found.update(tables)
    return found


def _n8n(held: Reader, spec: Spec, emit: Emit) -> None:
    """n8n starts with its own key, and takes the kit's."""
    place = spec["place"]
    record = os.path.join(place["root"], "n8n-content.json")
    if "records/n8n-content.json" in held.index:
        extract(held, "records/n8n-content.json", record)
    preflight({"secrets_dir": place["secrets_dir"], "data": _folder(spec, "n8n"), "state": record}, emit)
    scratch.start(place, "n8n", emit)
    if not has_secret(place["secrets_dir"], API_KEY):
        raise _not(held, "the kit's key for n8n is not in it")
    if not key_works(_url(spec, "n8n"), read_secret(place["secrets_dir"], API_KEY)):
        raise _not(held, "n8n refuses the kit's own key")
    scratch.stop(place, "n8n")


def _counted(held: Reader, spec: Spec) -> dict[str, int]:
    """What people would count, in the databases after the services have worked on them."""
    found = {}
    for name, table, what in OF_A_BOX:
        for member in held.inside["tables"]:
            if not member.startswith(f"data/{name}/") or table not in held.inside["tables"][member]:
                continue
            path = os.path.join(_folder(spec, name), member[len(f"data/{name}/") :])
            with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
                number = int(database.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0])  # noqa: S608 - OF_A_BOX
            if number != held.inside["tables"][member][table]:
                wanted = held.inside["tables"][member][table]
                raise _not(held, f"{number} {what} are there after the start, {wanted} in the backup")
            found[what] = number
    return found


def _decrypted(held: Reader, spec: Spec, wanted: int, emit: Emit) -> int:
    """How many credentials n8n's own program decrypts. What it writes lies in memory only, and nobody reads it here."""
    user = spec["n8n"]["user"] if os.geteuid() == 0 else ""
    progress(emit, "decrypting n8n's credentials")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ownstack-drill-") as folder:
        if user:
            os.chown(folder, *ids(user, user))
        out = os.path.join(folder, "credentials")
        status = _export(spec, user, out)
        try:
            with open(out, encoding="utf-8") as stream:
                rows = json.load(stream)
        except (OSError, ValueError) as error:
            raise _not(held, f"n8n cannot decrypt its credentials (its program ended with {status})") from error
    whole = sum(isinstance(row.get("data"), dict) for row in rows)
    if whole != wanted:
        raise _not(held, f"n8n decrypts {whole} of {wanted} credentials")
    return whole


def _export(spec: Spec, user: str, out: str) -> int:
    """Run n8n's own program under its account and, where systemd is, without any network; its exit status."""
    about, folder = spec["n8n"], _folder(spec, "n8n")
    words = [about["node"], "--require", about["gate"], about["entry"], "export:credentials", "--all", "--decrypted"]
    words.append(f"--output={out}")
    asked: dict[str, Any] = {}
    if spec["place"]["manager"] == "systemd":
        rules = [
            f"User={user}", f"Group={user}", f"EnvironmentFile={about['env']}", f"WorkingDirectory={folder}",
            "UMask=0077", "PrivateNetwork=true", "NoNewPrivileges=true", "ProtectSystem=full", "RuntimeMaxSec=300",
        ]  # fmt: skip
        options = ["--quiet", "--wait", "--collect", *[f"--property={rule}" for rule in rules]]
        words = ["systemd-run", *options, "--", *words]
    else:
        env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **read_environment(about["env"])}
        asked = {"env": env, "cwd": folder, "umask": 0o077}
        if user:
            uid, gid = ids(user, user)
            asked |= {"user": uid, "group": gid, "extra_groups": []}
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=400,
        **asked,
    )  # fmt: skip
    return done.returncode


def run_outliving(spec: Spec, emit: Emit) -> Result:
    """`run` in a unit of its own, so that it comes to its end when the connection does not.

    spec: also run_dir, manager, unit, runner.
    """
    return outlive("drill.run", spec, spec["manager"], spec["unit"], spec["runner"], emit)


def due(state: dict[str, Any], now: float) -> bool:
    """Whether a week has passed since a backup was tried and good."""
    return now - float(state.get("restorable", {}).get("time", 0)) >= WEEK_S


def scheduled(spec: Spec, emit: Emit) -> Result:
    """After `backup.scheduled`, with the same specification: try what it made, once a week."""
    path = os.path.join(spec["work"], LEFT)
    if not spec.get("drill") or not os.path.exists(path):
        return {"changed": False, "data": {"tried": False}}
    with open(path, "rb") as stream:
        data = stream.read()
    os.unlink(path)
    state = read_json(spec["state"], {})
    if not due(state, time.time()):
        return {"changed": False, "data": {"tried": False}}
    return run({**spec["drill"], "file": state["last"]["file"], "data": data}, emit)


def clear(spec: Spec, emit: Emit) -> Result:
    """Take away what a drill left that was cut off. spec: place, lock. data: cleared."""
    try:
        with alone(spec["lock"]):
            there = scratch.left(spec["place"])
            scratch.clear(spec["place"])
    except StepError as error:
        if error.code != "busy":
            raise
        there = False  # it goes on
    return {"changed": there, "data": {"cleared": there}}


STEPS = {
    "clear": clear,
    "run": run,
    "run_outliving": run_outliving,
    "scheduled": scheduled,
}
