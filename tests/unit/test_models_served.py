"""Which model serves is found on the box, when a step runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from ownstack.engine.served import chat_model
from ownstack.runner import __main__ as runner
from ownstack.runner.served import first_served, resolve
from tests.unit.engine_plans import BOOTSTRAP, CHAT, plan

TAGS = ["qwen3:14b", "smollm2:135m"]


class Tags(BaseHTTPRequestHandler):
    names: tuple[str, ...] = ()

    def do_GET(self) -> None:
        body = json.dumps({"models": [{"name": name, "digest": "d", "size": 1} for name in self.names]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Tags)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("names", "tag"),
    [
        (("smollm2:135m",), "smollm2:135m"),
        (("smollm2:135m", "qwen3:14b"), "qwen3:14b"),
        (("qwen3:14b",), "qwen3:14b"),
        (("other:1",), "smollm2:135m"),
        ((), "smollm2:135m"),
    ],
)
def test_the_first_that_is_served_is_taken(
    url: str, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], tag: str
) -> None:
    monkeypatch.setattr(Tags, "names", names)
    assert first_served(url, TAGS) == tag


def test_a_silent_engine_leaves_the_one_that_came_with_the_kit() -> None:
    assert first_served("http://127.0.0.1:9", TAGS) == "smollm2:135m"


def test_marks_are_found_wherever_they_stand(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tags, "names", ("smollm2:135m",))
    mark = {"first_served": {"url": url, "tags": TAGS}}
    spec = {"url": "u", "values": {"ui.default_models": mark, "n": 1}, "list": [mark, None, True]}
    assert resolve(spec) == {
        "url": "u", "values": {"ui.default_models": "smollm2:135m", "n": 1}, "list": ["smollm2:135m", None, True],
    }  # fmt: skip


def test_the_plan_says_by_name_or_by_mark() -> None:
    assert chat_model(plan(models=(CHAT,))) == "qwen3:14b"
    assert chat_model(plan(models=(BOOTSTRAP,))) == "smollm2:135m"
    assert chat_model(plan(models=())) == ""
    assert chat_model(plan()) == {"first_served": {"url": "http://127.0.0.1:11434", "tags": TAGS}}


def test_steps_get_the_tag_but_a_pull_keeps_the_mark_for_its_end(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Tags, "names", ("smollm2:135m",))
    seen: list[Any] = []

    def step(spec: Any, emit: Any) -> dict[str, bool]:
        seen.append(spec)
        return {"changed": False}

    monkeypatch.setattr(runner, "find", lambda name: step)
    spec = json.dumps({"model": {"first_served": {"url": url, "tags": TAGS}}})
    assert runner.main(["n8n.content", "--json", spec]) == 0
    assert runner.main(["ollama.pull_start", "--json", spec]) == 0
    assert seen == [{"model": "smollm2:135m"}, json.loads(spec)]
    assert '"result"' in capsys.readouterr().out
