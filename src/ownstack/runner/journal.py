"""The box's journal; and steps that outlive the connection: units of their own, followed, attached to again.

`<var>/journal.jsonl` has a line before and after each step that changes the box, whoever carried it out.
`<run_dir>/steps/<id>.jsonl` holds the events of a step, the first line says what it is, the last one how it ended. The
process that works holds a lock on the file, so that a dead one is told from one that is still busy.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from .core import Emit, Event, Result, Spec, StepError, read_json, write_json
from .hold import lock_path

FINAL = ("result", "error")
# what of this process's surroundings a step in a unit of its own is given: how to reach the network from here
PASSED = (
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy", "ALL_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_INDEX_URL", "PIP_CERT",
    "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS",
)  # fmt: skip


def step_id(step: str, spec: Spec) -> str:
    return hashlib.sha256(json.dumps([step, spec], sort_keys=True).encode()).hexdigest()[:12]


def journal(run_dir: str, step: str, spec: Spec) -> str:
    return os.path.join(run_dir, "steps", f"{step_id(step, spec)}.jsonl")


def note(path: str, event: str, step: str, **more: Any) -> None:
    """A line into the box's journal, on the disk before this returns. Without the box's folder there is none."""
    if not os.path.isdir(os.path.dirname(path)):
        return
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"time": int(time.time()), "event": event, "step": step, **more}) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def lines(path: str) -> list[Event]:
    """The journal's lines, oldest first; what a cut left half-written is left out."""
    found: list[Event] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and {"event", "step"} <= event.keys():
                        found.append(event)
    except OSError:
        return []
    return found


def unfinished(path: str) -> Event | None:
    """The step that was begun last and did not end: a run was cut off there, or is at it."""
    last: Event | None = None
    for event in lines(path):
        if event["event"] == "begin":
            last = event
        elif last is None:
            continue
        elif event["event"] == "done":  # a whole run went through
            last = None if event.get("run") in ("up", "down", last.get("run")) else last
        elif event["step"] == last["step"]:
            last = None
    return last


def holder(prefix: str) -> str:
    """Who holds the box now (see engine/hold.py), in words; empty where nobody does."""
    path = lock_path(prefix, os.getuid())
    if not busy(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as stream:
        return stream.readline().strip() or "somebody"


@contextlib.contextmanager
def kept_free(prefix: str) -> Iterator[str]:
    """Keep runs out of the box meanwhile; gives who holds it, in words, where somebody does.

    The lock is taken as it lies there, since a unit may not write where it lies: before the first run after a start of
    the machine there is none, and nobody is kept out.
    """
    try:
        stream = open(lock_path(prefix, os.getuid()), encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below
    except OSError:
        yield ""
        return
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            who = ""
        except BlockingIOError:
            who = stream.readline().strip() or "somebody"
        yield who


def busy(path: str) -> bool:
    """Whether a process works on the step whose journal this is."""
    try:
        with open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Writer:
    """Writes events to a journal that this process holds; each line is on the disk before work goes on."""

    def __init__(self, path: str, step: str) -> None:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        self.stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until the process ends
        fcntl.flock(self.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.stream.truncate(0)
        self({"event": "begin", "step": step, "pid": os.getpid()})

    def __call__(self, event: Event) -> None:
        self.stream.write(json.dumps(event) + "\n")
        self.stream.flush()
        if event["event"] != "progress":
            os.fsync(self.stream.fileno())


def outlive(step: str, spec: Spec, manager: str, unit: str, runner: str, emit: Emit) -> Result:
    """Start a step in a unit of its own, or find it at work already, and follow it to its end.

    Raises StepError with the step's own words, or when its process ended without a word.
    """
    from .detached import launch

    path = journal(spec["run_dir"], step, spec)
    if not busy(path):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if os.path.exists(path):
            os.unlink(path)
        given = {name: os.environ[name] for name in PASSED if name in os.environ}
        write_json(f"{path}.env", given, 0o600)  # not in the program line: a proxy's address may hold a password
        command = [runner, step, "--journal", path, json.dumps(spec, sort_keys=True)]
        launch(manager, f"{unit}-{step_id(step, spec)}", command, f"{path}.log")
    last = follow(path, emit)
    if last["event"] == "error":
        raise StepError(last["message"], hint=last.get("hint", ""), code=last.get("code", "step-failed"))
    return {"changed": bool(last.get("changed")), "data": last.get("data", {})}


def follow(path: str, emit: Emit, start_s: float = 30.0) -> Event:
    """Pass on the events of a journal until its last one; gives that one."""
    began = time.monotonic()
    while not os.path.exists(path):
        if time.monotonic() - began > start_s:
            raise StepError(
                "the step did not start", hint=f"see {path}.log and the system's journal", code="not-started"
            )
        time.sleep(0.05)
    with open(path, encoding="utf-8") as stream:
        line = ""
        while True:
            line += stream.readline()
            if line.endswith("\n"):
                event: dict[str, Any] = json.loads(line)
                line = ""
                if event["event"] in FINAL:
                    return event
                if event["event"] == "progress":
                    emit(event)
            elif not busy(path) and time.monotonic() - began > 2 and not stream.readline():
                raise StepError(
                    "the step was interrupted", hint="run the same command again: it goes on", code="interrupted"
                )
            else:
                time.sleep(0.1)


def attached(arguments: list[str], run: Any) -> int:
    """`runner STEP --journal PATH SPEC`: work on a step with the journal as its output."""
    step, _, path, text = arguments[:4]
    try:
        writer = Writer(path, step)
    except BlockingIOError:
        sys.exit("this step is being worked on already")
    os.environ.update(read_json(f"{path}.env", {}))
    with contextlib.suppress(OSError):
        os.unlink(f"{path}.env")
    return int(run(step, json.loads(text), writer))


def outliving(spec: Spec, emit: Emit) -> Result:
    """Any step, in a unit of its own: it goes on when the connection drops, and who asks again is attached to it.

    spec: step, spec (its own), run_dir, manager, unit, runner.
    """
    inner = {**spec["spec"], "run_dir": spec["run_dir"]}
    return outlive(spec["step"], inner, spec["manager"], spec["unit"], spec["runner"], emit)


STEPS = {"outlive": outliving}
