"""The watch under a real systemd, in its sandbox: timer, resume hook, a restart of the engine, and its removal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.engine.zipapp import runner_zipapp
from ownstack.plan import Plan
from roles.ollama import watch
from tests.hosts import Host, Network
from tests.unit.engine_plans import CHAT, plan

RUNNER = "opt/ownstack/base/current/runner"
# an engine that lost its card until it is started anew
ENGINE = """
import http.server, json, pathlib
lost = pathlib.Path("/srv/lost")
lost.with_name("starts").open("a").write("x")
healed = lost.with_name("heals").exists()
if healed and lost.exists():
    lost.unlink()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({"version": "0", "models": [{"name": "qwen3:14b", "size": 9, "size_vram": 0 if lost.exists() else 9}]})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        said = {"message": {"content": "Paris"}, "eval_count": 50, "eval_duration": 10**9}
        self.say({**said, "modelfile": "", "parameters": ""})
    def say(self, data):
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", 11434), Handler).serve_forever()
"""
UNIT = """[Service]
ExecStart=/usr/bin/python3 /srv/engine.py
[Install]
WantedBy=multi-user.target
"""


def put(host: Host, path: str, text: str | bytes, mode: int = 0o644) -> None:
    target = host.root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(text if isinstance(text, bytes) else text.encode())
    target.chmod(mode)


def step(host: Host, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    out = host.run(f"/{RUNNER} {name}", data=json.dumps(spec)).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert found["event"] == "result", found
    return found


def state(host: Host, made: Plan) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((host.root / watch.state_file(made).lstrip("/")).read_text())
    return found


@pytest.fixture
def made() -> Plan:
    model = CHAT.model_copy(update={"predicted_tps": (40.0, 50.0, 60.0)})
    return plan(models=(model,), engine="vulkan", gpu_names=("a card",))


@pytest.fixture
def host(network: Network, made: Plan) -> Iterator[Host]:
    with Host(network, "watched") as opened:
        put(opened, "srv/engine.py", ENGINE)
        put(opened, "etc/systemd/system/ownstack-ollama.service", UNIT)
        put(opened, "opt/ownstack/base/current/runner.pyz", runner_zipapp())
        put(opened, RUNNER, '#!/bin/sh\nexec /usr/bin/python3 -I /opt/ownstack/base/current/runner.pyz "$@"\n', 0o755)
        (opened.root / "var/lib/ownstack").mkdir(parents=True)
        for file in watch.files(made):
            put(opened, file.path, file.content)
        opened.boot()
        opened.run("systemctl enable --now ownstack-ollama")
        yield opened


def test_the_watch_looks_repairs_and_goes(host: Host, made: Plan) -> None:
    arm = watch.arm_spec(made)
    assert step(host, "gpu.arm", {**arm, "dry": True})["changed"]
    assert step(host, "gpu.arm", arm)["changed"]
    assert not step(host, "gpu.arm", arm)["changed"], "a second run changes nothing"
    assert host.output("systemctl is-active ownstack-gpu-watch.timer") == "active"
    assert host.output("systemctl is-enabled ownstack-gpu-watch-resume.service") == "enabled"

    host.run("systemctl start ownstack-gpu-watch")
    well = state(host, made)
    assert (well["ok"], well["tps"], well["events"]) == (True, 50.0, [])

    (host.root / "srv/lost").write_text("")
    (host.root / "srv/heals").write_text("")
    host.run("systemctl start ownstack-gpu-watch-resume")  # as after suspend
    end = time.monotonic() + 30
    while not state(host, made)["events"] and time.monotonic() < end:
        time.sleep(0.2)
    (event,) = state(host, made)["events"]
    assert event["code"] == ""
    assert event["remedies"] == [{"remedy": "restart the engine", "outcome": "it helped"}]
    assert state(host, made)["ok"]
    assert (host.root / "srv/starts").read_text() == "xx", "the engine was started once more, out of the sandbox"
    assert host.output("systemctl is-failed ownstack-gpu-watch.service || true") == "inactive"

    files = [file.path for file in watch.files(made)]
    assert step(host, "gpu.disarm", {**arm, "files": files})["changed"]
    assert not step(host, "gpu.disarm", {**arm, "files": files})["changed"]
    assert not [path for path in files if Path(host.root, path.lstrip("/")).exists()]
    assert host.output("systemctl list-unit-files 'ownstack-gpu-watch*' --no-legend | wc -l") == "0"
