"""A box that stands on a host which only remembers: for commands that talk to a box."""

from __future__ import annotations

import contextlib
import importlib
import json
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ownstack.cli
from ownstack.cli.site import Site
from ownstack.engine import carry, preflight
from ownstack.hardware.report import HardwareReport
from ownstack.runner.__main__ import find
from ownstack.settings import Settings
from ownstack.state import BoxState
from ownstack.verify.check import Check, Outcome
from tests.plan.fake import FakeSession, Seen, bare
from tests.unit import machines

ANSWERS: dict[str, dict[str, Any]] = {
    "box.logs": {"text": "one\ntwo\n"},
    "open_webui.drift": {"drift": []},
    "box.missing": {"missing": []},
    "box.disk": {"folders": [], "disks": []},
    "box.state": {"manifest": {}, "releases": {}, "services": {}, "work": {}},
    "ollama.chat_check": {"answered": True},
    "ollama.embed_check": {"dimension": 384},
    "ollama.ensure": {"present": [], "missing": [], "wrong": {}},
    "ollama.leftovers": {"models": []},
    "ollama.prune": {"models": []},
    "ollama.pull_wait": {"ended": {}},
    "ollama.list": {"models": [{"name": "mine:latest", "size": 10**9, "digest": "sha256:1"}]},
}


def runner(command: str) -> list[str] | None:
    found = re.search(r"runner'? '?([a-z0-9_]+\.[a-z0-9_]+)'? --json", command)
    if found:
        find(found[1])  # a step that is not there would fail on every real host
        return [json.dumps({"event": "result", "changed": True, "data": ANSWERS.get(found[1], {})})]
    if "mktemp -d" in command:  # a private folder
        return ["/dev/shm/ownstack-private"]
    return bare(command)


class Box:
    """What the commands find: hardware, state, and what they did to the host."""

    def __init__(self) -> None:
        self.report: HardwareReport = machines.report("bare-server")
        self.state: BoxState = machines.box(machines.plan(self.report))
        self.sources = machines.sources()
        self.running = True
        self.seen = Seen()

    @contextlib.contextmanager
    def open(self, settings: Settings, *_: Any, **__: Any) -> Iterator[Site]:
        names = [service["name"] for service in (self.state.manifest or {}).get("services", [])]
        now = {"active": self.running, "state": "active", "enabled": True, "pid": 7}
        state = self.state.model_copy(update={"services": {name: dict(now) for name in names}})
        with FakeSession(runner) as session:
            self.seen = session.seen
            session.layout_runner = "/opt/ownstack/base/current/runner"
            yield Site(settings, session, self.report, machines.data(), state, self.sources)


def stand(monkeypatch: pytest.MonkeyPatch) -> Box:
    """Let every command find this box."""
    box = Box()
    names = [module.name for module in pkgutil.iter_modules(ownstack.cli.__path__) if module.name != "site"]
    for loaded in [importlib.import_module(f"ownstack.cli.{name}") for name in names]:
        if hasattr(loaded, "open_site"):
            monkeypatch.setattr(loaded, "open_site", box.open)
    return box


def carried(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let every artefact that this machine carries to the box be there."""
    file = folder / "artefact"
    file.write_bytes(b"x")
    monkeypatch.setattr(carry, "held", lambda artifact: carry.Carried(file, "c" * 64))


def cut_off(monkeypatch: pytest.MonkeyPatch, box: Box, role: str) -> None:
    """An upgrade of a role was cut off on this box; what puts it back finds the box as it was before."""
    about = {"role": role, "kind": "upgrade", "from": {role: "1"}, "to": {role: "2"}}
    names = [service["name"] for service in (box.state.manifest or {}).get("services", [])]
    before = box.state.model_copy(update={"services": {name: {"active": True} for name in names}})
    box.state = before.model_copy(update={"work": {"upgrade": {"status": "taken", **about}}})
    monkeypatch.setattr(preflight, "read_state", lambda session, layout: before)
    monkeypatch.setitem(ANSWERS, "snapshots.revert", {"reverted": True, "begun": True})


def verdict(monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    one = Check("open-webui-account", "The kit signs in", lambda context: outcome, "look", "open_webui")
    monkeypatch.setattr("ownstack.verify.runner.all_checks", lambda plan: [one])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def steps(box: Box) -> list[str]:
    found = []
    for command in box.seen.commands:
        match = re.search(r"runner'? '?([a-z0-9_]+\.[a-z0-9_]+)'? --json", command)
        if match and '"dry": true' not in command:
            found.append(match[1])
    return found


def spec(box: Box, step: str) -> dict[str, Any]:
    (found,) = specs(box, step)
    return found


def specs(box: Box, step: str) -> list[dict[str, Any]]:
    """What a step was told, each time that it was carried out."""
    named = [c for c in box.seen.commands if f"{step} --json" in c.replace("'", "")]
    found = []
    for command in [c for c in named if '"dry": true' not in c]:
        words = shlex.split(command)
        while "--json" not in words:  # a shell within a shell
            words = shlex.split(next(word for word in words if "--json" in word))
        found.append(json.loads(words[words.index("--json") + 1]))
    return found
