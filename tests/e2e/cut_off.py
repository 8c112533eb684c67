"""Commands that are killed in the middle: at a status of the upgrade, or at the moment when they tell of something."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from tests.hosts import Host
from tests.hosts.kit import Ownstack

STATUS = "var/lib/ownstack/run/upgrade.json"
# the product, which notes what it tells, each once, and ends itself without a word when it tells the one that was named
TOLD = r"""
import os, re, signal, sys
record, at = sys.argv[1:3]
del sys.argv[1:3]
from ownstack.cli import progress
plain, told = progress.Progress.__call__, []
def listening(self, event):
    words = re.sub(r" \(\d+ s\)$", "", str(event.get("name") or event.get("what") or ""))
    if words and words not in told:
        told.append(words)
        with open(record, "a") as out:
            out.write(words + "\n")
        if words == at:
            os.kill(os.getpid(), signal.SIGKILL)
    plain(self, event)
progress.Progress.__call__ = listening
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


def at(ownstack: Ownstack, told: str, record: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that is killed when it tells `told`; `record` gets all that it told, a line each."""
    python = str(ownstack.checkout / ".venv/bin/python")
    record.unlink(missing_ok=True)
    Path(ownstack.settings).write_text(ownstack.toml)
    argv = [python, "-P", "-c", TOLD, str(record), told, *ownstack.argv(*words)[1:]]
    return subprocess.run(
        argv, env=ownstack.environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
        check=False, start_new_session=True,
    )  # fmt: skip


def plainly(told: str) -> str:
    """Words of a record without what differs from host to host."""
    return re.sub(r"/\S+/", "", told)
