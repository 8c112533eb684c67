"""Upgrades between real pairs: Open WebUI 0.11.4 to 0.12.4, n8n 2.40.7 to 2.41.1, Ollama 0.32.15 to 0.34.2.

The tests of this file follow each other on one clone of a box of the older versions that has an account's data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ownstack.plan import Plan
from tests import results
from tests.e2e import cut_off
from tests.e2e.bad_updates import Case, script
from tests.e2e.conftest import Mirror
from tests.e2e.older_box import Older, State, differing, plan_of, state, versions, works
from tests.e2e.test_backup import counts, dump
from tests.e2e.test_open_webui import sign_in, web
from tests.hosts import Host, Network, older
from tests.hosts.kit import Ownstack, processes

pytestmark = pytest.mark.slow  # until its time on two processors is known
MOVES = {"open_webui": ("0.11.4", "0.12.4"), "n8n": ("2.40.7", "2.41.1"), "ollama": ("0.32.15", "0.34.2")}


@pytest.fixture(scope="module")
def box(network: Network, older_box: Older, mirror: Mirror) -> Iterator[Host]:
    """The older box. Today's n8n lies there as if it was fetched: to install it takes longer than all the rest."""
    roles = {name: mirror.lab.kit / "roles" / name for name in older.HEAVY}
    lie = [older.kept(roles["n8n"])] if older.kept(roles["n8n"]).exists() else []
    with older_box.clone(network, "upgrade", *lie) as host:
        yield host
        for role in roles.values():
            older.keep(role, host.root)


@pytest.fixture(scope="module")
def page() -> Iterator[results.Matrix]:
    about = (
        "A box of older versions with an account's data (chat, knowledge, a workflow with a stored credential) is "
        "upgraded and rolled back. After the upgrade the account's data is compared by dumps and vectors by counts; "
        "after the way back all tables, schemas, vectors, uploads, models and the key. Each time the account signs in, "
        "finds its document, and its workflow runs. Only one Qdrant is to be had where this ran: its steps are planned "
        "in unit tests. `tests/e2e/test_upgrade.py`."
    )
    columns = ("service", "from", "to", "how", "what differs", "stood still, s")
    with results.matrix("upgrades", "Upgrades between real pairs, and the way back", about, columns) as made:
        yield made


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


@pytest.fixture(scope="module")
def plan(box: Host) -> Plan:
    return plan_of(box)


@pytest.fixture(scope="module")
def before_upgrade() -> State:
    """What the box held before all three moved, once they have."""
    return {}


def test_a_box_that_was_started_again_holds_the_same(
    box: Host, plan: Plan, ownstack: Ownstack, older_box: Older
) -> None:
    """The control of all comparisons here: what services write by themselves is known, all else is equal."""
    assert differing(older_box.state, state(box, plan)) == set()
    assert works(box, plan, ownstack, older_box.data) == []
    assert versions(box).items() >= older.VERSIONS.items()


def test_up_with_newer_versions_moves_none(box: Host, ownstack: Ownstack) -> None:
    before = processes(box)
    shown = ownstack.json("plan")
    assert "upgrade" in str(shown)
    ownstack.json("up", "--yes", "--no-verify")
    assert processes(box) == before
    assert versions(box).items() >= older.VERSIONS.items()


def test_check_says_what_would_change_and_changes_nothing(box: Host, ownstack: Ownstack) -> None:
    before = processes(box)
    shown = ownstack.json("upgrade", "--check")
    found = {row["component"]: (row["from"], row["to"]) for row in shown["changes"]}
    assert found == {name.replace("_", "-"): pair for name, pair in MOVES.items()}
    floors = {row["component"]: row["floor"] for row in shown["components"]}
    assert all(floors[name] for name in found)
    assert ownstack("upgrade", check=False).returncode == 2, "nobody said yes"
    assert processes(box) == before


