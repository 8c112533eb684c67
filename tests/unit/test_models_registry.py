"""Which models have changed in the registry: asked of a registry that speaks its protocol, with an engine beside it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import ollama_api, ollama_prune, ollama_registry
from ownstack.runner.core import Event, StepError
from ownstack.runner.ollama_pull import remember
from tests.hosts.serve import Answer, Fault, FileServer

ROOT = Path(__file__).parents[2]
BLOB = "sha256:" + "a" * 64


def manifest(weights: str, size: int) -> bytes:
    layer = {"digest": weights, "size": size, "mediaType": "application/vnd.ollama.image.model"}
    return json.dumps({"layers": [layer], "config": {"digest": "sha256:" + "c" * 64, "size": 10}}).encode()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


OLD, NEW = manifest(BLOB, 1000), manifest("sha256:" + "b" * 64, 2000)


class Machine:
    """An engine and a registry, each a small server; `names` are the models of the engine: manifest, parent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = FileServer(self.answer)
        self.registry = FileServer(lambda host, path: Answer(self.served[path]) if path in self.served else None)
        self.names: dict[str, tuple[bytes, str]] = {}
        self.served: dict[str, bytes] = {}
        runner = folder / "runner"
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import runpy; "
        code += "sys.argv[0] = 'runner'; runpy.run_module('ownstack.runner', run_name='__main__')"
        runner.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
        runner.chmod(0o755)
        self.runner = str(runner)

    def answer(self, host: str, path: str) -> Answer | None:
        if path == "/api/tags":
            rows = [{"name": name, "digest": digest(own), "size": 1} for name, (own, _) in self.names.items()]
            return Answer(json.dumps({"models": rows}).encode())
        return None

    def spec(self, planned: dict[str, bool], **more: Any) -> dict[str, Any]:
        return {
            "url": self.engine.url, "record": str(self.folder / "models.json"),
            "registry": self.registry.url.removeprefix("http://"), "insecure": True, "planned": planned,
            "runner": self.runner, "manager": "supervisord", "unit": "x", "account": "", **more,
        }  # fmt: skip

    def ask(self, planned: dict[str, bool], **more: Any) -> dict[str, dict[str, Any]]:
        found = ollama_registry.outdated(self.spec(planned, **more), self.said.append)
        return {row["name"]: row for row in found["data"]["models"]}

    said: list[Event] = []  # noqa: RUF012


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path)

    def ask(url: str, path: str, body: Any = None, what: str = "", timeout: float = 60.0) -> dict[str, Any]:
        """The engine's /api/show, which is asked by POST."""
        if path != "/api/show":
            told: dict[str, Any] = plain(url, path, body, what, timeout)
            return told
        own, parent = made.names[body["model"]]
        weights = json.loads(own)["layers"][0]["digest"].replace(":", "-")
        return {"modelfile": f"FROM /models/blobs/{weights}", "details": {"parent_model": parent}}

    plain = ollama_api.ask
    monkeypatch.setattr(ollama_api, "ask", ask)
    with made.engine, made.registry:
        yield made


def test_each_model_is_told_apart(machine: Machine) -> None:
    machine.names = {
        "same:1b": (OLD, ""), "changed:1b": (OLD, ""), "mine:latest": (OLD, "same:1b"), "kits:1b": (OLD, ""),
        "gone:1b": (OLD, ""), "friend/theirs:1b": (OLD, "same:1b"),
    }  # fmt: skip
    machine.served = {
        "/v2/library/same/manifests/1b": OLD,
        "/v2/library/changed/manifests/1b": NEW,
        "/v2/friend/theirs/manifests/1b": OLD,
    }
    rows = machine.ask({"same:1b": False, "kits:1b": True, "changed:1b": False})
    assert {name: row["status"] for name, row in rows.items()} == {
        "same:1b": "same", "changed:1b": "changed", "mine:latest": "made-here", "kits:1b": "made-here",
        "gone:1b": "unknown", "friend/theirs:1b": "same",
    }  # fmt: skip
    changed = rows["changed:1b"]
    assert (changed["here"], changed["registry"], changed["bytes"]) == (digest(OLD), digest(NEW), 2010)
    assert changed["address"] == f"{machine.registry.url}/v2/library/changed/manifests/1b"
    asked = machine.registry.paths()
    assert not [path for path in asked if "mine" in path or "kits" in path], "names of what was made here stay here"
    assert len(asked) == 4
    assert set(machine.ask({}, names=["changed:1b"])) == {"changed:1b"}
    assert machine.registry.paths()[4:] == ["/v2/library/changed/manifests/1b"]


