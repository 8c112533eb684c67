"""Dry runs of many steps by one start of the runner: what of a plan is still to do."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from .core import Emit, Event, Result, Spec

AT_ONCE = 8  # most of their time they wait for a service or for the process manager


def steps(spec: Spec, emit: Emit) -> Result:
    """The last event of each step's dry run, in order; they run side by side. Reads only.

    spec: steps: [[name, specification]].
    """
    from .__main__ import find

    for name, _ in spec["steps"]:  # before Python 3.10 no lock is held while a module of an archive is imported
        with contextlib.suppress(Exception):  # it says so itself
            find(name)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {"changed": False, "data": {"events": list(pool.map(_last, spec["steps"]))}}


def _last(named: tuple[str, Spec]) -> Event:
    from .__main__ import run

    events: list[Event] = []
    run(named[0], {**named[1], "dry": True}, events.append)
    return events[-1]


STEPS = {"steps": steps}
