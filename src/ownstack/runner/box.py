"""The box as a whole: its services, its manifest, its state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any, NoReturn

from . import disk, files, journal
from .artifacts import held
from .core import Emit, Result, Spec, StepError, progress, read_json, write_file, write_json
from .detached import journal_option
from .http import request, wait_ready
from .managers import call, manager
from .ollama_pull import seen


def _mark(spec: Spec, service: Spec) -> str:
    return str(os.path.join(spec["active_dir"], service["name"]))


def _recorded(spec: Spec, service: Spec) -> str:
    try:
        with open(_mark(spec, service), encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def activate(spec: Spec, emit: Emit) -> Result:
    """Bring services to run with their present configuration; restart only what differs.

    spec: manager, active_dir, services: [{name, unit, fingerprint, ready, timeout}]. A service's fingerprint is
    recorded after it became ready with it, so that a run that was cut off before the restart is noticed.
    """
    services = spec["services"]
    boss = manager(spec)
    status = boss.status([s["unit"] for s in services])
    work = []
    for service, now in zip(services, status):
        same = _recorded(spec, service) == service["fingerprint"]
        if not (now["active"] and now["enabled"] and same) or now["reload"]:
            work.append((service, now))
    if not work or spec.get("dry"):
        return {"changed": bool(work), "data": {"services": [s["name"] for s, _ in work]}}
    boss.prepare([s["unit"] for s, _ in work])
    started = []
    for service, now in work:
        progress(emit, f"starting {service['name']}")
        if _recorded(spec, service):
            os.unlink(_mark(spec, service))
        if now["active"]:
            boss.restart([service["unit"]])
        else:
            boss.start([service["unit"]])
    for service, _ in work:
        seconds = wait_service(boss, service, emit)
        write_file(_mark(spec, service), (service["fingerprint"] + "\n").encode(), 0o644)
        started.append({"name": service["name"], "seconds": round(seconds, 1)})
    return {"changed": True, "data": {"started": started}}


# how often a process may end before nobody waits for it any longer: with systemd's pauses half a minute
ENDS = 10


def wait_service(boss: Any, service: Spec, emit: Emit) -> float:
    """Wait until the service's own address answers 200; stop early when its process is gone for good."""
    began = time.monotonic()
    told = began
    give_up = service.get("give_up", ENDS)
    ends = 0
    while time.monotonic() - began < service["timeout"]:
        status, _ = request("GET", service["ready"], timeout=5)
        if status == 200 and boss.status([service["unit"]])[0]["active"]:
            return time.monotonic() - began
        if time.monotonic() - told > 5:
            told = time.monotonic()
            progress(emit, f"waiting for {service['name']} ({int(told - began)} s)")
            state = boss.status([service["unit"]])[0]
            ends = state["restarts"]
            if state["state"].startswith(("failed", "fatal")) or give_up <= ends:
                break
        time.sleep(0.2)
    raise StepError(
        f"{service['name']} did not become ready in {int(time.monotonic() - began)} s"
        + (f": its process ended {ends} times" if ends else ""),
        hint=f"`ownstack logs {service['name']}` shows why",
        code="not-ready",
    )


def control(spec: Spec, emit: Emit) -> Result:
    """start, stop or restart services. spec: manager, action, services as for `activate`."""
    boss = manager(spec)
    units = [s["unit"] for s in spec["services"]]
    action = spec["action"]
    if action == "stop":
        boss.stop(units)
    else:
        getattr(boss, action)(units)
        for service in spec["services"]:
            wait_service(boss, service, emit)
    return {"changed": True, "data": {"services": [s["name"] for s in spec["services"]]}}


