"""A second instance of services beside those of the box: on other data, on other ports of this machine, sealed off.

Everything of it lies in one folder, and its units only in memory: after a restart of the machine nothing of it runs.
What the box itself runs is neither stopped nor written to, and a unit ends by itself after an hour if nobody ends it.

A specification (`ownstack.engine.scratch` makes it): root (the folder), mark (a file that is there meanwhile), manager,
runner, opt, programs {component: release} or none, etc, secrets_dir, folders (of configuration), files (as for
`secrets.fill`), services: [{name, unit, text (unit or description), ready, timeout, folder, like (the box's own folder:
owner and mode), hidden, ports, memory_bytes}].
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator

from .box import ports
from .core import Emit, Spec, StepError, progress, read_json, write_file, write_json
from .detached import alive, born, journal_option, systemd
from .http import request
from .managers import call
from .secrets import fill

LONGEST_S = 3600
# what a second instance is given beside its own needs, so that the box does not begin to swap
SPARE = 256 << 20


def service(spec: Spec, name: str) -> Spec:
    found: Spec = next(one for one in spec["services"] if one["name"] == name)
    return found


@contextlib.contextmanager
def place(spec: Spec) -> Iterator[None]:
    """The folders of a second instance, without data; all of it is gone afterwards, also what an earlier one left."""
    clear(spec)
    write_json(spec["mark"], {"status": "running"})
    try:
        _folders(spec)
        yield
    finally:
        clear(spec)


def _folders(spec: Spec) -> None:
    for path, mode in (
        (os.path.dirname(spec["root"]), 0o755), (spec["root"], 0o711), (spec["etc"], 0o755),
        (spec["secrets_dir"], 0o700), *[(path, 0o755) for path in spec["folders"]],
        *[(os.path.dirname(one["folder"]), 0o755) for one in spec["services"]],
    ):  # fmt: skip
        _folder(path, mode)
    for name in os.listdir(spec["opt"]) if spec["programs"] else ():
        now = os.path.join(spec["opt"], name, "current")
        if os.path.exists(now):
            folder = os.path.join(spec["root"], "opt", name)
            for path in (os.path.dirname(folder), folder):
                _folder(path, 0o755)
            os.symlink(spec["programs"].get(name, os.path.realpath(now)), os.path.join(folder, "current"))


def _folder(path: str, mode: int) -> None:
    os.makedirs(path, exist_ok=True)
    os.chmod(path, mode)  # whatever the umask is


def clear(spec: Spec) -> None:
    """End the second instances and take away everything of them."""
    for one in spec["services"]:
        stop(spec, one["name"])
    if os.path.isdir(spec["root"]):
        shutil.rmtree(spec["root"])
    if os.path.exists(spec["mark"]):
        os.unlink(spec["mark"])


def left(spec: Spec) -> bool:
    """Whether something of a second instance is there."""
    return os.path.isdir(spec["root"]) or os.path.exists(spec["mark"])


def own(spec: Spec, name: str) -> None:
    """Give a service's data to the account that the box's own data belongs to."""
    one = service(spec, name)
    state = os.stat(one["like"])
    os.chmod(one["folder"], state.st_mode & 0o777)
    give(one["folder"], state)


def give(top: str, owner: os.stat_result) -> None:
    if os.geteuid() != 0:
        return
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files]:
            os.lchown(os.path.join(folder, name), owner.st_uid, owner.st_gid)
    os.lchown(top, owner.st_uid, owner.st_gid)


# ------------------------------------------------------------------------------------------------------- running


def start(spec: Spec, name: str, emit: Emit) -> None:
    """Start one service on the data in its folder, and wait until it is ready. Raises StepError with its last words."""
    one = service(spec, name)
    _room(one)
    fill({"secrets_dir": spec["secrets_dir"], "files": spec["files"]}, emit)
    progress(emit, f"starting a second {name}")
    began = time.monotonic()
    if spec["manager"] == "supervisord":
        _spawn(spec, one)
    else:
        _unit(spec, one)
    while time.monotonic() - began < one["timeout"]:
        if request("GET", one["ready"], timeout=5)[0] == 200 and runs(spec, name):
            return
        if time.monotonic() - began > 5 and not runs(spec, name):
            break
        time.sleep(0.2)
    raise StepError(
        f"{name} does not start on it: {words(spec, name)}",
        hint="the box itself runs on as it was",
        code="scratch-not-ready",
    )


def _room(one: Spec) -> None:
    """Raises StepError where a port is taken or memory is short."""
    # looked up, not tried: who starts this may be allowed to bind no port
    taken = {row["port"] for row in ports({}, lambda event: None)["data"]["listening"]}
    for port in sorted(taken & set(one["ports"])):
        raise StepError(
            f"port {port}, which a second {one['name']} needs for a moment, is taken",
            hint=f"`ss -ltnp sport = :{port}` shows by whom; run again when it is free",
            code="port-taken",
        )
    free = available()
    if free < one["memory_bytes"] + SPARE:
        raise StepError(
            f"{free >> 20} MiB of memory are free, a second {one['name']} needs {one['memory_bytes'] >> 20} and a rest",
            hint="run it at a quiet time, when no large model is loaded",
            code="memory",
        )


def available() -> int:
    """Bytes of memory that programs can have without swapping."""
    with open("/proc/meminfo", encoding="ascii") as stream:
        found = dict(line.split(":", 1) for line in stream)
    return int(found["MemAvailable"].split()[0]) * 1024


def units_dir(spec: Spec) -> str:
    """Where units lie that are forgotten when the machine restarts."""
    systemd(spec["manager"])
    return "/run/systemd/system" if spec["manager"] == "systemd" else f"{os.environ['XDG_RUNTIME_DIR']}/systemd/user"


def _unit(spec: Spec, one: Spec) -> None:
    path = os.path.join(units_dir(spec), f"{one['unit']}.service")
    lines = ["[Service]", "Restart=no", f"RuntimeMaxSec={LONGEST_S}"]
    if spec["manager"] == "systemd":
        lines += [f'InaccessiblePaths="-{hidden}"' for hidden in one["hidden"]]
    os.makedirs(f"{path}.d", exist_ok=True)
    write_file(path, one["text"].encode(), 0o644)
    write_file(f"{path}.d/scratch.conf", ("\n".join(lines) + "\n").encode(), 0o644)
    ctl = ["systemctl", *systemd(spec["manager"])]
    call([*ctl, "daemon-reload"])
    call([*ctl, "start", f"{one['unit']}.service"])


def _spawn(spec: Spec, one: Spec) -> None:
    description = os.path.join(spec["etc"], f"{one['name']}.json")
    write_file(description, one["text"].encode())
    with open(_log(spec, one), "ab") as out:
        child = subprocess.Popen(
            [spec["runner"], "exec", description], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/",
            start_new_session=True, close_fds=True,
        )  # fmt: skip
    write_json(_mark(spec, one), {"pid": child.pid, "born": born(child.pid)})


def _log(spec: Spec, one: Spec) -> str:
    return os.path.join(spec["root"], f"{one['name']}.log")


def _mark(spec: Spec, one: Spec) -> str:
    return os.path.join(spec["root"], f"{one['name']}.process")


def runs(spec: Spec, name: str) -> bool:
    one = service(spec, name)
    if spec["manager"] == "supervisord":
        now = read_json(_mark(spec, one), {})
        return alive(int(now.get("pid", 0)), now.get("born", ""))
    ctl = ["systemctl", *systemd(spec["manager"])]
    return call([*ctl, "is-active", f"{one['unit']}.service"], check=False).strip() in ("active", "activating")


def stop(spec: Spec, name: str) -> None:
    """End one service; its data stays until the place is cleared."""
    one = service(spec, name)
    if spec["manager"] == "supervisord":
        _end(spec, name, int(read_json(_mark(spec, one), {}).get("pid", 0)))
        return
    path = os.path.join(units_dir(spec), f"{one['unit']}.service")
    if os.path.exists(path):
        ctl = ["systemctl", *systemd(spec["manager"])]
        call([*ctl, "stop", f"{one['unit']}.service"], check=False)
        os.unlink(path)
        shutil.rmtree(f"{path}.d", ignore_errors=True)
        call([*ctl, "daemon-reload"], check=False)
        call([*ctl, "reset-failed", f"{one['unit']}.service"], check=False)


def _end(spec: Spec, name: str, pid: int) -> None:
    """End a process and its children, gently first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not runs(spec, name):
            return
        with contextlib.suppress(OSError):
            os.killpg(pid, number)
        for _ in range(150):
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
            if not runs(spec, name):
                return
            time.sleep(0.1)


