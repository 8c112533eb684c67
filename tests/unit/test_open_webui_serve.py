"""serve.py: who may ask Open WebUI. The rendered program itself is run, around a small application."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ownstack.engine.render import render

Message = dict[str, Any]


class Inner:
    """An application that notes what reaches it."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        self.seen.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"page"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.accept"})


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def gate(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The gate of the rendered program, around `inner`."""
    started: list[dict[str, Any]] = []
    packages = {
        "uvicorn": SimpleNamespace(run=lambda app, **how: started.append({"app": app, **how})),
        "open_webui": SimpleNamespace(),
        "open_webui.env": SimpleNamespace(UVICORN_WS_PER_MESSAGE_DEFLATE=True),
        "open_webui.main": SimpleNamespace(app=inner),
    }
    for name, content in packages.items():
        module = ModuleType(name)
        module.__dict__.update(vars(content))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("FROM_INIT_PY", "")
    text = render("open_webui/serve.py.j2", port=8081, hosts=["127.0.0.1", "localhost", "::1", "box.home"])
    exec(compile(text, "serve.py", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own program
    assert (started[0]["host"], started[0]["port"]) == ("127.0.0.1", 8081)
    return started[0]["app"]


def ask(gate: Any, kind: str, *headers: tuple[str, str]) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": f"{kind}.disconnect"}

    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    asyncio.run(gate({"type": kind, "headers": pairs}, receive, send))
    return sent


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8081",
        "127.0.0.1:40123",
        "127.0.0.1",
        "localhost:8081",
        "LocalHost",
        "[::1]:8081",
        "[::1]",
        "box.home",
    ],
)
def test_loopback_names_are_answered_at_any_port(gate: Any, inner: Inner, host: str) -> None:
    assert ask(gate, "http", ("host", host))[0]["status"] == 200
    assert ask(gate, "websocket", ("host", host)) == [{"type": "websocket.accept"}]
    assert len(inner.seen) == 2


@pytest.mark.parametrize(
    "host",
    [
        "rebound.example", "rebound.example:8081", "127.0.0.1.rebound.example", "127.0.0.1:8081.rebound.example",
        "localhost.", "", "192.168.1.5:8081", "rebound.example:8081@127.0.0.1", "\xe9", "127.0.0.1:8081:x",
    ],
)  # fmt: skip
def test_other_names_are_refused(gate: Any, inner: Inner, host: str) -> None:
    assert ask(gate, "http", ("host", host))[0]["status"] == 421
    assert ask(gate, "websocket", ("host", host)) == [{"type": "websocket.close", "code": 1008}]
    assert inner.seen == []


def test_no_host_and_two_hosts_are_refused(gate: Any, inner: Inner) -> None:
    assert ask(gate, "http")[0]["status"] == 421
    assert ask(gate, "http", ("host", "127.0.0.1"), ("host", "rebound.example"))[0]["status"] == 421
    assert inner.seen == []


def origin_within(gate: Any, inner: Inner, host: str, origin: str) -> str | None:
    """The Origin that reaches Open WebUI's own check; None where it is dropped as same origin."""
    ask(gate, "websocket", ("host", host), ("origin", origin), ("cookie", "c=1"))
    headers = dict(inner.seen[-1]["headers"])
    assert headers[b"cookie"] == b"c=1"
    return headers[b"origin"].decode() if b"origin" in headers else None


def test_the_same_origin_behind_a_tunnel_is_not_compared_with_a_list(gate: Any, inner: Inner) -> None:
    assert origin_within(gate, inner, "127.0.0.1:40123", "http://127.0.0.1:40123") is None
    assert origin_within(gate, inner, "localhost:8081", "http://localhost:8081") is None
    assert origin_within(gate, inner, "box.home", "https://box.home") is None


@pytest.mark.parametrize(
    "origin", ["http://rebound.example", "http://127.0.0.1:5678", "null", "http://127.0.0.1:40123.rebound.example"]
)
def test_another_origin_stays_for_open_webui_to_refuse(gate: Any, inner: Inner, origin: str) -> None:
    assert origin_within(gate, inner, "127.0.0.1:40123", origin) == origin


def test_start_and_stop_pass_through(gate: Any, inner: Inner) -> None:
    ask(gate, "lifespan")
    assert [scope["type"] for scope in inner.seen] == ["lifespan"]
