"""Faults of a box's surroundings: a clear message, nothing lost, and the next `up` converges.

All on one clone, one after the other: each ends with the fault taken away and a box that verifies.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests import results
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.faults import FAULTS, Bench, Fault
from tests.e2e.older_box import plan_of
from tests.e2e.test_backup import account_data, counts, dump
from tests.hosts import Host, Network
from tests.hosts.kit import own_vectors

COLUMNS = ("fault", "shown by", "what `up` does", "in these words", "next `up`")


# passwords that are back again are kept with another salt; the kit's credentials for Qdrant get its new key
MOVED = {
    "passwords_changed": ("open_webui/webui.db:auth", "n8n/.n8n/database.sqlite:user"),
    "no_secret": ("n8n/.n8n/database.sqlite:credentials_entity",),
}


@pytest.fixture(scope="module")
def bench(network: Network, debian12: Provisioned, mirror: Mirror) -> Iterator[Bench]:
    with debian12.clone(network, "faults") as host:
        own_vectors(host)  # each verified run puts a document in and takes it out
        ownstack = mirror.ownstack(host)
        account_data(host, plan_of(host), ownstack)
        yield Bench(host, mirror, ownstack, host.folder)


@pytest.fixture(scope="module")
def page() -> Iterator[results.Matrix]:
    """Written when all of them ran."""
    about = (
        "Each fault is made on a real host with the whole box, shown to be there, met by `ownstack up`, and taken "
        "away; then `up` has to converge and verify, and the databases of an account's data, compared by dumps, its "
        "vectors and all secrets are as they were. `heals`: `up` puts it right itself; `bears`: it is not troubled; "
        "`waits`: it waits for its end; else the code of its error. `tests/e2e/test_faults.py`."
    )
    made = results.Matrix("faults", "Faults of a box's surroundings", about, COLUMNS)
    yield made
    if len(made.rows) >= len(FAULTS):
        made.write()


def peoples(host: Host, fault: Fault) -> dict[str, Any]:
    """What must not be lost: the databases' contents, and the number of vectors."""
    found: dict[str, Any] = {**dump(host), **counts(host, plan_of(host))}
    return {name: held for name, held in found.items() if name not in MOVED.get(fault.make.__name__, ())}


def secrets(host: Host) -> str:
    return host.output("cd /etc/ownstack/secrets && sha256sum * | sort")


@contextlib.contextmanager
def made(fault: Fault, bench: Bench) -> Iterator[str]:
    """The fault, and what shows that it is there; taken away whatever became of the run."""
    steps = fault.make(bench)
    try:
        yield next(steps)
    finally:
        next(steps, None)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(one, id=one.make.__name__, marks=() if one.quick else pytest.mark.slow) for one in FAULTS],
)
def test_fault(fault: Fault, bench: Bench, page: results.Matrix, pytestconfig: pytest.Config) -> None:
    before, held = secrets(bench.host), peoples(bench.host, fault)
    quick = fault.quick and bool(pytestconfig.option.markexpr)  # in a full run each of them has to verify
    did, words, proof = "not run", "", ""
    try:
        with made(fault, bench) as proof:
            assert proof, "the fault did not take place"
            verify = [] if fault.expect in ("checks-failed", "heals") and not quick else ["--no-verify"]
            result = bench.ownstack("up", "--yes", "--json", *verify, *bench.words, check=False)
            did, words = judged(fault, result)
        after = bench.ownstack.json("up", "--yes", *(["--no-verify"] if quick else []))
        assert quick or after["verify"]["ok"], [c for c in after["verify"]["checks"] if c["status"] != "ok"]
        changed = {line.split()[1] for line in set(before.splitlines()) ^ set(secrets(bench.host).splitlines())}
        assert changed == ({"qdrant_api_key"} if fault.make.__name__ == "no_secret" else set()), "no secret is lost"
        assert peoples(bench.host, fault) == held
        row = (fault.name, proof[-120:], did, words, f"converges, {after['changed']} changed")
    except BaseException as error:
        page.add(fault.name, str(proof)[-120:], did, words, f"**FAILED** {type(error).__name__}")
        raise
    page.add(*row)


def judged(fault: Fault, result: Any) -> tuple[str, str]:
    """What `up` did and said, if that is what it should; AssertionError otherwise."""
    told = json.loads(result.stdout)
    if fault.expect in ("heals", "bears", "waits"):
        assert told["ok"], told["error"]
        assert re.search(fault.says, result.stderr), result.stderr
        changed = [op["name"] for op in told["data"]["operations"] if op["changed"]]
        return fault.expect, ", ".join(changed)
    error = told["error"]
    assert error is not None, "up went through"
    text = f"{error['message']} {error['hint']}"
    assert re.fullmatch(fault.expect, error["code"]), error
    assert error["message"]
    assert error["hint"]
    assert "Traceback" not in result.stdout + result.stderr
    assert re.search(fault.says, text), error
    return f"ends with {error['code']}", text
