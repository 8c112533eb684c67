"""`plan` says what changed in a box's hardware, and what that means for its models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ownstack.cli import status
from ownstack.cli.plan import hardware_changes
from ownstack.errors import DetectionError
from ownstack.hardware.facts import load
from ownstack.hardware.interpret import interpret
from tests.fixtures.machines import PROBES


def models(*tags: str) -> Any:
    return [SimpleNamespace(tag=tag) for tag in tags]


def site(now: str, stands: bool = True) -> Any:
    """A box made on an RTX 4070 with two models, on the hardware of another probe."""
    old = SimpleNamespace(hardware=interpret(load(PROBES / "rtx-4070.json")).matters(), models=models("a", "b"))
    report = interpret(load(PROBES / f"{now}.json"))
    return SimpleNamespace(state=SimpleNamespace(stands=stands), report=report, recorded_plan=lambda: old)


@pytest.mark.parametrize(
    ("tags", "end"), [(("a", "b"), ""), (("a", "c"), ": 1 model would change"), (("c", "d"), ": 2 models would change")]
)
def test_a_replaced_card_and_what_it_means_are_one_line(tags: tuple[str, ...], end: str) -> None:
    (line,) = hardware_changes(site("rtx-4090"), SimpleNamespace(models=models(*tags)))  # type: ignore[arg-type]
    assert line.startswith("RTX 4070 12 GB replaced by RTX 4090 24 GB")
    assert line.endswith(end or "24 GB")


def test_nothing_is_said_where_nothing_changed_or_no_box_stands() -> None:
    made: Any = SimpleNamespace(models=models("x"))
    assert hardware_changes(site("rtx-4070"), made) == []
    assert hardware_changes(site("rtx-4090", stands=False), made) == []


def test_status_says_how_many_models_would_change_and_makes_no_plan_for_nothing() -> None:
    made = site("rtx-4090")
    made.plan = lambda: SimpleNamespace(models=models("c", "d"))
    (line,) = status.hardware_changes(made, made.recorded_plan())
    assert line == "RTX 4070 12 GB replaced by RTX 4090 24 GB: 2 models would change"

    def refused() -> Any:
        raise DetectionError("the card cannot be read", hint="look", code="HW-NVIDIA-LOST")

    made.plan = refused
    assert status.hardware_changes(made, made.recorded_plan()) == ["RTX 4070 12 GB replaced by RTX 4090 24 GB"]
    same = site("rtx-4070")
    same.plan = refused
    assert status.hardware_changes(same, same.recorded_plan()) == []
