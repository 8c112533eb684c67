"""Reports, sources and data for tests of choosing and planning."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ownstack.choosing import choose, selection
from ownstack.data import Data, load_data
from ownstack.fitting.choose import FitData, Selection, Wishes, choose_models
from ownstack.hardware.facts import load as load_probe
from ownstack.hardware.interpret import interpret
from ownstack.hardware.report import HardwareReport, Port
from ownstack.plan import Plan
from ownstack.settings import ROLE_NAMES, load
from ownstack.state import BoxState, SourceReport

PROBES = Path(__file__).parents[1] / "fixtures/probes"
REGISTRIES = {"pypi": "", "npm": "", "go": "", "debian": ""}

Chooser = Callable[[HardwareReport, Wishes, FitData], Selection]


def once(choose: Chooser) -> Chooser:
    """Models are chosen once in a test run for the same machine and wishes: that is most of what a plan takes."""
    made: dict[tuple[str, str, int], tuple[FitData, Selection]] = {}

    def remembered(report: HardwareReport, wishes: Wishes, data: FitData) -> Selection:
        key = (report.model_dump_json(), repr(wishes), id(data))
        if key not in made:
            made[key] = (data, choose(report, wishes, data))  # what is kept keeps its number
        return made[key][1]

    return remembered


selection.choose_models = once(choose_models)  # type: ignore[attr-defined, assignment]


@functools.cache
def report(name: str) -> HardwareReport:
    """The report of a saved probe."""
    return interpret(load_probe(PROBES / f"{name}.json"))


@functools.cache
def data() -> Data:
    return load_data(ROLE_NAMES)


def sources(down: dict[str, str] | None = None, models: str = "") -> SourceReport:
    """All answer, but for the vendors' hosts in `down` (host -> reason)."""
    target = dict.fromkeys(data().vendor_hosts(), "") | (down or {})
    return SourceReport(target=target, controller=REGISTRIES, models=models)


def restricted() -> SourceReport:
    """A network that reaches package registries only."""
    return sources(dict.fromkeys(data().vendor_hosts(), "no route"), models="no route")


def changed(name: str, **parts: Any) -> HardwareReport:
    """The report of `name` with other values: `memory={"total_bytes": 1}`, `ports=(...)`."""
    made = report(name)
    values = {
        key: value if isinstance(value, tuple) else getattr(made, key).model_copy(update=value)
        for key, value in parts.items()
    }
    return made.model_copy(update=values)


def listening(number: int, **about: Any) -> Port:
    return Port(address="127.0.0.1", port=number, **about)


def plan(
    machine: str | HardwareReport = "bare-server",
    flags: dict[str, Any] | None = None,
    answers: SourceReport | None = None,
    state: BoxState | None = None,
) -> Plan:
    """The plan for a machine, by the real `choose` and the kit's own data."""
    seen = report(machine) if isinstance(machine, str) else machine
    return choose(seen, load(flags, None, {}), data(), answers or sources(), state or BoxState())


def box(made: Plan, **more: Any) -> BoxState:
    """The state of a host on which `made` was carried out."""
    from ownstack.engine.role_tasks import manifest_values

    return BoxState(manifest={**manifest_values(made), "complete": True, "installed": True, **more})
