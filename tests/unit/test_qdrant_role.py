"""Qdrant: closed by its configuration, closed without it, and what `verify` makes of its answers."""

from __future__ import annotations

import json
import socket
import urllib.parse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ownstack.engine import units
from ownstack.plan import Plan
from ownstack.runner import qdrant as steps
from ownstack.runner.core import StepError
from ownstack.verify.runner import run_check
from roles import qdrant
from roles.qdrant.checks import checks
from tests.unit import machines


def a_plan(machine: str = "bare-server", flags: dict[str, Any] | None = None) -> Plan:
    return machines.plan(machine, {"roles": ["qdrant"], **(flags or {})})


def test_the_configuration_closes_it() -> None:
    made = a_plan(flags={"qdrant.port": 7333})
    (file,) = qdrant.files(made)
    assert (file.path, file.mode, file.group, file.secret) == (
        "/etc/ownstack/qdrant/config.yaml", "0640", "ownstack-qdrant", True,
    )  # fmt: skip
    lines = [line.strip() for line in file.content.splitlines()]
    for line in (
        "host: 127.0.0.1", "http_port: 7333", "grpc_port: null", "telemetry_disabled: true", "enable_cors: false",
        "enable_static_content: false", 'api_key: "@@secret:qdrant_api_key@@"',
        'read_only_api_key: "@@secret:qdrant_read_only_key@@"',
    ):  # fmt: skip
        assert line in lines
    assert {secret.name for secret in qdrant.ROLE.secrets} == {"qdrant_api_key", "qdrant_read_only_key"}


@pytest.mark.parametrize("machine", ["bare-server", "container-cgroup-v2"])
def test_without_its_configuration_it_does_not_start_and_would_not_be_open(machine: str) -> None:
    """Qdrant ignores a missing file and listens to everybody without a key."""
    made = a_plan(machine)
    (service,) = qdrant.services(made)
    path = qdrant.config_path(made)
    assert service.command[1:] == ("--config-path", path)
    assert service.requires == (path,)
    assert dict(service.environment) == {"QDRANT__SERVICE__HOST": "127.0.0.1", "QDRANT__TELEMETRY_DISABLED": "true"}
    text = "\n".join(file.content for file in units.unit_files(made, service))
    if made.manager == "systemd":
        assert f"AssertPathExists={path}\n" in text
    else:
        (about,) = [file for file in units.unit_files(made, service) if file.path.endswith("qdrant.json")]
        assert json.loads(about.content)["requires"] == [path]


def test_collections_of_any_name_are_counted_and_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workflows make collections too, and name them as they like."""
    held = {"mine_my notes #1": 3, "mine_K\u00fcche & co": 4, "gone": 0, "other": 5}
    (tmp_path / "qdrant_api_key").write_text("k")
    seen = []

    def request(method: str, url: str, body: Any = None, **_: Any) -> tuple[int, Any]:
        assert url.isascii()
        assert " " not in url
        assert "#" not in url
        path = [urllib.parse.unquote(part) for part in url.removeprefix("http://q/collections").split("/")[1:]]
        seen.append((method, path))
        if not path:
            return 200, {"result": {"collections": [{"name": name} for name in held]}}
        if path[0] == "gone":
            return 404, {"status": {"error": "Not found"}}
        return 200, {"result": {"count": held[path[0]]}}

    monkeypatch.setattr(steps, "request", request)
    spec = {"url": "http://q", "secrets_dir": str(tmp_path), "prefixes": ["mine"]}
    assert steps.counts(spec, lambda event: None)["data"] == {name: n for name, n in held.items() if name != "gone"}
    assert steps.drop(spec, lambda event: None)["data"]["collections"] == ["mine_K\u00fcche & co", "mine_my notes #1"]
    assert ("DELETE", ["mine_my notes #1"]) in seen


def test_a_collection_that_cannot_be_counted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qdrant_api_key").write_text("k")
    answers = iter([(200, {"result": {"collections": [{"name": "a"}]}}), (0, "timed out")])
    monkeypatch.setattr(steps, "request", lambda *_, **__: next(answers))
    with pytest.raises(StepError, match="a count of a"):
        steps.counts({"url": "http://q", "secrets_dir": str(tmp_path)}, lambda event: None)


PROBE = {"without_key": 401, "reader_reads": 200, "reader_writes": 403, "collections": {}}


def verdict(name: str, found: dict[str, Any] | None = None, exists: bool = True) -> tuple[str, str]:
    made = a_plan()
    wanted = made.role("qdrant").artifact("qdrant").version
    data = {**PROBE, "version": wanted, **(found or {})}
    file = SimpleNamespace(exists=exists, mode=0o640)
    context = SimpleNamespace(plan=made, host=SimpleNamespace(file=lambda path: file), step=lambda *_, **__: data)
    check = next(check for check in checks(made) if check.id == name)
    outcome = run_check(check, context).outcome
    return outcome.status, outcome.measured


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({}, "ok"),
        ({"without_key": 200}, "failed"),
        ({"without_key": 0}, "failed"),
        ({"reader_reads": 401}, "failed"),
        ({"reader_writes": 200}, "failed"),
    ],
)
def test_keys_that_do_not_close_it_fail(found: dict[str, int], status: str) -> None:
    got, measured = verdict("qdrant-key-required", found)
    assert got == status
    assert str(found.get("without_key", 401)) in measured


def test_a_missing_file_and_another_version_fail() -> None:
    assert verdict("qdrant-config")[0] == "ok"
    assert verdict("qdrant-config", exists=False) == ("failed", "/etc/ownstack/qdrant/config.yaml is missing")
    assert verdict("qdrant-version")[0] == "ok"
    assert verdict("qdrant-version", {"version": "1.0.0"})[0] == "failed"


def test_a_store_that_says_nothing_is_told_after_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("qdrant_api_key", "qdrant_read_only_key"):
        (tmp_path / name).write_text("k\n")
    monkeypatch.setattr(steps, "PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections as a stopped process does
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(StepError, match="does not answer: timed out") as caught:
            steps.probe({"url": url, "secrets_dir": str(tmp_path)}, lambda event: None)
    assert "restart qdrant" in caught.value.hint
