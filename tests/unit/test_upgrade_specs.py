"""What the steps of an upgrade are told: folders, units, keys; and a second instance that meets the first nowhere."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from ownstack.engine import upgrades
from ownstack.plan import Plan
from tests.unit import machines


@pytest.fixture
def plan() -> Plan:
    return machines.plan()


def test_a_snapshot_holds_what_belongs_together(plan: Plan) -> None:
    about: dict[str, dict[str, str]] = {"from": {}, "to": {}}
    found = {name: upgrades.take_spec(plan, name, "one", "r", "upgrade", about, "") for name in upgrades.GATE}
    assert {name: [item["name"] for item in spec["items"]] for name, spec in found.items()} == {
        "base": [], "qdrant": ["qdrant"], "ollama": ["ollama", "manifests"], "open_webui": ["open_webui", "qdrant"],
        "n8n": ["n8n"],
    }  # fmt: skip
    assert found["n8n"]["records"] == ["n8n-content.json"]
    assert found["ollama"]["records"] == ["models.json"]
    assert found["open_webui"]["secrets"] == ["open_webui_", "qdrant_"]
    assert found["open_webui"]["units"] == ["ownstack-open-webui", "ownstack-qdrant"], "who asks stops first"
    assert found["base"]["units"] == []
    assert set(found["n8n"]["components"]) == {"n8n", "node", "sqlite3-addon"}
    assert {"open_webui", "uv", "python"} <= set(found["open_webui"]["components"])
    assert "base" not in found["base"]["components"], "the runner goes with nothing back"
    kept = {part["name"] for part in found["n8n"]["plan"]["roles"]}
    assert kept == {"base", "n8n"}


def test_laid_ready_beside_are_the_same_releases_behind_other_links(plan: Plan) -> None:
    ready = upgrades.staged(plan)
    assert ready.layout.release("n8n", "2", "a" * 8) == plan.layout.release("n8n", "2", "a" * 8)
    assert ready.layout.current("n8n") == "/opt/ownstack/n8n/staged"
    assert ready.layout.current("base") == plan.layout.current("base")
    assert {"/opt/ownstack/n8n/staged", "/opt/ownstack/uv/staged"} <= set(upgrades.staged_links(plan))
    assert "/opt/ownstack/base/staged" not in upgrades.staged_links(plan)


def test_young_runs_are_surely_not_pruned_yet(plan: Plan) -> None:
    now = datetime.datetime(2026, 11, 29, 12, 0, tzinfo=datetime.UTC)
    assert upgrades.young(plan, now) == "2026-11-26 00:00:00.000"  # of 168 hours half


@pytest.mark.parametrize("name", ["open_webui", "n8n"])
def test_a_rehearsal_is_the_new_program_of_one_service_on_a_copy(name: str, plan: Plan) -> None:
    spec: dict[str, Any] = upgrades.rehearsal_spec(plan, name, 60, "")
    second = spec["second"]
    (one,) = second["services"]
    assert (one["name"], one["timeout"]) == (name, 60)
    assert not set(one["ports"]) & {port for part in plan.roles for port in part.ports.values()}
    assert second["programs"][name] == f"/opt/ownstack/{name}/staged"
    assert second["secrets_dir"] != spec["secrets_dir"] == plan.layout.secrets
    assert one["folder"].startswith("/var/lib/ownstack/scratch/rehearsal/")
    assert spec["item"]["place"] == plan.layout.data(name)
    assert "IPAddressDeny=any" in one["text"]