def test_a_context_of_its_own_is_no_difference(machine: Machine) -> None:
    """What is written into a model changes the digest that the engine lists; the record has the registry's."""
    baked = manifest(BLOB, 999)
    machine.names = {"chat:1b": (baked, "chat:1b")}
    machine.served = {"/v2/library/chat/manifests/1b": OLD}
    remember(str(machine.folder / "models.json"), "chat:1b", digest(OLD), BLOB)
    assert machine.ask({"chat:1b": False})["chat:1b"]["status"] == "same"
    remember(str(machine.folder / "models.json"), "chat:1b", digest(OLD), "sha256:" + "e" * 64)
    assert machine.ask({"chat:1b": False})["chat:1b"]["status"] == "changed", "the record is of other weights"


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault(status=503), "unreachable"),
        (Fault(status=401), "refused"),
        (Fault(status=403), "refused"),
        (Fault(flip=True), "unreachable"),
    ],
)
def test_what_answers_wrongly_is_no_answer(fault: Fault, status: str, machine: Machine) -> None:
    machine.names = {"chat:1b": (OLD, "")}
    machine.served = {"/v2/library/chat/manifests/1b": b"\xfe" + OLD}
    if not fault.flip:
        machine.registry.faults = {"/v2/library/chat/manifests/1b": fault}
    row = machine.ask({})["chat:1b"]
    assert row["status"] == status
    assert row["why"]


def test_nobody_there(machine: Machine) -> None:
    machine.names = {"chat:1b": (OLD, "")}
    machine.registry.close()
    row = machine.ask({})["chat:1b"]
    assert row["status"] == "unreachable"
    assert "refused" in row["why"]
    with pytest.raises(StepError, match="nosuch:latest is not among the box's models"):
        machine.ask({}, names=["nosuch"])


def test_under_systemd_the_pulling_account_asks_in_a_unit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.names = {"chat:1b": (OLD, "")}
    seen: list[list[str]] = []

    def run(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        out = json.dumps({"event": "result", "data": {"manifests": {"chat:1b": {"digest": digest(OLD), "bytes": 1}}}})
        return subprocess.CompletedProcess(command, 0, f"{out}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    machine.ask({}, manager="systemd", account="box-pull", unit="box-registry-ask")
    (command,) = seen
    assert command[0] == "systemd-run"
    assert {"--wait", "--pipe", "--collect", "--unit=box-registry-ask", "--property=User=box-pull"} <= set(command)
    assert "--property=ProtectSystem=strict" in command
    assert command[command.index("--") + 1 :][:2] == [machine.runner, "ollama.manifests"]
    monkeypatch.setattr(
        subprocess, "run", lambda command, **more: subprocess.CompletedProcess(command, 1, "", "no unit")
    )
    with pytest.raises(StepError, match="could not ask the registry: no unit"):
        machine.ask({})


def test_an_engine_that_is_gone_keeps_nobody_from_taking_the_box_away(machine: Machine) -> None:
    record = str(machine.folder / "models.json")
    remember(record, "chat:1b", digest(OLD), BLOB)
    spec = {"url": "http://127.0.0.1:1", "record": record, "keep": []}
    for dry in (True, False):
        done = ollama_prune.prune({**spec, "dry": dry, "farewell": True}, machine.said.append)
        assert not done["changed"]
        assert "were not removed" in done["data"]["said"][0]
        with pytest.raises(StepError, match="does not answer"):  # `up --prune`
            ollama_prune.prune({**spec, "dry": dry}, machine.said.append)


def test_what_a_person_pulled_is_never_pruned(machine: Machine) -> None:
    machine.names = {"chat:1b": (OLD, ""), "mine:1b": (OLD, "")}
    record = str(machine.folder / "models.json")
    remember(record, "chat:1b", digest(OLD), BLOB)
    remember(record, "mine:1b", digest(OLD), BLOB, yours=True)
    spec = {"url": machine.engine.url, "record": record, "keep": []}
    left = ollama_prune.leftovers(spec, machine.said.append)["data"]["models"]
    assert [one["model"] for one in left] == ["chat:1b"]
