"""An Ollama that is not ours as the box's engine: one drop-in is added, and taken away again without a trace.

The drop-in names a file of variables, which lies with the box's own configuration: what a unit reads from files wins
over its `Environment=`, so that a file of its owner's (`/etc/default/ollama`, say) would win over the drop-in itself.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shlex
from typing import Any

from . import files
from .core import Emit, Result, Spec, StepError, progress, read_json, sync_folder, write_json
from .detached import journal_option, systemd
from .http import wait_ready
from .managers import call

SECONDS = 60.0


def _ctl(spec: Spec, *words: str, check: bool = True) -> str:
    return call(["systemctl", *systemd(spec["manager"]), *words], check=check)


def _show(spec: Spec, unit: str) -> dict[str, str]:
    names = "FragmentPath,DropInPaths,ActiveState,Environment,EnvironmentFiles,NeedDaemonReload"
    found: dict[str, str] = {}
    for line in _ctl(spec, "show", "-p", names, "--", unit).splitlines():
        name, equals, value = line.partition("=")
        if equals:  # files of settings come one a line
            found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def _sets(path: str) -> set[str]:
    """Names of the variables that a drop-in sets."""
    found = set()
    for line in _read(path).splitlines():
        key, _, value = line.strip().partition("=")
        if key.strip() == "Environment":
            with contextlib.suppress(ValueError):
                found |= {word.partition("=")[0] for word in shlex.split(value)}
    return found


def _settings_files(now: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Path and variables of the files that EnvironmentFile= names, the one that wins last."""
    found = []
    for row in now.get("EnvironmentFiles", "").splitlines():
        for path in sorted(glob.glob(row.rpartition(" (ignore_errors=")[0])):
            held = {}
            for line in _read(path).splitlines():
                name, equals, value = line.strip().partition("=")
                if equals and name[:1] not in "#;":
                    value = value.strip()
                    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
                    held[name.strip()] = value[1:-1] if quoted else value
            found.append((path, held))
    return found


def _resets(path: str) -> bool:
    """Whether a drop-in says that no file counts that was named before it."""
    return any("".join(line.split()) == "EnvironmentFile=" for line in _read(path).splitlines())


def _ours(spec: Spec) -> dict[str, str]:
    """Path -> content of our files, in the order of writing: a unit that names a missing file does not start."""
    return {spec["variables"]["path"]: spec["variables"]["content"], spec["path"]: spec["content"]}


def _mark(spec: Spec) -> str:
    return hashlib.sha256("\0".join(_ours(spec).values()).encode()).hexdigest()


def _look(spec: Spec) -> dict[str, Any]:
    """How the unit stands. overruled: variables of ours that a later file sets otherwise; ours: the reverse.

    Each with the path of the owner's file.
    """
    now = _show(spec, spec["unit"])
    try:
        effective = dict(word.partition("=")[::2] for word in shlex.split(now.get("Environment", "")))
    except ValueError:
        effective = {}
    others = [path for path in shlex.split(now.get("DropInPaths", "")) if path != spec["path"]]
    theirs = {name: path for path in [now.get("FragmentPath", ""), *others] for name in _sets(path)}
    winner = {}
    for path, held in _settings_files(now):
        effective.update(held)
        winner.update(dict.fromkeys(held, path))
        if path != spec["variables"]["path"]:
            theirs.update(dict.fromkeys(held, path))
    resets = [path for path in others if _resets(path)]
    overruled, ours = {}, {}
    for name, value in spec["environment"].items():
        if winner.get(name) == spec["variables"]["path"]:
            ours.update({name: theirs[name]} if name in theirs else {})
        elif effective.get(name) != value:
            overruled[name] = theirs.get(name) or [spec["path"], *resets][-1]
    return {
        "there": bool(now.get("FragmentPath")),
        "active": now.get("ActiveState") == "active",
        "reload": now.get("NeedDaemonReload") == "yes",
        "same": all(_read(path) == content for path, content in _ours(spec).items()),
        "edited": _edited(spec),
        "dropins": others,
        "overruled": overruled,
        "ours": ours,
    }


def _edited(spec: Spec) -> list[str]:
    """Those of our files that the owner changed."""
    written = files.known(spec["written"]) if spec.get("written") else {}
    return [path for path in _ours(spec) if files.is_edited(path, written)]


def _put(spec: Spec, dry: bool = False) -> bool:
    """Our files as planned; beside them where their owner edited them. Whether there was anything to do."""
    changed = False
    for path, content in _ours(spec).items():
        item = {"path": path, "mode": "0644", "owner": "", "group": ""}
        changed |= files.put(item, content.encode(), spec.get("written", ""), dry)
    return changed


def adopted(spec: Spec, emit: Emit) -> Result:
    """How it stands with the adopted unit. spec: as for `adopt`. Reads only."""
    return {"changed": False, "data": _look(spec)}


