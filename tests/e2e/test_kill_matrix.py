"""Kill -9 at every step of the journal: of an install and of a change of hardware. One further run converges.

The small sample that CI runs is in test_interrupted.py.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import results
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.test_held import IN_OPERATION, killed
from tests.e2e.test_interrupted import TEMPORARY, owners, qdrant
from tests.e2e.test_reprovision import SMALL
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack

pytestmark = pytest.mark.slow
SEED = 20261129
JOURNAL = "/var/lib/ownstack/journal.jsonl"
MINE = {"vectors": {"size": 4, "distance": "Cosine"}}
POINT = {"points": [{"id": 7, "vector": [0.1, 0.2, 0.3, 0.4], "payload": {"text": "the owner's"}}]}


@pytest.fixture(scope="module")
def page() -> Iterator[results.Matrix]:
    about = (
        "`up` is killed (SIGKILL) when each step of the journal begins, one after the other on the same box, at some "
        "of them with the whole host. After the last one `up` runs once more: it converges, verifies, and what is "
        "the owner's is as it was. `tests/e2e/test_kill_matrix.py`."
    )
    made = results.Matrix(
        "kills", "Kill -9 at every step", about, ("run", "step", "power gone too", "the journal's last line")
    )
    yield made
    if len(made.rows) > 40:
        made.write()


def steps(box: Host, run: str = "up") -> list[str]:
    """The steps of the journal's last whole run, in order."""
    lines = [json.loads(line) for line in box.output(f"cat {JOURNAL}").splitlines()]
    lines = [line for line in lines if line.get("run") == run]
    ends = [number for number, line in enumerate(lines) if line["event"] == "done"]
    start = ends[-2] + 1 if len(ends) > 1 else 0
    found = [line["step"] for line in lines[start : ends[-1]] if line["event"] == "begin"]
    return [name for name in dict.fromkeys(found) if ": " in name]


def last(box: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.output(f"tail -n 1 {JOURNAL}"))
    return found


def through(box: Host, ownstack: Ownstack, names: list[str], words: list[str], page: results.Matrix, run: str) -> None:
    """Kill a run at each of the steps; a step that has nothing left to do may be passed by."""
    chance = random.Random(SEED)  # noqa: S311 - not for secrets
    for name in names:
        cut = chance.random() < 0.15
        began = time.monotonic()
        killed(ownstack, IN_OPERATION, name, *words)
        event = last(box)
        assert (event["event"], event["step"]) == ("begin", name)
        if cut:
            box.crash()
        page.add(run, name, "yes" if cut else "", event["step"])
        print(f"killed at {name!r}{', the power gone' if cut else ''}: {time.monotonic() - began:.1f} s")


def test_at_every_step_of_an_install(
    network: Network, debian12: Provisioned, mirror: Mirror, page: results.Matrix
) -> None:
    with debian12.clone(network, "kills") as box:
        ownstack = mirror.ownstack(box)
        names = steps(box)
        assert len(names) > 25
        qdrant(box, "PUT", "/collections/mine", MINE)
        qdrant(box, "PUT", "/collections/mine/points?wait=true", POINT)
        before = owners(box, ownstack)
        ownstack("down", "--yes")
        through(box, ownstack, names, ["up", "--yes", "--no-verify"], page, "install")
        done = ownstack.json("up", "--yes")
        assert [check for check in done["verify"]["checks"] if check["status"] != "ok"] == []
        assert owners(box, ownstack) == before
        assert box.output(TEMPORARY) == ""
        assert ownstack.json("up", "--yes", "--no-verify")["changed"] == 0


def test_at_every_step_of_a_change_of_models(
    network: Network, debian12: Provisioned, mirror: Mirror, page: results.Matrix, tmp_path: Path
) -> None:
    words = ["up", "--yes", "--no-verify", "--pin", f"chat={SMALL}"]
    with debian12.clone(network, "kills-first") as box:
        mirror.ownstack(box)(*words)
        names = steps(box)
    with debian12.clone(network, "kills-models") as box:
        ownstack = mirror.ownstack(box)
        qdrant(box, "PUT", "/collections/mine", MINE)
        qdrant(box, "PUT", "/collections/mine/points?wait=true", POINT)
        before = owners(box, ownstack)
        through(box, ownstack, names, words, page, "change of models")
        done = ownstack.json("up", "--yes", "--pin", f"chat={SMALL}")
        assert done["verify"]["ok"], [check for check in done["verify"]["checks"] if check["status"] != "ok"]
        after = owners(box, ownstack)
        assert {key: after[key] for key in after if key not in ("models", "workflows")} == {
            key: before[key] for key in before if key not in ("models", "workflows")
        }
        assert "previous_plan" not in json.loads(box.output("cat /var/lib/ownstack/manifest.json"))
