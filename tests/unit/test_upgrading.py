"""What moves at an upgrade, over which versions, and what has to stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ownstack.choosing.artifacts import Wanted
from ownstack.data import Data
from ownstack.errors import ConfigError, RunError
from ownstack.plan import ChosenArtifact, Plan
from ownstack.state import BoxState, SourceReport
from ownstack.upgrading import (
    Held,
    Upgrade,
    filled,
    find,
    losses,
    opens,
    path,
    refused,
    role_named,
    since,
    stages,
    step_of,
)
from tests.unit import machines


def older(plan: Plan, **versions: str) -> Plan:
    """The same box, made from an earlier lock: component (with `_`) -> its version then."""

    def then(item: ChosenArtifact) -> ChosenArtifact:
        version = versions.get(item.name.replace("-", "_"))
        return item if version is None else item.model_copy(update={"version": version, "sha256": "e" * 64})

    parts = tuple(
        part.model_copy(update={"artifacts": tuple(then(item) for item in part.artifacts)}) for part in plan.roles
    )
    return plan.model_copy(update={"roles": parts})


def wanted(plan: Plan, sources: SourceReport | None = None, data: Data | None = None, **more: Any) -> Wanted:
    state: BoxState = machines.box(plan)
    return Wanted(
        report=machines.report("bare-server"), sources=sources or machines.sources(), state=state,
        data=data or machines.data(), platform=plan.platform, engine=plan.engine, mirror="", local=False,
        restricted="auto", allow_below_floor=False, **more,
    )  # fmt: skip


def versions(found: Upgrade) -> dict[str, tuple[str, str]]:
    return {move.component: (move.old.version, move.new.version) for move in found.moves}


def test_nothing_newer_moves_nothing() -> None:
    plan = machines.plan()
    found = find(plan, wanted(plan))
    assert found.moves == ()
    assert not [item for item in found.held if item.refused]
    assert {"qdrant", "ollama", "open-webui", "n8n", "node", "uv"} <= {item.component for item in found.held}
    refused(found)


def test_what_is_older_than_the_lock_moves_with_its_own_role() -> None:
    lock = machines.plan()
    plan = older(lock, open_webui="0.11.4", n8n="2.40.7", ollama="0.32.15", uv="0.12.0", node="24.19.0")
    found = find(plan, wanted(plan))
    now = {item.name: item.version for part in lock.roles for item in part.artifacts}
    assert versions(found) == {
        "open-webui": ("0.11.4", now["open-webui"]), "n8n": ("2.40.7", now["n8n"]), "node": ("24.19.0", now["node"]),
        "ollama": ("0.32.15", now["ollama"]), "uv": ("0.12.0", now["uv"]),
    }  # fmt: skip
    assert found.roles == ("ollama", "open_webui", "n8n"), "the engine first, then what asks it"
    assert {move.component for move in found.of("open_webui")} == {"open-webui", "uv"}
    assert {move.component: move.step for move in found.moves}["open-webui"] == "major"
    (end,) = stages(plan, found.of("n8n"))
    after = {item.name: item.version for part in end.roles for item in part.artifacts}
    assert (after["n8n"], after["node"], after["open-webui"]) == (now["n8n"], now["node"], "0.11.4")
    assert end.models == plan.models


def test_only_what_is_named_moves() -> None:
    plan = older(machines.plan(), open_webui="0.11.4", n8n="2.40.7")
    found = find(plan, wanted(plan), ["n8n"])
    assert set(versions(found)) == {"n8n"}
    assert {item.role for item in found.held} == {"n8n"}


def test_the_same_version_with_other_packages_is_told_as_such() -> None:
    plan = older(machines.plan(), n8n=machines.plan().role("n8n").artifact("n8n").version)
    (move,) = find(plan, wanted(plan)).moves
    assert move.step == "packages"


def test_never_below_what_wrote_the_data() -> None:
    plan = older(machines.plan(), n8n="2.99.0", qdrant="1.99.0")
    found = find(plan, wanted(plan))
    assert found.moves == ()
    why = {item.component: item.why for item in found.held if item.refused}
    assert "older than what wrote the data" in why["n8n"]
    assert "older than what wrote the data" in why["qdrant"]
    with pytest.raises(RunError, match="older than what wrote the data") as caught:
        refused(find(plan, wanted(plan), ["n8n"]))
    assert caught.value.code == "no-upgrade"


def test_a_source_that_is_away_is_named_and_nothing_older_is_taken() -> None:
    """A vendor's Ollama moves to no older one of a package registry."""
    plan = older(machines.plan(), ollama="0.39.0")
    away = machines.sources({"github.com": "timed out"})
    (held,) = [item for item in find(plan, wanted(plan, away), ["ollama"]).held if item.component == "ollama"]
    assert held.refused
    assert "0.34.2, older than what wrote the data" in held.why


