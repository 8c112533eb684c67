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
from ownstack.verify.runner import all_checks, run_check
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
    armed: bool = True
    edited: list[str] = field(default_factory=list)
    modes: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    gone: list[str] = field(default_factory=list)
    walls: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (service,) = role("qdrant").services(self.plan)
        self.recorded = units.fingerprint(self.plan, service, role("qdrant").files(self.plan))
        self.listening = [{"address": "127.0.0.1", "port": 6333, "uid": 990}]

    def step(self, name: str, **spec: Any) -> dict[str, Any]:
        if name == "box.ports":
            return {"listening": self.listening}
        if name == "box.missing":
            return {"missing": [path for path in spec["paths"] if path in self.gone]}
        if name == "recover.arm":
            return {"armed": self.armed}
        assert name == "box.state"
        now = {"active": self.active, "enabled": self.enabled, "state": "active", "recorded": self.recorded, "pid": 7}
        return {"services": {"qdrant": now}, "edited": self.edited}

    @property
    def host(self) -> Any:
        def file(path: str) -> Any:
            folder = path == self.plan.layout.secrets
            mode = self.modes.get(path.rsplit("/", 1)[1], 0o700 if folder else 0o600)
            return SimpleNamespace(exists=path.rsplit("/", 1)[1] not in self.missing, mode=mode)

        def run(command: str, *units: str) -> Any:
            assert command.split()[:2] == ["systemctl", "show"]
            now = {
                "User": "ownstack-qdrant",
                "ProtectSystem": "strict",
                "IPAddressDeny": "::/0 0.0.0.0/0",
                **self.walls,
            }
            blocks = [[f"Id={unit}", *(f"{key}={value}" for key, value in now.items())] for unit in units]
            return SimpleNamespace(stdout="\n\n".join("\n".join(block) for block in blocks) + "\n")

        return SimpleNamespace(file=file, run=run, user=lambda name: SimpleNamespace(uid=990))


def test_a_bound_folder_that_is_not_there_is_named(found: Found) -> None:
    found.plan = found.plan.model_copy(update={"folders": (("qdrant:disk", "/mnt/disk", True),)})
    found.gone = ["/mnt/disk"]
    assert status(found, "qdrant-runs") == "ok: active, enabled", "what runs needs nothing"
    found.active = False
    assert status(found, "qdrant-runs") == "failed: active, enabled: /mnt/disk is not there"


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


COMMON = ["no-open-ports", "secret-modes", "configuration", "edited", "protections", "recovery", "floors"]
SERVICE = [f"{name}-{what}" for name in ("qdrant", "ollama", "open-webui", "n8n") for what in ("runs", "loopback")]
OF_ROLES = [
    *("qdrant-config", "qdrant-key-required", "qdrant-version"),
    *("ollama-version", "ollama-cloud-off", "ollama-device", "ollama-gpu-watch"),
    *("models-planned", "models-bootstrap-only", "models-chat", "models-embedding"),
    *("models-gpu-used", "models-gpu-whole", "models-memory"),
    *("open-webui-login-required", "open-webui-signup-off", "open-webui-version", "open-webui-account"),
    *("open-webui-settings", "open-webui-models", "open-webui-context", "open-webui-chat", "open-webui-document"),
    *("n8n-owner", "n8n-login-required", "n8n-key", "n8n-kit-key", "n8n-config-mode", "n8n-version"),
    *("n8n-webhook", "n8n-demo"),
]
ON_GPUS = {"ollama-device", "ollama-gpu-watch", "models-gpu-used", "models-gpu-whole"}


def test_ids_are_those_that_scripts_know() -> None:
    """Scripts and tickets name them: one that is renamed or lost breaks them. New ones are added here."""
    everything = [*SERVICE, *COMMON, *OF_ROLES]
    with_card = all_checks(machines.plan("rtx-4090"))
    assert [check.id for check in with_card] == everything
    assert [check.id for check in all_checks(machines.plan())] == [name for name in everything if name not in ON_GPUS]
    assert all(check.title and check.hint and check.role for check in with_card)


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


@pytest.mark.parametrize(
    ("walls", "words"),
    [
        ({"User": ""}, "qdrant runs as root"),
        ({"ProtectSystem": "no"}, "qdrant may write to the system"),
        ({"IPAddressDeny": ""}, "qdrant may reach every network"),
    ],
)
def test_a_wall_that_somebody_took_down_is_told(walls: dict[str, str], words: str, found: Found) -> None:
    found.walls = walls
    assert status(found, "protections").startswith("amber: ")
    assert words in status(found, "protections")


def test_what_a_host_cannot_protect_is_told_again_and_again(found: Found) -> None:
    assert status(found, "protections").startswith("ok: each service has an account")
    opened = Found(
        machines.plan(flags={"roles": ["qdrant"], "network.qdrant": "internet"}), walls={"IPAddressDeny": ""}
    )
    assert status(opened, "protections").startswith("ok: "), "as the policy says"
    contained = Found(machines.plan("container-cgroup-v2", {"roles": ["qdrant"]}))
    assert "without systemd's sandbox and network policy" in status(contained, "protections")


def test_a_version_below_its_floor_is_said_again_and_again() -> None:
    made = machines.plan(flags={"roles": ["qdrant"]}, answers=machines.restricted())
    assert "qdrant 1.16.3" in status(Found(made), "floors")


def test_one_account_for_all_cannot_tell_ports_apart(found: Found) -> None:
    found.plan = found.plan.model_copy(update={"system": False})
    assert status(found, "no-open-ports").startswith("skipped: ")


def test_an_edited_file_is_named_and_a_recovery_that_would_not_run_fails(found: Found) -> None:
    found.edited, found.armed = ["/etc/ownstack/n8n/env"], False
    assert status(found, "edited").startswith("amber: edited by hand: /etc/ownstack/n8n/env")
    assert status(found, "recovery").startswith("failed: ownstack-recover")
