"""A restore that is cut off at any step of its journal: one further `up` converges, and nothing is lost.

Points within the runner's steps are in test_backup.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import results
from tests.e2e import cut_off
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.older_box import plan_of
from tests.e2e.test_backup import (
    Key,
    account_data,
    counts,
    dump,
    make,
    nothing_lies_about,
    put_right,
    spoil,
    works,
)
from tests.fixtures.small_box import identity
from tests.hosts import Network

pytestmark = pytest.mark.slow
SAMPLE = 2
COLUMNS = ("cut off at", "by", "after one more `up`", "seconds")


@pytest.fixture(scope="module")
def page() -> Iterator[results.Matrix]:
    about = (
        "`ownstack restore` is ended without a word (kill -9), or the host with it, when a step of the journal begins; "
        f"the number counts steps of the same name. {cut_off.sampled()} Then `ownstack up` runs once: the databases, "
        "compared by dumps, and the vectors, by counts, are those of before the restore or those of the backup. "
        "(`tests/e2e/test_restore_cut.py`)"
    )
    with results.matrix("restores-cut-off", "Restores that are cut off at a step", about, COLUMNS) as made:
        yield made


@pytest.mark.parametrize("by", cut_off.BY)
def test_cut_off_at_every_step_it_converges(
    by: str, network: Network, debian12: Provisioned, mirror: Mirror, page: results.Matrix, tmp_path: Path
) -> None:
    text, recipient = identity()
    key = Key(recipient, str(tmp_path / "identity"))
    Path(key.identity).write_text(text + "\n")
    bad = []
    with debian12.clone(network, "restore-cut") as box:
        ownstack, plan, record = mirror.ownstack(box), plan_of(box), box.folder / "told"
        data = account_data(box, plan, ownstack)
        words = ["restore", make(ownstack, key)["file"], "--yes", "--identity", key.identity]
        held = dump(box), counts(box, plan)
        spoil(box, plan, ownstack, data)
        points = [point for point in cut_off.whole(ownstack, record, *words) if cut_off.is_step(point)]
        assert {"1 restore.swap", "1 restore.finish"} <= set(points)
        assert (dump(box), counts(box, plan)) == held
        restored = True
        for point in cut_off.chosen(points, SAMPLE, f"restore {by}"):
            if restored:
                spoil(box, plan, ownstack, data)
            before, began = (dump(box), counts(box, plan)), time.monotonic()
            ended = cut_off.at(ownstack, point, record, *words)
            assert ended.returncode == -9, (point, ended.stderr[-2000:])
            if by != "kill -9":
                box.crash()
            put_right(ownstack)
            after = dump(box), counts(box, plan)
            restored = after == held
            word = "the backup's data" if restored else "as before" if after == before else "DIFFERS"
            if works(box, plan, restored) != restored:
                word += ", and the workflow says otherwise"
            nothing_lies_about(box)
            page.add(cut_off.plainly(point), by, word, round(time.monotonic() - began))
            bad += [(point, word)] if word not in ("the backup's data", "as before") else []
    assert bad == []