def test_a_version_below_its_floor_is_not_taken() -> None:
    plan = older(machines.plan(), n8n="2.40.7")
    data = machines.data()
    low = replace(data, floors=replace(data.floors, floor={**data.floors.floor, "n8n": "9.0.0"}))
    (held,) = [item for item in find(plan, wanted(plan, data=low), ["n8n"]).held if item.component == "n8n"]
    assert held.refused
    assert "below the security floor 9.0.0" in held.why


def test_another_python_is_not_moved_but_a_patch_of_it_is() -> None:
    lock = machines.plan()
    item = lock.role("base").artifact("python")
    own = item.model_copy(update={"kind": "file", "variant": "standalone", "version": "3.12.1", "sha256": "e" * 64})
    rows = [row for row in machines.data().artifacts["base"] if row["name"] == "python"]
    only = [{**rows[0], "variant": [one for one in rows[0]["variant"] if one["id"] == "standalone"]}]
    data = replace(machines.data(), artifacts={**machines.data().artifacts, "base": only})

    def box(version: str) -> Plan:
        held = own.model_copy(update={"version": version})
        base = lock.role("base").model_copy(update={"artifacts": (held,)})
        return lock.model_copy(update={"roles": (base, *lock.roles[1:])})

    (move,) = find(box("3.12.1"), wanted(box("3.12.1"), data=data)).moves
    assert (move.role, move.step) == ("open_webui", "patch")
    found = find(box("3.11.9"), wanted(box("3.11.9"), data=data))
    assert found.moves == ()
    assert "another Python" in next(row.why for row in found.held if row.component == "python")


# -- minor by minor ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "listed", "via"),
    [
        ("1.19.0", "1.19.2", (), ()),
        ("1.18.3", "1.19.2", (), ()),
        ("1.16.3", "1.19.2", ("1.17.0", "1.17.1", "1.18.0", "1.18.2", "1.18.10"), ("1.17.1", "1.18.10")),
        ("1.9.7", "1.11.5", ("1.10.1",), ("1.10.1",)),
        ("1.19.2", "2.1.0", ("2.0.3",), ("2.0.3",)),
        ("1.18.2", "2.0.1", ("1.19.2",), ("1.19.2",)),
        ("1.17.0", "2.0.1", ("1.18.0", "1.19.2"), ("1.18.0", "1.19.2")),
    ],
)
def test_one_minor_version_at_a_time_by_its_latest_patch(
    old: str, new: str, listed: tuple[str, ...], via: tuple[str, ...]
) -> None:
    assert path("qdrant", old, new, listed) == via


@pytest.mark.parametrize(
    ("old", "new", "listed", "missing"),
    [
        ("1.16.3", "1.19.2", (), "1.17"),
        ("1.16.3", "1.19.2", ("1.17.1",), "1.18"),
        ("1.16.3", "1.19.2", ("1.18.2",), "1.17"),
        ("1.19.2", "3.0.0", (), "1.20"),
    ],
)
def test_a_missing_step_is_refused(old: str, new: str, listed: tuple[str, ...], missing: str) -> None:
    with pytest.raises(RunError, match=f"has no {missing.replace('.', '[.]')}") as caught:
        path("qdrant", old, new, listed)
    assert caught.value.code == "upgrade-path"


@pytest.mark.parametrize(
    ("old", "new", "at_once"),
    [
        ("1.19.0", "1.19.2", True),
        ("1.18.3", "1.19.2", True),
        ("1.17.9", "1.19.2", False),
        ("1.9.0", "1.19.0", False),
        ("1.20.0", "1.19.2", False),
        ("0.18.0", "1.19.2", False),
        ("1.19.2", "2.0.0", False),
    ],
)
def test_data_is_opened_at_once_by_the_same_and_the_next_minor_version(old: str, new: str, at_once: bool) -> None:
    assert opens(old, new) == at_once


def with_steps(*listed: str) -> Data:
    data = machines.data()
    (row,) = data.artifacts["qdrant"]
    last = next(one for one in row["variant"] if one["id"] == "vendor-musl")
    rows = [{**last, "id": f"step-{version}", "version": version, "sha256": version[-1] * 64} for version in listed]
    return replace(data, artifacts={**data.artifacts, "qdrant": [{**row, "step": rows}]})


def test_qdrant_goes_by_way_of_the_steps_of_the_table() -> None:
    plan = older(machines.plan(), qdrant="1.16.3")
    data = with_steps("1.17.0", "1.17.1", "1.18.4")
    (move,) = find(plan, wanted(plan, data=data), ["qdrant"]).moves
    assert [item.version for item in move.via] == ["1.17.1", "1.18.4"]
    assert [p.role("qdrant").artifact("qdrant").version for p in stages(plan, [move])] == ["1.17.1", "1.18.4", "1.19.2"]
    assert move.via[0].sha256 == "1" * 64