def retire(spec: Spec, emit: Emit) -> Result:
    """Stop services for good and take away their units. spec: manager, services, unit_files, active_dir."""
    boss = manager(spec)
    units = [s["unit"] for s in spec["services"]]
    there = [path for path in files.with_besides(spec["unit_files"]) if os.path.lexists(path)]
    if spec.get("dry"):
        return {"changed": bool(there)}
    boss.stop(units)
    boss.disable(units)
    for path in there:
        os.unlink(path)
    for service in spec["services"]:
        if os.path.exists(_mark(spec, service)):
            os.unlink(_mark(spec, service))
    boss.forget(units)
    return {"changed": bool(there), "data": {"removed": there}}


def shutdown(spec: Spec, emit: Emit) -> Result:
    """End supervisord itself, after the last service. spec: manager, supervisor."""
    boss = manager(spec)
    running = bool(boss.running())
    if running and not spec.get("dry"):
        boss.shutdown()
    return {"changed": running}


def state(spec: Spec, emit: Emit) -> Result:
    """What is on the box: manifest, releases, services, work that is going on. Reads only.

    spec: manifest, opt, run_dir, active_dir, journal, prefix, written (the record of files).
    """
    manifest = read_json(spec["manifest"])
    data: dict[str, Any] = {"manifest": manifest, "releases": {}, "services": {}, "work": {}}
    if "journal" in spec:
        data["unfinished"] = journal.unfinished(spec["journal"])
        data["holder"] = journal.holder(spec["prefix"])
        data["edited"] = files.edited(spec["written"])
        data["recovered"] = [e for e in journal.lines(spec["journal"]) if e["event"] == "recovered"][-3:]
    if manifest is not None:
        data["releases"] = held({"opt": spec["opt"]}, emit)["data"]
        wanted = manifest.get("services", [])
        status = manager(manifest["process"]).status([s["unit"] for s in wanted])
        for service, now in zip(wanted, status):
            now["recorded"] = _recorded({"active_dir": spec["active_dir"]}, service)
            data["services"][service["name"]] = now
    run_dir = spec["run_dir"]
    for name in sorted(os.listdir(run_dir)) if os.path.isdir(run_dir) else []:
        if name.endswith(".json"):
            work = read_json(os.path.join(run_dir, name), {})
            data["work"][name[:-5]] = seen(work) if work.get("kind") == "pull" else work
    return {"changed": False, "data": data}


def write_manifest(spec: Spec, emit: Emit) -> Result:
    """Merge `values` into the manifest; keys with null are removed. spec: path, values.

    A new plan is written before it is carried out, as not complete; that word is taken back at the end.
    """
    now = read_json(spec["path"], {})
    if "packages_added" in spec["values"]:  # what was not there before the first `up` stays known
        added = sorted({*now.get("packages_added", []), *spec["values"]["packages_added"]})
        spec = {**spec, "values": {**spec["values"], "packages_added": added}}
    if "versions" in spec["values"]:  # of roles that are left out too: their data was written by these
        versions = {**now.get("versions", {}), **spec["values"]["versions"]}
        spec = {**spec, "values": {**spec["values"], "versions": versions}}
    new = {key: value for key, value in {**now, **spec["values"]}.items() if value is not None}
    if {**new, "complete": True} == now:
        new = now
    changed = new != now
    if changed and not spec.get("dry"):
        write_json(spec["path"], new)
    return {"changed": changed}


def logs(spec: Spec, emit: Emit) -> Result:
    """The last lines of services. spec: manager, units, lines, log_dir."""
    lines = str(int(spec["lines"]))
    if spec["manager"] == "supervisord":
        paths = [os.path.join(spec["log_dir"], f"{unit}.log") for unit in spec["units"]]
        there = [path for path in paths if os.path.exists(path)]
        text = call(["tail", "-n", lines, *there], check=False) if there else ""
    else:
        option = journal_option(spec["manager"])
        chosen = [word for unit in spec["units"] for word in (option, f"{unit}.service")]
        text = call(["journalctl", "--no-pager", "-n", lines, "-o", "short-iso", *chosen], check=False)
    return {"changed": False, "data": {"text": text}}


