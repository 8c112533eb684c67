"""Dry runs of many steps by one start of the runner: what of a plan is still to do."""

from __future__ import annotations

from .core import Emit, Event, Result, Spec


def steps(spec: Spec, emit: Emit) -> Result:
    """The last event of each step's dry run, in order. Reads only. spec: steps: [[name, specification]]."""
    from .__main__ import run

    last = []
    for name, one in spec["steps"]:
        events: list[Event] = []
        run(name, {**one, "dry": True}, events.append)
        last.append(events[-1])
    return {"changed": False, "data": {"events": last}}


STEPS = {"steps": steps}
