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
from tests.e2e.older_box import plan_of
from tests.e2e.test_backup import account_data, counts, dump, found_again, works
from tests.e2e.test_interrupted import TEMPORARY, owners, qdrant
from tests.fixtures.two_models import LARGE, SMALL
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
        "`up` is killed (SIGKILL) when a step of the journal begins, or the whole host is stopped then; the number "
        f"counts steps of the same name. {cut_off.sampled()} "
    )
    chain = (
        "The programs of a box with an account's data are installed again, by runs of which each is cut off further on "
        "than the one before. After the last one `up` runs once more: it converges and verifies; databases (by dumps), "
        "vectors, secrets and models are as they were, and the account finds its document. "
    )
    each = (
        "After each `up` runs once: it converges; databases (by dumps) and vectors are as they were, and the account's "
        "workflow runs. "
    )
    where = "`tests/e2e/test_kill_matrix.py`."
    columns = ("step", "by", "the journal's last line")
    with (
        results.matrix("kills-install", "Installs that are cut off", about + chain + where, columns) as install,
        results.matrix("kills-models", "Changes of models that are cut off", about + each + where, columns) as models,
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
        plan = plan_of(box)
        data = account_data(box, plan, ownstack)
        before, held = owners(box, ownstack), (dump(box), counts(box, plan))
        ownstack("down", "--yes")
        through(box, ownstack, names, ["up", "--yes", "--no-verify"], pages, "install", by)
        done = ownstack.json("up", "--yes")
        assert [check for check in done["verify"]["checks"] if check["status"] != "ok"] == []
        assert owners(box, ownstack) == before
        assert (dump(box), counts(box, plan)) == held
        assert works(box, plan, True)
        assert found_again(box, plan, ownstack, data["base"])
        assert box.output(TEMPORARY) == ""
        assert ownstack.json("up", "--yes", "--no-verify")["changed"] == 0


def beside_the_demo(box: Host) -> dict[str, list[Any]]:
    """What people would miss; the demo workflow names the model that answers, and is the kit's."""
    return {name: rows for name, rows in dump(box).items() if not name.endswith(":workflow_entity")}


def forth(box: Host, ownstack: Ownstack) -> None:
    """Back at the larger model, and the smaller one is to be fetched again."""
    ownstack("up", "--yes", "--no-verify", "--pin", f"chat={LARGE}")
    box.run(f"curl -sf -X DELETE http://127.0.0.1:11434/api/delete -d '{json.dumps({'model': SMALL})}' || true")


@pytest.fixture(scope="module")
def changing(network: Network, debian12: Provisioned, mirror: Mirror) -> list[str]:
    """The steps of a change of models that is not cut off: operations, and steps of the runner."""
    with debian12.clone(network, "kills-first") as box:
        ownstack = mirror.ownstack(box)
        return [p for p in cut_off.whole(ownstack, box.folder / "told", *CHANGE) if cut_off.is_step(p)]


@pytest.mark.parametrize("by", cut_off.BY)
def test_at_every_step_of_a_change_of_models(
    by: str,
    network: Network,
    debian12: Provisioned,
    mirror: Mirror,
    changing: list[str],
    pages: dict[str, results.Matrix],
) -> None:
    """Each point by itself: cut off, one further run, and all is compared."""
    assert {"1 ollama.pull_wait", "1 ollama.chat_check"} <= set(changing)
    bad = []
    with debian12.clone(network, "kills-models") as box:
        ownstack, plan = mirror.ownstack(box), plan_of(box)
        data = account_data(box, plan, ownstack)
        held, vectors = beside_the_demo(box), counts(box, plan)
        for point in cut_off.chosen(changing, SAMPLE, f"change of models {by}"):
            forth(box, ownstack)
            ended = cut_off.at(ownstack, point, box.folder / "told", *CHANGE)
            assert ended.returncode == -9, (point, ended.stderr[-2000:])
            event = last(box)
            if by != "kill -9":
                box.crash()
            done = ownstack("up", "--yes", "--no-verify", "--pin", f"chat={SMALL}", check=False)
            manifest = json.loads(box.output("cat /var/lib/ownstack/manifest.json"))
            wrong = [f"up failed: {done.stderr[-300:]}"] if done.returncode else []
            wrong += ["the change did not end"] if "previous_plan" in manifest else []
            wrong += ["data"] if (beside_the_demo(box), counts(box, plan)) != (held, vectors) else []
            wrong += [] if works(box, plan, True) else ["workflow"]
            pages["change of models"].add(point, by, "; ".join(wrong) or event["step"])
            bad += [(point, wrong)] if wrong else []
        assert bad == []
        assert ownstack.json("verify")["ok"]
        assert found_again(box, plan, ownstack, data["base"])
