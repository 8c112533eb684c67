"""Dry runs of many steps by one start of the runner."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ownstack.runner import box, dry
from ownstack.runner.core import Event


def silent(event: Event) -> None:
    """Nobody listens."""


def test_each_step_says_how_it_ended_in_the_order_asked() -> None:
    asked = [["box.missing", {"paths": [f"/not/{n}"]}] for n in range(20)]
    asked[3] = ["box.no-such", {}]
    asked[7] = ["box.missing", {}]
    events = dry.steps({"steps": asked}, silent)["data"]["events"]
    assert [event["event"] == "error" for event in events] == [n in (3, 7) for n in range(20)]
    assert (events[3]["message"], events[7]["code"]) == ("there is no step 'box.no-such'", "bug")
    assert [e["data"]["missing"] for e in events if e["event"] == "result"] == [
        [f"/not/{n}"] for n in range(20) if n not in (3, 7)
    ]


def test_they_run_side_by_side_and_dry(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4)

    def waiting(spec: dict[str, Any], emit: Any) -> dict[str, Any]:
        together.wait(30)
        return {"changed": bool(spec["dry"])}

    monkeypatch.setitem(box.STEPS, "missing", waiting)
    events = dry.steps({"steps": [["box.missing", {}]] * 4}, silent)["data"]["events"]
    assert [event["changed"] for event in events] == [True] * 4
