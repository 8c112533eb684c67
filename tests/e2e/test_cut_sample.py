"""The sample that each run makes of the matrices: a change of models and an upgrade, cut off at seeded steps.

All on one clone, one after the other; each time one further `up` converges and nothing is lost. The service that is
upgraded is Qdrant, which the lab also offers under the next patch's number. Installs are in
test_interrupted.py, restores in test_backup.py and test_held.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ownstack.plan import Plan
from tests.e2e import cut_off
from tests.e2e.bad_updates import Case
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.older_box import State, differing, plan_of, state
from tests.e2e.test_interrupted import MINE, POINT, TEMPORARY, owners, qdrant
from tests.e2e.test_kill_matrix import last, steps
from tests.fixtures.two_models import LARGE, SMALL
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack, own_vectors

SAMPLE = 2
NOW, NEXT = "1.16.3", "1.16.4"
INSTRUCTION = b"\x66\xc7\x40\x04%b\xc7\x001.16"  # movw ".3", 4(%rax); movl "1.16", (%rax)
UPGRADE = ("upgrade", "qdrant", "--yes")


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "sample") as host:
        own_vectors(host)
        qdrant(host, "PUT", "/collections/mine", MINE)
        qdrant(host, "PUT", "/collections/mine/points?wait=true", POINT)
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


def says_next(tree: Path) -> None:
    """The program says that it is the next one. A text as short as that stands in the instructions that write it."""
    program = tree / "qdrant"
    content = program.read_bytes()
    assert INSTRUCTION % b".3" in content, "another build of Qdrant: where does it say its version?"
    program.write_bytes(content.replace(INSTRUCTION % b".3", INSTRUCTION % b".4"))


@pytest.fixture(scope="module")
def newer(box: Host, ownstack: Ownstack, mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> Ownstack:
    """The command of a kit that names the next Qdrant."""
    case = Case(box, mirror.lab, tmp_path_factory.mktemp("newer"), mirror.lab.kit)
    case.archive("qdrant", NEXT, says_next)
    return replace(ownstack, variables={"OWNSTACK_KIT": str(case.kit)})


def release(plan: Plan) -> str:
    return next(item.version for role in plan.roles for item in role.artifacts if item.name == "qdrant")


def test_a_change_of_models_cut_off_at_seeded_steps(box: Host, ownstack: Ownstack) -> None:
    before = owners(box, ownstack)
    ownstack("up", "--yes", "--no-verify", "--pin", f"chat={SMALL}")
    # on the way back nothing is fetched
    changing = [point for point in steps(box) if point.startswith("1 ") and "fetch" not in point]
    assert len(changing) > 10
    back = ("up", "--yes", "--no-verify", "--pin", f"chat={LARGE}")
    for point in cut_off.chosen(changing, SAMPLE, "sample of a change of models"):
        ended = cut_off.at(ownstack, point, box.folder / "told", *back)
        print(f"cut off at {point!r}")
        assert ended.returncode == -9, (point, ended.stderr[-2000:])
        assert last(box)["event"] == "begin"
    done = ownstack.json("up", "--yes", "--no-verify")
    assert "previous_plan" not in json.loads(box.output("cat /var/lib/ownstack/manifest.json")), done
    after = owners(box, ownstack)
    assert {**after, "models": ""} == {**before, "models": ""}
    assert {LARGE, SMALL} <= {row["name"] for row in json.loads(after["models"])["models"]}
    assert box.output(TEMPORARY) == ""


@pytest.fixture(scope="module")
def before_upgrade() -> State:
    return {}


@pytest.fixture(scope="module")
def points() -> list[str]:
    """What a whole upgrade has come to."""
    return []


def test_an_upgrade_and_its_rollback_keep_everything(
    box: Host, newer: Ownstack, before_upgrade: State, points: list[str]
) -> None:
    plan = plan_of(box)
    assert release(plan) == NOW
    before_upgrade.update(state(box, plan))
    points += [one for one in cut_off.whole(newer, box.folder / "told", *UPGRADE) if cut_off.is_step(one)]
    assert release(plan_of(box)) == NEXT
    assert differing(before_upgrade, state(box, plan)) == set()
    newer("rollback", "qdrant", "--yes")
    assert release(plan_of(box)) == NOW
    assert differing(before_upgrade, state(box, plan)) == set()


def test_an_upgrade_cut_off_at_seeded_steps(
    box: Host, newer: Ownstack, before_upgrade: State, points: list[str]
) -> None:
    assert {"1 snapshots.take", "1 snapshots.commit"} <= set(points)
    plan = plan_of(box)
    within = points[points.index("1 snapshots.take") : points.index("1 snapshots.commit") + 1]
    for point in cut_off.chosen(within, SAMPLE, "sample of an upgrade"):
        ended = cut_off.at(newer, point, box.folder / "told", *UPGRADE)
        assert ended.returncode == -9, (point, ended.stderr[-2000:])
        newer("up", "--yes", "--no-verify")
        print(f"cut off at {point!r}: {cut_off.status(box)}, {release(plan_of(box))}")
        assert differing(before_upgrade, state(box, plan)) == set()
    assert newer.json("verify")["ok"]
