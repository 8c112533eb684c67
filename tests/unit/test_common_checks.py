"""The checks that are alike for all services: each fails for what it is there to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from ownstack.engine import units
from ownstack.plan import Plan
from ownstack.verify import common
from ownstack.verify.check import Check
from ownstack.verify.runner import run_check
from roles import role
from tests.unit import machines


@dataclass
class Found:
    """A box as planned; a test breaks one thing of it."""

    plan: Plan
    active: bool = True
    enabled: bool = True
    recorded: str = ""
    listening: list[dict[str, Any]] = field(default_factory=list)
    modes: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        (service,) = role("qdrant").services(self.plan)
        self.recorded = units.fingerprint(self.plan, service, role("qdrant").files(self.plan))
        self.listening = [{"address": "127.0.0.1", "port": 6333, "uid": 990}]

    def step(self, name: str, **spec: Any) -> dict[str, Any]:
        if name == "box.ports":
            return {"listening": self.listening}
        assert name == "box.state"
        now = {"active": self.active, "enabled": self.enabled, "state": "active", "recorded": self.recorded, "pid": 7}
        return {"services": {"qdrant": now}}

    @property
    def host(self) -> Any:
        def file(path: str) -> Any:
            folder = path == self.plan.layout.secrets
            mode = self.modes.get(path.rsplit("/", 1)[1], 0o700 if folder else 0o600)
            return SimpleNamespace(exists=path.rsplit("/", 1)[1] not in self.missing, mode=mode)

        return SimpleNamespace(file=file, user=lambda name: SimpleNamespace(uid=990))


@pytest.fixture
def found() -> Found:
    return Found(machines.plan(flags={"roles": ["qdrant"]}))


def status(found: Found, name: str) -> str:
    check: Check = next(check for check in common.checks(found.plan) if check.id == name)
    result = run_check(check, found)
    assert result.outcome.status in ("ok", "skipped") or result.hint
    return f"{result.outcome.status}: {result.outcome.measured}"


def names(found: Found) -> list[str]:
    return [check.id for check in common.checks(found.plan)]


def test_a_box_as_planned_is_green(found: Found) -> None:
    assert {name: status(found, name).split(":")[0] for name in names(found)} == dict.fromkeys(names(found), "ok")
    everything = machines.plan()
    ids = [check.id for check in common.checks(everything)]
    assert len(ids) == len(set(ids))


def listen(address: str, port: int = 6333, uid: int = 990) -> Callable[[Found], None]:
    return lambda found: found.listening.append({"address": address, "port": port, "uid": uid})


BROKEN: list[tuple[str, Callable[[Found], Any], str]] = [
    ("qdrant-runs", lambda found: setattr(found, "active", False), "active"),
    ("qdrant-runs", lambda found: setattr(found, "enabled", False), "not enabled"),
    ("qdrant-loopback", lambda found: found.listening.clear(), "nothing listens on 6333"),
    ("qdrant-loopback", listen("0.0.0.0"), "0.0.0.0"),
    ("qdrant-loopback", listen("::"), "::"),
    ("qdrant-loopback", listen("192.168.1.7"), "192.168.1.7"),
    ("no-open-ports", listen("0.0.0.0", 9999), "0.0.0.0:9999"),
    ("secret-modes", lambda found: found.modes.update(secrets=0o755), "is 0755"),
    ("secret-modes", lambda found: found.modes.update(qdrant_api_key=0o644), "qdrant_api_key is 0644"),
    ("secret-modes", lambda found: found.missing.add("qdrant_read_only_key"), "qdrant_read_only_key is missing"),
    ("configuration", lambda found: setattr(found, "recorded", "other"), "qdrant runs with other configuration"),
    ("configuration", lambda found: setattr(found, "recorded", ""), "qdrant"),
]


@pytest.mark.parametrize(("name", "breaks", "words"), BROKEN)
def test_each_fault_is_found_by_its_check_alone(
    name: str, breaks: Callable[[Found], Any], words: str, found: Found
) -> None:
    breaks(found)
    assert status(found, name).startswith("failed: ")
    assert words in status(found, name)
    others = [other for other in names(found) if status(found, other).startswith("failed")]
    assert set(others) <= {name, "no-open-ports"}, "an open port of a service is found twice"


def test_ports_of_others_and_of_children_on_loopback_are_no_fault(found: Found) -> None:
    listen("0.0.0.0", 22, uid=0)(found)
    listen("127.0.0.1", 40123)(found)
    assert status(found, "no-open-ports").startswith("ok: ")
    assert "1 more" in status(found, "no-open-ports")


def test_a_version_below_its_floor_is_said_again_and_again() -> None:
    made = machines.plan(flags={"roles": ["qdrant"]}, answers=machines.restricted())
    assert "qdrant 1.16.3" in status(Found(made), "floors")


def test_one_account_for_all_cannot_tell_ports_apart(found: Found) -> None:
    found.plan = found.plan.model_copy(update={"system": False})
    assert status(found, "no-open-ports").startswith("skipped: ")