def supervise(path: str) -> NoReturn:
    """Become the service that `path` describes: load its environment, give up root, run it."""
    with open(path, encoding="utf-8") as stream:
        service = json.load(stream)
    for needed in service["requires"]:
        if not os.path.exists(needed):
            sys.exit(f"{needed} is missing: not started")
    env = dict(service["environment"])
    for name in service["environment_files"]:
        env.update(read_environment(name))
    os.umask(int(service["umask"], 8))
    if os.getuid() == 0 and service["user"] != "root":
        import grp
        import pwd

        account = pwd.getpwnam(service["user"])
        groups = [grp.getgrnam(name).gr_gid for name in service["groups"] if _group_exists(name)]
        os.setgroups([account.pw_gid, *groups])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    os.chdir(service["working_directory"])
    os.execve(service["command"][0], service["command"], env)  # noqa: S606


def _group_exists(name: str) -> bool:
    import grp

    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def read_environment(path: str) -> dict[str, str]:
    """KEY=VALUE lines as systemd reads them: a value may be double quoted, with backslash escapes."""
    found = {}
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            key, _, value = line.partition("=")
            if len(value) > 1 and value[0] == value[-1] == '"':
                value = value[1:-1].replace('\\"', '"').replace("\\\\", "\\")
            found[key] = value
    return found


def ports(spec: Spec, emit: Emit) -> Result:
    """Listening TCP sockets with their owner's user id, from /proc. Reads only."""
    found = []
    for family in ("tcp", "tcp6"):
        with open(f"/proc/net/{family}", encoding="ascii") as stream:
            for line in list(stream)[1:]:
                words = line.split()
                if words[3] == "0A":
                    address, _, port = words[1].rpartition(":")
                    found.append({"address": _address(address), "port": int(port, 16), "uid": int(words[7])})
    return {"changed": False, "data": {"listening": found}}


def _address(raw: str) -> str:
    import socket
    import struct

    if len(raw) == 8:
        return socket.inet_ntop(socket.AF_INET, struct.pack("<I", int(raw, 16)))
    words = [struct.pack("<I", int(raw[i : i + 8], 16)) for i in range(0, 32, 8)]
    return socket.inet_ntop(socket.AF_INET6, b"".join(words))


def memory(spec: Spec, emit: Emit) -> Result:
    """Proportional and resident memory in bytes of each service's processes. spec: manager, services."""
    status = manager(spec).status([s["unit"] for s in spec["services"]])
    found = {}
    for service, now in zip(spec["services"], status):
        found[service["name"]] = _family(now["pid"]) if now["pid"] else {"rss": 0, "pss": 0}
    return {"changed": False, "data": found}


def _family(pid: int) -> dict[str, int]:
    children = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    pairs = [tuple(map(int, line.split())) for line in children.splitlines()]
    family = {pid}
    for _ in range(8):
        family |= {child for child, parent in pairs if parent in family}
    total = {"rss": 0, "pss": 0}
    for member in family:
        try:
            with open(f"/proc/{member}/smaps_rollup", encoding="ascii") as stream:
                for line in stream:
                    key = line.split(":")[0].lower()
                    if key in total:
                        total[key] += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def missing(spec: Spec, emit: Emit) -> Result:
    """Which of `paths` are not there. Reads only."""
    return {"changed": False, "data": {"missing": [path for path in spec["paths"] if not os.path.exists(path)]}}


def ready(spec: Spec, emit: Emit) -> Result:
    """Wait for one address. spec: url, seconds, what."""
    return {"changed": False, "data": {"seconds": wait_ready(spec["url"], spec["seconds"], spec["what"])}}


STEPS = {
    "activate": activate,
    "control": control,
    "disk": disk.usage,
    "logs": logs,
    "memory": memory,
    "missing": missing,
    "ports": ports,
    "ready": ready,
    "retire": retire,
    "shutdown": shutdown,
    "state": state,
    "write_manifest": write_manifest,
}
