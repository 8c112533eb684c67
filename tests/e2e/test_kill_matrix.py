"""Cut off at any step of the journal: an install, a change of models. One further run converges.

Upgrades are in test_upgrade_cut.py, restores in test_restore_cut.py, the sample that CI runs in test_interrupted.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests import results
from tests.e2e import cut_off
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.test_interrupted import TEMPORARY, owners, qdrant
from tests.fixtures.two_models import SMALL
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack

pytestmark = pytest.mark.slow
JOURNAL = "/var/lib/ownstack/journal.jsonl"
MINE = {"vectors": {"size": 4, "distance": "Cosine"}}
POINT = {"points": [{"id": 7, "vector": [0.1, 0.2, 0.3, 0.4], "payload": {"text": "the owner's"}}]}
CHANGE = ["up", "--yes", "--no-verify", "--pin", f"chat={SMALL}"]
SAMPLE = 4


@pytest.fixture(scope="module")
def pages() -> Iterator[dict[str, results.Matrix]]:
    """A page for each kind of run."""
    about = (
        "`up` is killed (SIGKILL) when a step of the journal begins, one after the other on the same box, or the whole "
        f"host is stopped then; the number counts steps of the same name. {cut_off.sampled()} "
        "After the last one `up` runs once more: it converges, verifies, and what is "
        "the owner's is as it was. `tests/e2e/test_kill_matrix.py`."
    )
    columns = ("step", "by", "the journal's last line")
    with (
        results.matrix("kills-install", "Kill -9 at every step of an install", about, columns) as install,
        results.matrix("kills-models", "Kill -9 at every step of a change of models", about, columns) as models,
    ):
        yield {"install": install, "change of models": models}


def steps(box: Host, run: str = "up") -> list[str]:
    """The operations of the journal's last whole run, in order, numbered."""
    lines = [json.loads(line) for line in box.output(f"cat {JOURNAL}").splitlines()]
    lines = [line for line in lines if line.get("run") == run]
    ends = [number for number, line in enumerate(lines) if line["event"] == "done"]
    start = ends[-2] + 1 if len(ends) > 1 else 0
    found = [line["step"] for line in lines[start : ends[-1]] if line["event"] == "begin"]
    return cut_off.numbered([name for name in found if ": " in name])


def last(box: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.output(f"tail -n 1 {JOURNAL}"))
    return found


def through(
    box: Host, ownstack: Ownstack, points: list[str], words: list[str], pages: dict[str, results.Matrix], run: str,
    by: str,
) -> None:  # fmt: skip
    """Kill a run at each of the points, further on each time.

    A run that goes on where one was cut off may leave out what that one has done: it counts its own steps. At the very
    end it may find that nothing is left to do.
    """
    chosen = cut_off.chosen(points, SAMPLE, f"{run} {by}")
    for number, point in enumerate(chosen):
        if number:
            point = chosen[number] = "1 " + point.partition(" ")[2]
        began = time.monotonic()
        ended = cut_off.at(ownstack, point, box.folder / "told", *words)
        if point == chosen[-1] and ended.returncode == 0 and "\n0 changed" in ended.stderr:
            pages[run].add(point, by, "nothing was left to do")
            continue
        assert ended.returncode == -9, (point, ended.stderr[-2000:])
        event = last(box)
        assert (event["event"], event["step"]) == ("begin", point.partition(" ")[2])
        if by != "kill -9":
            box.crash()
        pages[run].add(point, by, event["step"])
        print(f"cut off at {point!r} by {by}: {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("by", cut_off.BY)
def test_at_every_step_of_an_install(
    by: str, network: Network, debian12: Provisioned, mirror: Mirror, pages: dict[str, results.Matrix]
) -> None:
    with debian12.clone(network, "kills") as box:
        ownstack = mirror.ownstack(box)
        names = steps(box)
        assert len(names) > 25
        qdrant(box, "PUT", "/collections/mine", MINE)
        qdrant(box, "PUT", "/collections/mine/points?wait=true", POINT)
        before = owners(box, ownstack)
        ownstack("down", "--yes")
        through(box, ownstack, names, ["up", "--yes", "--no-verify"], pages, "install", by)
        done = ownstack.json("up", "--yes")
        assert [check for check in done["verify"]["checks"] if check["status"] != "ok"] == []
        assert owners(box, ownstack) == before
        assert box.output(TEMPORARY) == ""
        assert ownstack.json("up", "--yes", "--no-verify")["changed"] == 0


@pytest.fixture(scope="module")
def changing(network: Network, debian12: Provisioned, mirror: Mirror) -> list[str]:
    """The operations of a change of models that is not cut off."""
    with debian12.clone(network, "kills-first") as box:
        mirror.ownstack(box)(*CHANGE)
        return steps(box)


@pytest.mark.parametrize("by", cut_off.BY)
def test_at_every_step_of_a_change_of_models(
    by: str,
    network: Network,
    debian12: Provisioned,
    mirror: Mirror,
    changing: list[str],
    pages: dict[str, results.Matrix],
) -> None:
    with debian12.clone(network, "kills-models") as box:
        ownstack = mirror.ownstack(box)
        qdrant(box, "PUT", "/collections/mine", MINE)
        qdrant(box, "PUT", "/collections/mine/points?wait=true", POINT)
        before = owners(box, ownstack)
        through(box, ownstack, changing, CHANGE, pages, "change of models", by)
        done = ownstack.json("up", "--yes", "--pin", f"chat={SMALL}")
        assert done["verify"]["ok"], [check for check in done["verify"]["checks"] if check["status"] != "ok"]
        after = owners(box, ownstack)
        assert {key: after[key] for key in after if key not in ("models", "workflows")} == {
            key: before[key] for key in before if key not in ("models", "workflows")
        }
        assert "previous_plan" not in json.loads(box.output("cat /var/lib/ownstack/manifest.json"))