def test_a_bad_update_is_taken_back_by_itself(
    box: Host, plan: Plan, ownstack: Ownstack, older_box: Older, mirror: Mirror, tmp_path: Path
) -> None:
    """An engine that starts, answers, and cannot load a model."""
    case = Case(box, mirror.lab, tmp_path, mirror.lab.kit)
    case.archive("ollama", "0.34.3", script("lib/ollama/llama-server", "#!/bin/sh\nexit 1\n"))
    bad = replace(ownstack, variables={"OWNSTACK_KIT": str(case.kit)})
    before = state(box, plan)
    done = bad("upgrade", "ollama", "--yes", "--json", check=False)
    assert done.returncode == 1, done.stdout
    assert json.loads(done.stdout)["error"]["code"] == "upgrade-reverted"
    assert differing(before, state(box, plan)) == set()
    assert versions(box).items() >= older.VERSIONS.items()
    assert works(box, plan, ownstack, older_box.data) == []


def test_one_that_was_killed_is_put_back_by_the_next_up(
    box: Host, plan: Plan, ownstack: Ownstack, older_box: Older
) -> None:
    """Killed while the new Open WebUI changes its data."""
    before = state(box, plan)
    assert cut_off.when(box, ownstack, "taken", 4, "upgrade", "open_webui", "--yes", "--no-rehearse") == -9
    ownstack.json("up", "--yes", "--no-verify")
    assert cut_off.status(box) == "reverted"
    assert differing(before, state(box, plan)) == set()
    assert works(box, plan, ownstack, older_box.data) == []


def test_upgrade_moves_all_three_and_everything_is_there(
    box: Host, plan: Plan, ownstack: Ownstack, older_box: Older, before_upgrade: State, page: results.Matrix
) -> None:
    before_upgrade.update(state(box, plan))
    before = dump(box), counts(box, plan)
    done = ownstack.json("upgrade", "--yes")
    print(f"upgraded in {done['seconds']} s: {[(row['service'], row['down_seconds']) for row in done['done']]}")
    assert {name: versions(box)[name] for name in MOVES} == {name: new for name, (_, new) in MOVES.items()}
    assert (dump(box), counts(box, plan)) == before
    assert works(box, plan, ownstack, older_box.data) == []
    for name, pair in MOVES.items():
        held = box.output(f"ls /opt/ownstack/{name}/releases").split()
        assert sorted(release.partition("-")[0] for release in held) == sorted(pair), "two are kept"
    for row in done["done"]:
        page.add(row["service"], *MOVES[row["service"]], "upgrade", "nothing", row["down_seconds"])


def test_a_second_upgrade_changes_nothing(box: Host, ownstack: Ownstack) -> None:
    before = processes(box)
    again = ownstack.json("upgrade", "--yes")
    assert again["changed"] == 0
    assert again["done"] == []
    assert ownstack.json("up", "--yes", "--no-verify")["changed"] == 0
    assert processes(box) == before


def test_rollback_puts_programs_and_data_back_and_says_what_goes(
    box: Host, plan: Plan, ownstack: Ownstack, older_box: Older, before_upgrade: State, page: results.Matrix
) -> None:
    _, token = sign_in(box, plan, *ownstack.first_password("open_webui"))
    web(box, plan, "POST", "/api/v1/chats/new", {"chat": {"title": "since then", "messages": []}}, token)
    refused = ownstack("rollback", check=False)
    assert refused.returncode == 2, "nobody said yes"
    assert "1 chats of open_webui" in refused.stdout + refused.stderr
    done = ownstack.json("rollback", "--yes")
    print(f"rolled back in {done['seconds']} s")
    assert versions(box).items() >= older.VERSIONS.items()
    assert differing(before_upgrade, state(box, plan)) == set()
    assert works(box, plan, ownstack, older_box.data) == []
    for row in done["done"]:
        page.add(row["service"], *reversed(MOVES[row["service"]]), "rollback", "nothing", row["down_seconds"])