def words(spec: Spec, name: str) -> str:
    """The last lines that a second instance said."""
    one = service(spec, name)
    if spec["manager"] == "supervisord":
        text = call(["tail", "-n", "5", _log(spec, one)], check=False)
    else:
        option = journal_option(spec["manager"])
        text = call(["journalctl", "--no-pager", "-n", "5", "-o", "cat", option, f"{one['unit']}.service"], check=False)
    return " / ".join(line.strip()[:200] for line in text.splitlines() if line.strip()) or "it says nothing"


# -------------------------------------------------------------------------------------------------------- at rest

# A copy must not begin to work by itself: the box does that already. So what has its time is switched off in the copy.
# service: (database below its folder, table, ((column, what it becomes), ...))
AT_REST: dict[str, tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]] = {
    "open_webui": (
        ("webui.db", "automation", (("is_active", "0"),)),
        ("webui.db", "chat", (("timer_at", "NULL"),)),
        ("webui.db", "calendar_event", (("is_cancelled", "1"),)),
    ),
    "n8n": (
        (".n8n/database.sqlite", "workflow_entity", (("active", "0"), ("activeVersionId", "NULL"))),
        (
            ".n8n/database.sqlite",
            "execution_entity",
            (
                ("waitTill", "NULL"),
                ("status", "CASE WHEN status IN ('new', 'running', 'waiting') THEN 'canceled' ELSE status END"),
            ),
        ),
    ),
}


def at_rest(spec: Spec, name: str) -> None:
    """Switch off in a copy what would begin by itself: timers, automations, published workflows."""
    for file, table, changes in AT_REST.get(name, ()):
        path = os.path.join(service(spec, name)["folder"], file)
        if not os.path.exists(path):
            continue
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as database, database:
            there = {str(row[1]) for row in database.execute(f"PRAGMA table_info({table})")}
            sets = ", ".join(f"{column} = {value}" for column, value in changes if column in there)
            if sets:
                database.execute(f"UPDATE {table} SET {sets}")  # noqa: S608 - words of this module alone
