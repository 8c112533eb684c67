"""Copies of a service's data that an upgrade can go back to: taken while it stands still, opened, put back whole.

`<run_dir>/upgrade.json` says how far an upgrade or a rollback is; each word is on the disk before work goes on.
`taking`: the service is being stopped and copied, nothing of it was changed. `taken`: the copy is whole and was opened;
from here on programs and data may change, and `revert` puts both back, also after a power cut. `passed`: what is there
now stays, older things are being cleared away. `done`, `reverted`: at an end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

from .backup import alone
from .core import (
    FULL,
    Emit,
    Result,
    Spec,
    StepError,
    lay_ahead,
    progress,
    read_json,
    sync_folder,
    take_ahead,
    write_json,
)
from .disk import weigh
from .managers import manager
from .restore import _remove
from .snapshots_aside import SPARE, fills, lying, set_aside, told, worked_with
from .snapshots_counts import counts
from .snapshots_data import (
    HINT,
    copy_folder,
    copy_small,
    n8n_key,
    opened,
    put_configuration,
    put_data,
    put_programs,
    room,
)
from .snapshots_kept import ABOUT, AGAIN, PENDING, discard, drop, folder_of, forget, held, kept, prune
from .snapshots_rehearsal import rehearsal


def _note(spec: Spec, status: str, **more: Any) -> None:
    write_json(spec["state"], {**read_json(spec["state"], {}), "status": status, "time": time.time(), **more})


def _state(spec: Spec) -> dict[str, Any]:
    found: dict[str, Any] = read_json(spec["state"], {})
    return found


# -------------------------------------------------------------------------------------------------------- space


def _weight(path: str) -> int:
    if not os.path.isdir(path):
        return os.path.getsize(path) if os.path.exists(path) else 0
    return weigh(path, set())[0]


def space(spec: Spec, emit: Emit) -> Result:
    """Raises StepError where a snapshot, and a migration that writes all of the data anew, would not fit.

    spec: var, items: [{name, place}]. data: bytes (of the data), free.
    """
    needs: dict[int, int] = {}
    paths: dict[int, str] = {}

    def need(path: str, size: int) -> None:
        while not os.path.exists(path):
            path = os.path.dirname(path)
        device = os.stat(path).st_dev
        needs[device] = needs.get(device, 0) + size
        paths[device] = path

    total = 0
    for item in spec["items"]:
        size = _weight(item["place"])
        total += size
        need(spec["var"], size)
        need(item["place"], size)
    need(spec["var"], SPARE)
    for device, size in needs.items():
        free = shutil.disk_usage(paths[device]).free
        if free < size:
            raise StepError(
                f"{paths[device]} has {free >> 20} MiB free, a snapshot and what the new version may write take "
                f"{size >> 20} MiB",
                hint=f"free space (`ownstack disk`) and run again; {HINT}",
                code="disk-full",
            )
    return {"changed": False, "data": {"bytes": total, "free": shutil.disk_usage(spec["var"]).free}}


# ------------------------------------------------------------------------------------------------------- taking


def take(spec: Spec, emit: Emit) -> Result:
    """Stop services, copy what they keep, and open the copy. Programs and data stay as they are.

    spec: id, run (of all that one command does), kind (upgrade, rollback), role, about ({from, to}: component ->
    version), plan (parts of the plan to come back to), var, state, lock, manifest, secrets_dir, opt, secrets
    (beginnings of names), units, manager, supervisor, configuration (paths of files that are written anew), items:
    [{name, place, databases}], records (names below var), components (below opt), count (see `counts`).
    data: folder, bytes, counts.
    """
    os.umask(0o077)
    with alone(spec["lock"]):
        if _state(spec).get("status") in PENDING:
            raise StepError("an earlier upgrade was cut off", hint=AGAIN, code="upgrade-pending")
        space(spec, emit)
        before = _sound(
            spec, emit, lambda: _counted(spec, emit), {"tables": {}, "vectors": {}, "models": {}, "key": ""}
        )
        folder = folder_of(spec, spec["id"])
        items = [_item(folder, item) for item in spec["items"]]
        about = {
            "id": spec["id"], "run": spec["run"], "kind": spec["kind"], "role": spec["role"], "created": time.time(),
            **spec["about"], "plan": spec["plan"], "items": items, "records": spec["records"],
            "secrets": spec["secrets"], "links": _links(spec), "configuration": spec["configuration"],
        }  # fmt: skip
        with room(folder), _whole(folder):
            os.makedirs(os.path.join(folder, "data"), 0o700)
            going = {key: value for key, value in about.items() if key != "plan"}
            write_json(spec["state"], {**going, "status": "taking", "time": time.time(), "units": spec["units"]})
            _stop(spec, emit)
            for item in items:
                progress(emit, f"copying what {item['name']} keeps")
                copy_folder(item["place"], item["copy"])
            copy_small(spec, folder)
            tables = _sound(spec, emit, lambda: opened(spec, folder, items, emit), {})
            os.sync()
            before["tables"] = tables
            about["counts"] = before
            about["bytes"] = sum(_weight(item["copy"]) for item in items)
            write_json(os.path.join(folder, ABOUT), about, 0o600)
            sync_folder(os.path.dirname(folder))
        now = {**_state(spec), "counts": before, "time": time.time()}
        lay_ahead(spec["state"], {**now, "status": "passed"})
        write_json(spec["state"], {**now, "status": "taken"})
    return {"changed": True, "data": {"folder": folder, "bytes": about["bytes"], "counts": before}}


def _counted(spec: Spec, emit: Emit) -> dict[str, Any]:
    found: dict[str, Any] = counts(spec["count"], emit)["data"]
    if found["key"]:
        n8n_key(spec["secrets_dir"], spec["count"]["n8n_data"], os.path.join(spec["var"], "n8n-content.json"))
    return found


def _sound(spec: Spec, emit: Emit, look: Callable[[], dict[str, Any]], nothing: dict[str, Any]) -> dict[str, Any]:
    """What a look at today's data gives. On a way back it need not be sound: that may be why somebody goes back."""
    try:
        return look()
    except StepError as error:
        if spec["kind"] != "rollback":
            raise
        progress(emit, f"today's data is copied as it is: {error.message}")
        return nothing


