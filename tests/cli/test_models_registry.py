"""`ownstack models outdated` and `models pull` on a box that only remembers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli import run
from tests.cli.standing import ANSWERS, Box, stand
from tests.unit import machines

NEW = "f" * 64


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return stand(monkeypatch)


def row(name: str, status: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "planned": True, "here": "a" * 64, "registry": "", "address": f"https://r/v2/{name}",
            "status": status, "bytes": 0, "why": "", **more}  # fmt: skip


def answer(monkeypatch: pytest.MonkeyPatch, *rows: dict[str, Any]) -> None:
    monkeypatch.setitem(ANSWERS, "ollama.outdated", {"models": list(rows)})
    monkeypatch.setitem(ANSWERS, "ollama.list", {"models": [{"name": one["name"], "size": 1} for one in rows]})


def specs(box: Box, step: str) -> list[dict[str, Any]]:
    found = [command for command in box.seen.commands if step in command]
    return [json.loads(command[command.index("{") : command.rindex("}") + 1]) for command in found]


def test_it_says_whom_it_asks_what_is_newer_and_how_to_take_it(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = next(model.tag for model in machines.plan(box.report).models if model.source == "registry")
    answer(
        monkeypatch,
        row(chat, "changed", registry=NEW, bytes=3 << 30),
        row("mine:latest", "made-here", address=""),
        row("other:1b", "same"),
    )
    assert run(["models", "outdated"]) == 0
    seen = capsys.readouterr()
    assert "asking registry.ollama.ai" in seen.err
    assert "names of models are all that is sent" in seen.err
    assert f"{'f' * 12}  another one in the registry, 3.0 GiB to fetch" in seen.out
    assert f"`ownstack models pull {chat}`" in seen.out
    assert "made here, the registry was not asked" in seen.out
    (spec,) = specs(box, "ollama.outdated")
    assert (spec["account"], spec["unit"], spec["names"]) == ("ownstack-pull", "ownstack-registry-ask", [])
    assert spec["planned"][chat] is False
    assert run(["models", "outdated", "--json", "other:1b"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "ownstack/models-outdated/1"
    assert [one["take"] for one in told["data"]["models"]] == [f"`ownstack models pull {chat}`", "", ""]


def test_a_registry_that_does_not_answer_is_an_error(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, row("chat:1b", "unreachable", why="no route"))
    assert run(["models", "outdated", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["error"]["code"] == "registry-unreachable"
    assert "https://r/v2/chat:1b does not answer: no route" in told["error"]["message"]
    assert told["data"]["models"][0]["status"] == "unreachable"
    assert run(["models", "outdated"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_pull_takes_what_the_registry_has_now(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = next(model.tag for model in machines.plan(box.report).models if model.source == "registry")
    answer(monkeypatch, row(chat, "changed", registry=NEW, bytes=7))
    assert run(["models", "pull", chat, "new:1b"]) == 2, "it asks, and nobody is there"
    assert specs(box, "ollama.pull_start") == []
    capsys.readouterr()
    assert run(["models", "pull", chat, "new:1b", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == {"pulled": [chat, "new:1b"]}
    planned, added = (spec["pull"] for spec in specs(box, "ollama.pull_start"))
    assert (planned["tag"], planned["digest"], planned["download_bytes"]) == (chat, NEW, 7)
    assert planned["num_ctx"] > 0
    assert not planned["yours"]
    assert (added["tag"], added["digest"], added["num_ctx"], added["yours"]) == ("new:1b", "", 0, True)
    answer(monkeypatch, row(chat, "same"))
    assert run(["models", "pull", chat, "--yes"]) == 0
    assert "up to date: nothing was fetched" in capsys.readouterr().out
    assert specs(box, "ollama.pull_start") == []


def test_pull_refuses_what_it_cannot_take(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, row("mine:latest", "made-here"))
    for name, code, status in (("mine", "model-made-here", 1), ("no name", "model-name", 2)):
        assert run(["models", "pull", name, "--yes", "--json"]) == status
        assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    monkeypatch.setitem(ANSWERS, "ollama.pull_wait", {"ended": {"new:1b": {"code": "", "message": "cut", "hint": "x"}}})
    assert run(["models", "pull", "new:1b", "--yes", "--json"]) == 1
    assert "new:1b: cut" in json.loads(capsys.readouterr().out)["error"]["message"]