def test_qdrant_without_a_step_stays_and_says_why() -> None:
    plan = older(machines.plan(), qdrant="1.16.3")
    (held,) = [row for row in find(plan, wanted(plan), ["qdrant"]).held if row.component == "qdrant"]
    assert held == Held("qdrant", "qdrant", "1.16.3", held.why, refused=True)
    assert "one minor version at a time" in held.why


def test_a_step_that_cannot_be_had_here_keeps_no_other_service_from_moving() -> None:
    plan = older(machines.plan(), qdrant="1.16.3", n8n="2.40.7")
    away = machines.sources({"github.com": "timed out"})
    data = with_steps("1.17.1", "1.18.4")
    (row,) = data.artifacts["qdrant"]
    near = [{**one, "url": "", "source": "npm", "package": {"name": "q"}} for one in row["variant"]]
    found = find(
        plan, wanted(plan, away, replace(data, artifacts={**data.artifacts, "qdrant": [{**row, "variant": near}]}))
    )
    (held,) = [one for one in found.held if one.component == "qdrant"]
    assert (held.refused, "does not answer" in held.why) == (True, True)
    assert "n8n" in versions(found)


# -- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "step"),
    [
        ("2.40.7", "2.41.1", "minor"), ("2.41.0", "2.41.1", "patch"), ("2.41.1", "3.0.0", "major"),
        ("0.11.4", "0.12.4", "major"), ("0.12.3", "0.12.4", "patch"), ("1.0", "1.0", "packages"),
        ("0.32.15", "0.34.2", "major"),
    ],
)  # fmt: skip
def test_how_large_a_step_is(old: str, new: str, step: str) -> None:
    assert step_of(old, new) == step


def test_services_by_the_names_that_people_use() -> None:
    plan = machines.plan()
    said = {"n8n": "n8n", "node": "n8n", "sqlite3-addon": "n8n", "open-webui": "open_webui", "uv": "open_webui"}
    assert {word: role_named(plan, word) for word in said} == said
    with pytest.raises(ConfigError, match="no service of this box") as caught:
        role_named(plan, "redis")
    assert "open_webui" in caught.value.hint


def test_a_recorded_plan_gets_the_settings_that_came_later() -> None:
    plan = machines.plan()
    part = plan.role("n8n")
    kept = {key: value for key, value in part.settings.items() if key != "log_level"}
    kept["keep_executions_hours"] = 5
    old = plan.model_copy(
        update={"roles": tuple(p if p is not part else p.model_copy(update={"settings": kept}) for p in plan.roles)}
    )
    now = filled(old).role("n8n").settings
    assert (now["log_level"], now["keep_executions_hours"]) == ("info", 5)


BEFORE = {
    "tables": {"open_webui": {"accounts": 2, "chats": 5}, "n8n": {"workflows": 3}}, "vectors": {"notes": 40},
    "models": {"a:1b": "x"}, "key": "1234",
}  # fmt: skip


def test_counts_that_fall_are_losses_and_growth_is_none() -> None:
    more = {**BEFORE, "tables": {"open_webui": {"accounts": 2, "chats": 6}, "n8n": {"workflows": 3}}}
    assert losses(BEFORE, BEFORE) == losses(BEFORE, more) == []
    for after, word in (
        (
            {**BEFORE, "tables": {"open_webui": {"accounts": 1, "chats": 5}, "n8n": {"workflows": 3}}},
            "2 accounts, now 1",
        ),
        ({**BEFORE, "tables": {"open_webui": {"accounts": 2, "chats": 5}}}, "3 workflows, now none can be counted"),
        ({**BEFORE, "vectors": {"notes": 39}}, "40 vectors, now 39"),
        ({**BEFORE, "vectors": {}}, "now it is gone"),
        ({**BEFORE, "models": {"a:1b": "y"}}, "a:1b is another"),
        ({**BEFORE, "models": {}}, "a:1b is gone"),
        ({**BEFORE, "key": "9999"}, "key was 1234, now 9999"),
        ({**BEFORE, "key": ""}, "key was 1234, now none"),
    ):
        (said,) = losses(BEFORE, after)
        assert word in said


def test_what_was_made_since_is_named() -> None:
    now = {"tables": {"open_webui": {"accounts": 3, "chats": 5}}, "vectors": {"notes": 41, "new": 2}}
    assert since(BEFORE, now) == ["1 accounts of open_webui", "2 vectors in new", "1 vectors in notes"]
    assert since(BEFORE, BEFORE) == []
    models = {"a:1b": "x", "mine:latest": "y"}
    assert since(BEFORE, {**BEFORE, "models": models}) == ["the model mine:latest"]
