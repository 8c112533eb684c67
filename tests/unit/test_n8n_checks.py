"""What verify says of n8n, from what the steps measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ownstack.kit import activate
from ownstack.verify.check import Context, Outcome
from tests.fixtures.n8n_plan import a_plan

activate()
from roles import n8n  # noqa: E402
from roles.n8n import checks  # noqa: E402

PLAN = a_plan()
PROBE = {
    "unclaimed": False,
    "without_login": {"/rest/workflows": 401, "/api/v1/workflows": 401},
    "foreign_host": 421,
    "key_works": True,
    "api": 200,
    "key_fingerprint": "a" * 16,
    "data_fingerprint": "a" * 16,
    "recorded_fingerprint": "a" * 16,
}
ANSWER = {"status": 200, "answer": {"answer": "Paris", "model": "small:1b"}, "model": "small:1b", "seconds": 1.0}
ASKED = {**ANSWER, "stored_credential": True}
NODE = PLAN.role("n8n").artifact("node")
RUNS = {
    "n8n": n8n.release(PLAN).rsplit("/", 1)[1],
    "node": PLAN.layout.release("node", NODE.version, NODE.digest).rsplit("/", 1)[1],
}
MEMORY = {"rss_bytes": 1, "pss_bytes": 1}


def outcome(check: str, data: dict[str, Any], mode: int = 0o600) -> Outcome:
    file = SimpleNamespace(exists=True, mode=mode)
    context = SimpleNamespace(plan=PLAN, step=lambda name, **spec: data, host=SimpleNamespace(file=lambda path: file))
    run = next(c for c in checks.checks(PLAN) if c.id == check).run
    return run(cast(Context, context))


@pytest.mark.parametrize(
    ("check", "data", "status"),
    [
        ("n8n-owner", PROBE, "ok"),
        ("n8n-owner", {**PROBE, "unclaimed": True}, "failed"),
        ("n8n-login-required", PROBE, "ok"),
        ("n8n-login-required", {**PROBE, "without_login": {"/rest/workflows": 200}}, "failed"),
        ("n8n-login-required", {**PROBE, "foreign_host": 200}, "failed"),
        ("n8n-key", PROBE, "ok"),
        ("n8n-key", {**PROBE, "data_fingerprint": "b" * 16}, "failed"),
        ("n8n-key", {**PROBE, "recorded_fingerprint": "b" * 16}, "failed"),
        ("n8n-kit-key", PROBE, "ok"),
        ("n8n-kit-key", {**PROBE, "key_works": False, "api": 401}, "failed"),
        ("n8n-webhook", ASKED, "ok"),
        ("n8n-webhook", {**ASKED, "status": 500, "answer": {"message": "Error in workflow"}}, "failed"),
        ("n8n-webhook", {**ASKED, "answer": {"answer": "  ", "model": "small:1b"}}, "failed"),
        ("n8n-webhook", {**ASKED, "answer": {"answer": "Paris", "model": "other"}}, "failed"),
        ("n8n-webhook", {**ASKED, "answer": "<html>"}, "failed"),
        ("n8n-demo", {**ANSWER, "stands": "as made", "active": True}, "ok"),
        ("n8n-demo", {"stands": "removed"}, "amber"),
        ("n8n-demo", {"stands": "never made"}, "failed"),
        ("n8n-demo", {"stands": "as made", "active": False}, "amber"),
        ("n8n-demo", {**ANSWER, "stands": "as made", "active": True, "status": 500}, "failed"),
        ("n8n-demo", {**ANSWER, "stands": "edited", "active": True, "status": 500}, "amber"),
        ("n8n-version", {"releases": RUNS, "memory": MEMORY}, "ok"),
        ("n8n-version", {"releases": {**RUNS, "n8n": "2.40.7-12345678"}, "memory": MEMORY}, "failed"),
        ("n8n-version", {"releases": {**RUNS, "node": ""}, "memory": MEMORY}, "failed"),
    ],
)
def test_what_is_measured_decides(check: str, data: dict[str, Any], status: str) -> None:
    found = outcome(check, data)
    assert (found.status, bool(found.measured)) == (status, True)


@pytest.mark.parametrize(("mode", "status"), [(0o600, "ok"), (0o640, "failed"), (0o604, "failed")])
def test_the_environment_file_is_for_root_only(mode: int, status: str) -> None:
    assert outcome("n8n-config-mode", {}, mode).status == status


def test_without_a_model_nothing_is_asked_of_it() -> None:
    ids = {check.id for check in checks.checks(a_plan(models=()))}
    assert "n8n-owner" in ids
    assert not ids & {"n8n-webhook", "n8n-demo"}
