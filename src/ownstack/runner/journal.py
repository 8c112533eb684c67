"""Steps that outlive the connection: run by a unit of their own, journalled, followed, attached to again.

`<run_dir>/steps/<id>.jsonl` holds the events of a step, the first line says what it is, the last one how it ended. The
process that works holds a lock on the file, so that a dead one is told from one that is still busy.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from typing import Any

from .core import Emit, Event, Result, Spec, StepError

FINAL = ("result", "error")


def step_id(step: str, spec: Spec) -> str:
    return hashlib.sha256(json.dumps([step, spec], sort_keys=True).encode()).hexdigest()[:12]


def journal(run_dir: str, step: str, spec: Spec) -> str:
    return os.path.join(run_dir, "steps", f"{step_id(step, spec)}.jsonl")


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
    return int(run(step, json.loads(text), writer))
