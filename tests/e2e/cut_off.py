"""Commands that are killed in the middle: at a status of the upgrade, or at a point of their work."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

from tests.hosts import Host
from tests.hosts.kit import Ownstack

STATUS = "var/lib/ownstack/run/upgrade.json"
SEED = 20261130
BY = ("kill -9", "hard stop of the host")
# `CUTS=all tests/run --full ...` cuts off at every point and `CUTS=steps` at every step of the journal, which take
# hours; else a seeded sample, of `CUTS` points
CUTS = os.environ.get("CUTS", "")
ALL, STEPS = CUTS == "all", CUTS == "steps"
# the product, which notes each point that it comes to, and ends itself without a word at the one that was named. A
# point is "2 NAME", when a step of the journal begins for the second time, or "told WORDS", the first time
TOLD = r"""
import os, re, signal, sys
record, at = sys.argv[1:3]
del sys.argv[1:3]
from ownstack.cli import progress
from ownstack.engine.session import Session
plain_told, plain_note, counted, told = progress.Progress.__call__, Session.note, {}, set()
def reached(point):
    with open(record, "a") as out:
        out.write(point + "\n")
    if point == at:
        os.kill(os.getpid(), signal.SIGKILL)
def listening(self, event):
    words = re.sub(r" \(\d+ s\)$", "", " ".join(str(event.get("what") or "").split()))
    if words and words not in told:
        told.add(words)
        reached(f"told {words}")
    plain_told(self, event)
def noting(self, event, step, **more):
    plain_note(self, event, step, **more)
    if event == "begin":
        counted[step] = counted.get(step, 0) + 1
        reached(f"{counted[step]} {step}")
progress.Progress.__call__, Session.note = listening, noting
from ownstack.cli import main
sys.exit(main())
"""


def status(box: Host) -> str:
    """How far the last upgrade of a host is, as it is on its disk; empty where there was none."""
    try:
        return str(json.loads((box.root / STATUS).read_text())["status"])
    except (OSError, ValueError):
        return ""


def when(box: Host, ownstack: Ownstack, wanted: str, late_s: float, *words: str) -> int:
    """Kill a command some seconds after the upgrade has got to a status; its exit status."""
    Path(ownstack.settings).write_text(ownstack.toml)
    process = subprocess.Popen(
        ownstack.argv(*words), env=ownstack.environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and status(box) != wanted:
        time.sleep(0.02)
    time.sleep(late_s)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def at(ownstack: Ownstack, point: str, record: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is killed at a point; `record` gets all that it came to, a line each."""
    python = str(ownstack.checkout / ".venv/bin/python")
    record.unlink(missing_ok=True)
    Path(ownstack.settings).write_text(ownstack.toml)
    argv = [python, "-P", "-c", TOLD, str(record), point, *ownstack.argv(*words)[1:]]
    return subprocess.run(
        argv, env=ownstack.environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
        check=False, start_new_session=True,
    )  # fmt: skip


def whole(ownstack: Ownstack, record: Path, *words: str) -> list[str]:
    """The points of a command that is not killed, in their order."""
    done = at(ownstack, "", record, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return record.read_text().splitlines()


def numbered(steps: list[str]) -> list[str]:
    """Steps of a journal as points."""
    counted = dict.fromkeys(steps, 0)
    found = []
    for step in steps:
        counted[step] += 1
        found.append(f"{counted[step]} {step}")
    return found


def is_step(point: str) -> bool:
    """Whether a step of the journal begins there: an operation, or a step of the runner."""
    return not point.startswith("told ")


def chosen(points: list[str], number: int, what: str) -> list[str]:
    """All of them, or a seeded sample in their order; `what` it is drawn for makes samples differ."""
    if STEPS:
        return [point for point in points if is_step(point)]
    number = len(points) if ALL else int(CUTS or number)
    if len(points) <= number:
        return points
    chance = random.Random(f"{SEED} {what}")  # noqa: S311 - not for secrets
    return [points[place] for place in sorted(chance.sample(range(len(points)), number))]


def sampled() -> str:
    """For the head of a result page."""
    if STEPS:
        return "At every step of the journal."
    return "At every point." if ALL else "At a seeded sample of the points."


def plainly(point: str) -> str:
    """A point without what differs from host to host."""
    return re.sub(r"/\S+/", "", point)
