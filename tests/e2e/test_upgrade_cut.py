"""An upgrade that is cut off at any step of its journal: one further `up` converges, and nothing is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import results
from tests.e2e import cut_off
from tests.e2e.conftest import Mirror
from tests.e2e.older_box import Older, differing, newer_programs, plan_of, state, versions, works
from tests.e2e.test_backup import counts, dump
from tests.hosts import Host, Network, older

pytestmark = pytest.mark.slow
COLUMNS = ("service", "cut off at", "by", "which was put back or finished", "what differs", "seconds")


SAMPLE = 2  # points of each service and way of ending it


@pytest.fixture(scope="module")
def page() -> Iterator[results.Matrix]:
    about = (
        "`ownstack upgrade` is ended without a word (kill -9), or the host with it (all of its processes at once, then "
        "a new start), when a step of the journal begins, or when it tells of something else; the number counts those "
        f"of the same name. {cut_off.sampled()} Then `ownstack up` runs once. Where the older version is "
        "back, all tables, schemas, vectors, uploads, models and the key are compared with those before; where the "
        "newer one has stayed, all that an account has. Then the account signs in, finds its document, and its "
        "workflow runs. Power cuts are tested by ending the host, not by pulling plugs. "
        "(`tests/e2e/test_upgrade_cut.py`)"
    )
    with results.matrix("upgrades-cut-off", "Upgrades that are cut off", about, COLUMNS) as made:
        yield made


@pytest.fixture(scope="module")
def newer(mirror: Mirror, request: pytest.FixtureRequest) -> tuple[Path, ...]:
    return newer_programs(mirror.lab.kit, request)


@pytest.fixture(scope="module", params=["open_webui", "n8n"])
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def points(service: str, network: Network, mirror: Mirror, older_box: Older, newer: tuple[Path, ...]) -> list[str]:
    """What a whole upgrade comes to."""
    with older_box.clone(network, "whole", *newer) as box:
        words = ("upgrade", service, "--yes", "--no-rehearse")
        found = cut_off.whole(mirror.ownstack(box), box.folder / "told", *words)
    # of other services it is told only where they happen to take long
    return [one for one in found if "waiting for " not in one or one == f"told waiting for {service}"]


@pytest.mark.parametrize("by", cut_off.BY)
def test_cut_off_at_every_step_it_converges(
    service: str, points: list[str], by: str, network: Network, mirror: Mirror, older_box: Older,
    newer: tuple[Path, ...], page: results.Matrix,
) -> None:  # fmt: skip
    assert len([point for point in points if cut_off.is_step(point)]) > 10
    assert {"1 snapshots.take", "1 snapshots.commit"} <= set(points)
    assert any(point.startswith("3 ") for point in points), "an operation is there in stage, in switch and in apply"
    bad = []
    with contextlib.ExitStack() as stack:
        box: Host | None = None
        for point in cut_off.chosen(points, SAMPLE, f"upgrade {service} {by}"):
            if box is None or moved(box, service):
                stack.close()
                box = stack.enter_context(older_box.clone(network, "cut", *newer))
                before = dump(box), counts(box, plan_of(box))
            start = time.monotonic()
            wrong = cut(box, mirror, older_box, service, point, before, by != "kill -9")
            what = "finished" if moved(box, service) else "put back"
            page.add(service, cut_off.plainly(point), by, what, wrong or "nothing", round(time.monotonic() - start))
            bad += [f"{point}: {wrong}"] if wrong else []
            if wrong:
                stack.close()
                box = None
    assert bad == []


def moved(box: Host, service: str) -> bool:
    return versions(box)[service] != older.VERSIONS[service]


def cut(
    box: Host, mirror: Mirror, older_box: Older, service: str, point: str, before: tuple[object, object], hard: bool
) -> str:
    """Cut off, `up` once; what is wrong then."""
    ownstack, plan = mirror.ownstack(box), plan_of(box)
    held = state(box, plan)
    ended = cut_off.at(ownstack, point, box.folder / "told", "upgrade", service, "--yes", "--no-rehearse")
    if ended.returncode != -9:
        return f"it was not cut off: {ended.returncode}"
    if hard:
        box.crash()
    done = ownstack("up", "--yes", "--no-verify", check=False)
    if done.returncode:
        return f"up failed: {done.stderr[-300:]}"
    if moved(box, service):
        differs = set() if (dump(box), counts(box, plan)) == before else {"the account's data"}
    else:
        differs = differing(held, state(box, plan))
    return ", ".join(sorted({*differs, *works(box, plan, ownstack, older_box.data)}))
