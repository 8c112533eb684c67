"""Without the uplink: a box that stands goes on after a reboot, with a chat, an upload and a webhook."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator

import pytest

from ownstack.plan import Plan
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.test_open_webui import sign_in, step, web
from tests.fixtures.office import DOCUMENTS
from tests.hosts import Host, Network, Options
from tests.hosts.kit import Ownstack, processes, wait_ready

OUTSIDE = "192.0.2.77"  # an address of documentation (RFC 5737)


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    """The clone, which has been shut down, started again after its uplink was cut."""
    with Host(network, "offline", Options(lower=(debian12.layer,))) as host:
        host.uplink.execute("ip", "route", "get", OUTSIDE)  # there is a way out, until it is cut
        host.uplink.cut()
        host.boot()
        wait_ready(host)
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


@pytest.fixture(scope="module")
def plan(box: Host) -> Plan:
    return Plan.model_validate(json.loads(box.output("cat /var/lib/ownstack/manifest.json"))["plan"])


def test_it_verifies_without_a_way_out(box: Host, ownstack: Ownstack) -> None:
    assert box.run(f"ip route get {OUTSIDE}", check=False).returncode != 0
    verdict = ownstack.json("verify")
    assert {check["status"] for check in verdict["checks"]} == {"ok"}
    assert len(verdict["checks"]) > 10


def test_a_chat_as_the_web_page_asks_it(box: Host, ownstack: Ownstack, plan: Plan) -> None:
    _, token = sign_in(box, plan, *ownstack.first_password("open_webui"))
    status, models = web(box, plan, "GET", "/api/models", token=token)
    assert status == 200
    names = [model["id"] for model in models["data"] if "minilm" not in model["id"]]
    asked = {"role": "user", "content": "Which city is the capital of France?"}
    body = {"model": names[0], "stream": False, "messages": [asked]}
    status, answer = web(box, plan, "POST", "/api/chat/completions", body, token)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"].strip()


def test_an_upload_is_found_again(box: Host, plan: Plan) -> None:
    from roles import open_webui
    from roles.open_webui import owned

    token = f"token-{secrets.token_hex(6)}"
    content = base64.b64encode(DOCUMENTS["docx"](f"The harbour code of today is {token}.")).decode()
    store = {"url": open_webui.qdrant_url(plan), "secret": "qdrant_api_key", "prefix": "open-webui"}
    file = {"file": "harbour.docx", "content": content, "token": token}
    asked = {"model": owned.serving(plan), "timeout": 600, "qdrant": store}
    data = step(box, plan, "document", **open_webui.identity(plan), **asked, **file)
    assert data["token_found"], data


def test_the_webhook_answers_with_the_models_words(box: Host, plan: Plan) -> None:
    hook = next(hook for hook in hooks(box) if "ask" in hook)
    asked = json.dumps({"question": "Which city is the capital of France?"})
    ask = "curl -s -m 300 -H 'content-type: application/json' -d @- -w '\\n%{http_code}' "
    text, _, status = box.run(f"{ask} http://127.0.0.1:5678/webhook/{hook}", data=asked).stdout.rpartition("\n")
    assert status == "200", text
    assert json.loads(text)["answer"].strip()
    assert json.loads(text)["model"] == next(model.tag for model in plan.models if model.use == "chat")


def hooks(box: Host) -> list[str]:
    """The addresses of the workflows that are on."""
    code = (
        "import sqlite3\nd = sqlite3.connect('file:/var/lib/ownstack/n8n/.n8n/database.sqlite?mode=ro', uri=True)\n"
        "print('\\n'.join(row[0] for row in d.execute('select webhookPath from webhook_entity')))\n"
    )
    return box.run("python3 -", data=code).stdout.split()


def test_up_changes_nothing_and_restarts_nothing(box: Host, ownstack: Ownstack) -> None:
    before = processes(box)
    done = json.loads(ownstack("up", "--yes", "--no-verify", "--json", check=False).stdout)["data"]
    assert processes(box) == before
    changed = {op["name"] for op in done["operations"] if op["changed"]}
    # each lane has a mirror with an address of its own, which is recorded
    assert changed <= {"Base: record the plan", "Base: record that it is done"}
