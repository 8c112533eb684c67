"""What `ownstack bench` measured on this machine, and what follows for later predictions."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from .machine import Machine


def path() -> Path:
    """Where measurements are kept: below the user's state folder."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "ownstack" / "bench.json"


def read() -> list[dict[str, Any]]:
    """All measurements; none where there is no readable file."""
    try:
        data = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = data.get("measurements", []) if isinstance(data, dict) else []
    return [m for m in found if isinstance(m, dict)]


def key_of(machine: Machine) -> str:
    """The hardware that a measurement belongs to."""
    return "+".join(f"{d.name}/{d.total}" for d in machine.devices) or f"cpu/{machine.ram_total >> 30}"


def store(measurement: dict[str, Any]) -> None:
    """Add one measurement, keeping the last fifty."""
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = [*read(), measurement][-50:]
    fresh = target.with_suffix(".new")
    fresh.write_text(json.dumps({"schema": 1, "measurements": kept}, indent=1), encoding="utf-8")
    fresh.replace(target)


def apply_learned(machine: Machine) -> Machine:
    """The machine with its measured speed factor and driver overhead, where there are measurements."""
    mine = [m for m in read() if m.get("hardware") == key_of(machine)]
    ratios = [m["ratio"] for m in mine if isinstance(m.get("ratio"), (int, float)) and 0.05 < m["ratio"] < 20]
    overheads = [m["overhead"] for m in mine if isinstance(m.get("overhead"), int) and 0 <= m["overhead"] < 2**32]
    if ratios:
        import statistics  # slow to import, and seldom needed

        machine = replace(machine, efficiency=statistics.median(ratios))
    if overheads and machine.devices:
        span = (min(overheads), max(overheads))
        machine = replace(
            machine, devices=tuple(replace(d, overhead=span, overhead_measured=True) for d in machine.devices)
        )
    return machine


def measured(machine: Machine, tag: str) -> dict[str, Any] | None:
    """The last measurement of a model on this machine, as `bench` stored it."""
    mine = [m for m in read() if m.get("hardware") == key_of(machine) and m.get("model") == tag]
    return mine[-1] if mine and isinstance(mine[-1].get("measured"), dict) else None
