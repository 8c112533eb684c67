"""Secrets looked for on a test host, with canary.py, which runs there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import canary
from .host import Host

PROGRAM = Path(canary.__file__).read_text()
RUN = "python3 /run/canary.py"
STOP = "/run/canary-stop"


@dataclass
class Seen:
    """[place, name] of each secret that showed in processes."""

    hits: list[list[str]] = field(default_factory=list)


def secrets(box: Host) -> dict[str, str]:
    """The box's secrets by name. Never print them."""
    return canary.of(box.output(canary.LISTING))


def shown(text: str, values: dict[str, str]) -> list[str]:
    """Names of the secrets that stand in a text."""
    return sorted({name for _, name in canary.hits("", text.encode(), canary.needles(values))})


def look(box: Host) -> list[list[str]]:
    """[place, name] of each secret that stands where none may: journal, logs, units, files that all may read."""
    box.run("cat > /run/canary.py", data=PROGRAM)
    return list(json.loads(box.output(f"{RUN} look")))


@contextlib.contextmanager
def watched(box: Host) -> Iterator[Seen]:
    """What shows in processes meanwhile; complete after the end."""
    box.run(f"cat > /run/canary.py; rm -f {STOP} {STOP}.on", data=PROGRAM)
    process = subprocess.Popen(
        [*box.ssh(), f"{RUN} watch {STOP}"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    seen = Seen()
    try:
        while box.run(f"test -e {STOP}.on", check=False).returncode:
            if process.poll() is not None:
                raise RuntimeError("the watcher of processes has ended by itself")
            time.sleep(0.1)
        yield seen
    finally:
        box.run(f"touch {STOP}", check=False)
        output, _ = process.communicate(timeout=60)
    seen.hits = list(json.loads(output))