@contextlib.contextmanager
def _whole(folder: str) -> Iterator[None]:
    """What was copied goes at once where the rest fails: the way back, and the word about it, may need its space."""
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):
            discard(folder)
        raise


def _item(folder: str, item: Spec) -> dict[str, Any]:
    place = os.path.realpath(item["place"])
    name = item["name"]
    return {**item, "place": place, "copy": os.path.join(folder, "data", name), "had": os.path.isdir(place)}


def _links(spec: Spec) -> dict[str, str]:
    """component -> the release that its `current` link means, as the link says it."""
    found = {}
    for name in spec["components"]:
        with contextlib.suppress(OSError):
            found[name] = os.readlink(os.path.join(spec["opt"], name, "current"))
    return found


def _stop(spec: Spec, emit: Emit) -> None:
    if not spec["units"]:
        return
    progress(emit, f"stopping {', '.join(spec['units'])}")
    boss = manager(spec)
    boss.stop(spec["units"])
    for unit, now in zip(spec["units"], boss.status(spec["units"])):
        if now["active"]:
            raise StepError(f"{unit} did not stop", hint=f"see its log; {HINT}", code="not-stopped")


# -------------------------------------------------------------------------------------------------- putting back


def revert(spec: Spec, emit: Emit) -> Result:
    """Put back programs and data as they were at the snapshot; may be run again at any time.

    spec: var, state, lock, opt, secrets_dir, manifest, manager, supervisor, id (only of this one, by the run that made
    it; may be left out), units (to stop, where they are not those of the snapshot).
    data: reverted, stays (where it passed already), gone (the copy's folder, where somebody took it away: then nothing
    is put back), and where it was begun (whether programs and data may have been others), id, kind, role, from, to,
    replaced (where the data lies that people may have worked with since).
    """
    with alone(spec["lock"]):
        now = _state(spec)
        if now.get("status") not in ("taking", "taken") or now["id"] != spec.get("id", now["id"]):
            stays = now.get("status") in ("passed", "done") and now["id"] == spec.get("id")
            return {"changed": False, "data": {"reverted": False, "stays": stays}}
        folder = folder_of(spec, now["id"])
        if now["status"] == "taken" and not os.path.exists(os.path.join(folder, ABOUT)):
            # the earlier program would open data that the newer one has written
            return {"changed": False, "data": {"reverted": False, "gone": folder, **_told(now)}}
        progress(emit, "putting back what was there")
        units = spec.get("units", now["units"])
        if units:
            manager(spec).stop(units)
        if now["status"] == "taking":
            discard(folder)  # first: a disk that it filled has no space for the word
        else:
            # a run that takes back what has just filled the disk: the earlier version needs that space
            if worked_with(now["time"]) and not ("id" in spec and fills(spec["var"])):
                set_aside(folder, now)
            _put_back(spec, folder, now)
        _remove(f"{spec['state']}.next")
        _note(spec, "reverted")
        discard(folder)
        more = {"begun": now["status"] == "taken", "replaced": lying(folder)}
    return {"changed": True, "data": {"reverted": True, **more, **_told(now)}}


