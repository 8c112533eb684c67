"""An upgrade that is cut off at every step which it tells of: one further `up` converges, and nothing is lost."""

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
COLUMNS = ("service", "cut off when it told", "by", "which was put back or finished", "what differs", "seconds")


@pytest.fixture(scope="module")
def page() -> Iterator[results.Matrix]:
    about = (
        "`ownstack upgrade` is ended without a word (kill -9), or the host with it (all of its processes at once, then "
        "a new start), at the moment when it tells of a step. Then `ownstack up` runs once. Where the older version is "
        "back, all tables, schemas, vectors, uploads, models and the key are compared with those before; where the "
        "newer one has stayed, all that an account has. Then the account signs in, finds its document, and its "
        "workflow runs. Power cuts are tested by ending the host, not by pulling plugs. "
        "(`tests/e2e/test_upgrade_cut.py`)"
    )
    with results.matrix("upgrades-cut-off", "Upgrades that are cut off", about, COLUMNS) as made:
        yield made


def steps_of(network: Network, mirror: Mirror, older_box: Older, newer: tuple[Path, ...], service: str) -> list[str]:
    """What a whole upgrade tells, each once."""
    with older_box.clone(network, "whole", *newer) as box:
        record = box.folder / "told"
        done = cut_off.at(mirror.ownstack(box), "", record, "upgrade", service, "--yes", "--no-rehearse")
        assert done.returncode == 0, done.stderr[-3000:]
        told = record.read_text().splitlines()
    # of other services it is told only where they happen to take long
    return [words for words in told if not words.startswith("waiting for ") or words == f"waiting for {service}"]


@pytest.mark.parametrize("by", ["kill -9", "hard stop of the host"])
@pytest.mark.parametrize("service", ["open_webui", "n8n"])
def test_cut_off_at_every_step_it_converges(
    service: str, by: str, network: Network, mirror: Mirror, older_box: Older, page: results.Matrix,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    newer = newer_programs(mirror.lab.kit, request)
    told = steps_of(network, mirror, older_box, newer, service)
    bad = []
    with contextlib.ExitStack() as stack:
        box: Host | None = None
        for words in told:
            if box is None or moved(box, service):
                stack.close()
                box = stack.enter_context(older_box.clone(network, "cut", *newer))
                before = dump(box), counts(box, plan_of(box))
            start = time.monotonic()
            wrong = cut(box, mirror, older_box, service, words, before, by != "kill -9")
            what = "finished" if moved(box, service) else "put back"
            page.add(service, cut_off.plainly(words), by, what, wrong or "nothing", round(time.monotonic() - start))
            bad += [f"{words}: {wrong}"] if wrong else []
            if wrong:
                stack.close()
                box = None
    assert bad == []
    assert len(told) > 10


def moved(box: Host, service: str) -> bool:
    return versions(box)[service] != older.VERSIONS[service]


def cut(
    box: Host, mirror: Mirror, older_box: Older, service: str, words: str, before: tuple[object, object], hard: bool
) -> str:
    """Cut off, `up` once; what is wrong then."""
    ownstack, plan = mirror.ownstack(box), plan_of(box)
    held = state(box, plan)
    ended = cut_off.at(ownstack, words, box.folder / "told", "upgrade", service, "--yes", "--no-rehearse")
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