def adopt(spec: Spec, emit: Emit) -> Result:
    """Add our drop-in to a unit, and restart it only where that changed something.

    spec: manager, unit, path (of the drop-in), content, variables (path and content of the file that it names),
    environment (what that sets), url, record (what was before), written (hashes of what was written to files of ours:
    one that its owner edited is kept). Where the engine does not come up with it, all is put back. data: said.
    """
    now = _look(spec)
    if not now["there"]:
        raise StepError(
            f"there is no unit {spec['unit']}",
            hint='`[ollama] use = "existing"` takes it as it is',
            code="adopt-no-unit",
        )
    held = read_json(spec["record"]) or {}
    done = held.get("applied") == _mark(spec) and held.get("path") == spec["path"]
    if not _put(spec, dry=True) and now["active"] and done and not now["reload"]:
        return {"changed": False}
    if spec.get("dry"):
        return {"changed": True}
    # one that was adopted before there was a file of variables gets one
    held = {**(held or _before(spec, now)), "variables": spec["variables"]["path"]}
    write_json(spec["record"], held, 0o600)
    progress(emit, f"restarting {spec['unit']}")
    os.makedirs(os.path.dirname(spec["path"]), 0o755, exist_ok=True)
    _put(spec)
    try:
        _ctl(spec, "daemon-reload")
        _ctl(spec, "restart", spec["unit"])
        wait_ready(spec["url"] + "/api/version", SECONDS, spec["unit"])
    except StepError as error:
        if edited := _edited(spec):
            raise StepError(
                f"{spec['unit']} did not come up with {' and '.join(edited)} as you edited it ({error.message})",
                hint="correct it, or `ownstack up --overwrite` takes the planned one and keeps yours beside",
                code="adopt-edited",
            ) from error
        give_back({**spec}, emit)
        raise StepError(
            f"{spec['unit']} did not come up with the box's settings ({error.message}): it is as it was",
            hint=f"`journalctl {journal_option(spec['manager'])} {spec['unit']}` shows why; "
            '`[ollama] use = "existing"` takes it as it is',
            code="adopt-failed",
        ) from error
    write_json(spec["record"], {**held, "applied": _mark(spec)}, 0o600)
    after = _look(spec)
    said = [
        f"{path} {'sorts later' if path in after['dropins'] else 'is read after ours'} and wins: {name}"
        for name, path in after["overruled"].items()
        if path not in _ours(spec)  # edited: that is told elsewhere
    ]
    said += [f"{name} of {path} does not count while the box stands" for name, path in after["ours"].items()]
    return {"changed": True, "data": {"said": said}}


def _before(spec: Spec, now: dict[str, Any]) -> dict[str, Any]:
    """What has to be given back: whether its folder was there, with which files and time, and whether it ran."""
    folder = os.path.dirname(spec["path"])
    found: dict[str, Any] = {"unit": spec["unit"], "path": spec["path"], "active": now["active"], "folder": None}
    if os.path.isdir(folder):
        state = os.stat(folder)
        found["folder"] = {"names": sorted(os.listdir(folder)), "times": [state.st_atime_ns, state.st_mtime_ns]}
    for path in _ours(spec):
        if os.path.lexists(path):
            raise StepError(
                f"{path} is there already, and is not of this box",
                hint="is there another box on this machine? Move the file away if not",
                code="adopt-taken",
            )
    return found


def _take(spec: Spec, path: str) -> None:
    """Take a file of ours away, and what lies beside it, for good before anything else goes."""
    for one in files.with_besides([path]):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(one)
    if os.path.isdir(os.path.dirname(path)):
        sync_folder(os.path.dirname(path))
    if spec.get("written") and path in files.known(spec["written"]):  # a later one of another box is not ours
        files.remember(spec["written"], path, files.FORGET)


def give_back(spec: Spec, emit: Emit) -> Result:
    """Take our files away, edited or not; the unit runs again as it did. May be run at any time.

    spec: manager, record, url, written.
    """
    held = read_json(spec["record"])
    if not held:
        return {"changed": False}
    if spec.get("dry"):
        return {"changed": True}
    folder = os.path.dirname(held["path"])
    _take(spec, held["path"])
    if held["folder"] is None:
        with contextlib.suppress(OSError):  # somebody put a file of his own into it: it stays
            os.rmdir(folder)
    elif os.path.isdir(folder):
        if sorted(os.listdir(folder)) == held["folder"]["names"]:
            os.utime(folder, ns=(held["folder"]["times"][0], held["folder"]["times"][1]))
        sync_folder(folder)
    _ctl(spec, "daemon-reload")
    if held.get("variables"):  # only now: a unit that names a missing file does not start
        _take(spec, held["variables"])
    progress(emit, f"restarting {held['unit']} as it was")
    _ctl(spec, "restart" if held["active"] else "stop", held["unit"], check=False)
    os.unlink(spec["record"])
    return {"changed": True, "data": {"unit": held["unit"]}}


STEPS = {"adopt": adopt, "adopted": adopted, "give_back": give_back}