def _put_back(spec: Spec, folder: str, now: dict[str, Any]) -> None:
    """Programs, then data. Cut off in between, only the earlier program can start, and only on data that the next
    `revert` replaces: a newer one would change data that was put back already, and that has no copy any more.
    """
    try:
        _put_programs(spec, folder, now)
    except OSError as error:
        if error.errno not in FULL:
            raise
        put_data(now, keep=False)  # what the newer program filled the disk with goes
        _put_programs(spec, folder, now)
    put_data(now, keep=False)


def _put_programs(spec: Spec, folder: str, now: dict[str, Any]) -> None:
    put_programs(spec, folder, now)
    put_configuration(folder, now["configuration"])
    old = os.path.join(folder, os.path.basename(spec["manifest"]))
    if os.path.exists(old):
        os.replace(old, spec["manifest"])
        sync_folder(spec["var"])
    os.sync()


def _told(about: dict[str, Any]) -> dict[str, Any]:
    return {key: about.get(key) for key in ("id", "kind", "role", "from", "to")}


def recover(spec: Spec, emit: Emit) -> str:
    """After a start of the machine: end an upgrade that was cut off. What was done, or ""; spec: as for `revert`.

    Units that run are started again; those that are yet to start are not touched: to stop one would be to cancel that.
    """
    now = _state(spec)
    if now.get("status") not in PENDING:
        return ""
    what = f"{'a way back' if now.get('kind') == 'rollback' else 'an upgrade'} of {now.get('role')} had been cut off"
    if now["status"] == "passed":
        commit(spec, emit)
        return f"{what} at its end: it is finished now"
    boss = manager(spec)
    up = [unit for unit, state in zip(now["units"], boss.status(now["units"])) if state["active"]]
    done = revert({**spec, "units": up}, emit)["data"]
    if up:
        boss.start(up)
    if done.get("gone"):
        return f"{what}, and the copy of its data is gone from {done['gone']}: what is there stays; run `ownstack up`"
    return f"{what}: programs and data are as they were before it{told(done.get('replaced', ()))}"


def put(spec: Spec, emit: Emit) -> Result:
    """After `take`: put the data of an earlier snapshot in the place of today's. The snapshot stays.

    spec: as for `revert`, and from (the earlier snapshot's id), leave (items and records that stay as they are).
    """
    with alone(spec["lock"]):
        if _state(spec).get("status") != "taken":
            raise StepError("today's data was not copied", hint="run `ownstack rollback` again", code="upgrade-pending")
        folder = folder_of(spec, spec["from"])
        about = read_json(os.path.join(folder, ABOUT))
        if about is None:
            raise StepError(
                f"there is no snapshot in {folder}", hint="`ownstack status` names them", code="no-snapshot"
            )
        for name, target in about["links"].items():
            if not os.path.isdir(os.path.join(spec["opt"], name, target)):
                raise StepError(
                    f"the earlier {name} is gone from {spec['opt']}/{name}",
                    hint="`ownstack restore` puts a backup back",
                    code="no-release",
                )
        progress(emit, "putting back the data of the snapshot")
        with room(folder):
            put_programs(spec, folder, about, spec.get("leave", ()))
            put_data(about, keep=True, leave=spec.get("leave", ()))
    return {"changed": True}


# --------------------------------------------------------------------------------------------------- afterwards


def commit(spec: Spec, emit: Emit) -> Result:
    """What is there now stays: the last snapshot of the service is kept, older ones and older programs go.

    spec: as for `revert`. data: removed. Run again after it was cut off, it ends the same.
    """
    removed: list[str] = []
    with alone(spec["lock"]):
        now = _state(spec)
        if now.get("status") not in ("taken", "passed"):
            return {"changed": False, "data": {"removed": [], **_told(now)}}
        if now["status"] == "taken" and not take_ahead(spec["state"]):
            _note(spec, "passed")
        for about in kept(spec):
            if about["role"] == now["role"] and about["id"] != now["id"]:
                discard(folder_of(spec, about["id"]))
                removed.append(folder_of(spec, about["id"]))
        removed += prune(spec["opt"], now["links"])
        try:
            _note(spec, "done", counts={}, items=[])
        except OSError as error:
            if error.errno not in FULL:
                raise
            progress(emit, "the disk is full: the next `ownstack up` notes that this is done")
    return {"changed": True, "data": {"removed": removed, **_told(now)}}


STEPS = {
    "commit": commit,
    "counts": counts,
    "drop": drop,
    "forget": forget,
    "held": held,
    "put": put,
    "rehearsal": rehearsal,
    "revert": revert,
    "space": space,
    "take": take,
}
