"""Bad updates, each on a clone of its own of a box with an account's data: rolled back alone, with equal dumps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import results
from tests.e2e.bad_updates import SECRET, UPDATES, Bad, Case
from tests.e2e.conftest import Mirror
from tests.e2e.older_box import Older, differing, newer_programs, plan_of, state, versions, works
from tests.hosts import Network, older

pytestmark = pytest.mark.slow
COLUMNS = ("bad update", "service", "how it ended", "versions, data and services afterwards", "seconds")


@pytest.fixture(scope="module")
def page() -> Iterator[results.Matrix]:
    about = (
        "A box with Open WebUI 0.11.4, n8n 2.40.7, Ollama 0.32.15 and an account's data (chat, knowledge collection, "
        "workflow with a stored credential) is upgraded, and something goes wrong. Afterwards all tables of both "
        "databases with their schemas, all vectors with their contents, uploads, models and n8n's key are compared "
        "with those before; then the account signs in, finds its document again, and its workflow runs. "
        "(`tests/e2e/test_upgrade_bad.py`)"
    )
    with results.matrix("bad-updates", "Bad updates", about, COLUMNS) as made:
        yield made


@pytest.fixture(scope="module")
def newer(mirror: Mirror, request: pytest.FixtureRequest) -> tuple[Path, ...]:
    """Today's programs, that no case has to install them."""
    return newer_programs(mirror.lab.kit, request)


@pytest.mark.parametrize("bad", UPDATES, ids=lambda bad: f"{bad.service}-{bad.name}".replace(" ", "-"))
def test_a_bad_update_is_taken_back(
    bad: Bad, network: Network, mirror: Mirror, older_box: Older, newer: tuple[Path, ...], page: results.Matrix,
    tmp_path: Path,
) -> None:  # fmt: skip
    with older_box.clone(network, "bad", *newer) as box:
        plan, ownstack = plan_of(box), mirror.ownstack(box)
        case = Case(box, mirror.lab, tmp_path, mirror.lab.kit)
        bad.spoil(case)
        ownstack.variables = {"OWNSTACK_KIT": str(case.kit)}
        start = time.monotonic()
        done = ownstack("upgrade", bad.service, "--yes", "--json", *bad.options, check=False)
        seconds = round(time.monotonic() - start)
        error = json.loads(done.stdout)["error"]
        box.run(f"[ ! -e /root/key ] || mv /root/key {SECRET}")
        ended = f"{error['code']}: {error['message']}" if error else "it passed"
        after = differing(older_box.state, state(box, plan)) if error else {"everything"}
        lost = works(box, plan, ownstack, older_box.data)
        moved = {name for name, version in older.VERSIONS.items() if versions(box)[name] != version}
        wrong = ", ".join(sorted({*after, *lost, *moved}))
        page.add(bad.name, bad.service, ended, f"not as before: {wrong}" if wrong else "as before", seconds)
        assert done.returncode == 1, ended
        assert error["code"] == bad.code, ended
        assert not wrong
