"""Open WebUI on a real host: office files are found again, the owner's changes survive, the kit's account recovers."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from ownstack.kit import activate
from ownstack.plan import Plan
from tests.e2e.conftest import Provisioned
from tests.fixtures.office import DOCUMENTS
from tests.hosts import Host, Network, Options
from tests.hosts.kit import Ownstack, wait_ready

activate()
from roles import open_webui  # noqa: E402
from roles.open_webui import checks, owned  # noqa: E402

OWN_PASSWORD = "The owner chose this 77"  # of the test's owner
# ten settings that the kit does not own, with values that are not Open WebUI's defaults
OWNERS = {
    "rag.top_k": 7,
    "rag.chunk_size": 1111,
    "ui.watermark": "from our house",
    "ui.default_locale": "de-DE",
    "ui.pending_user_overlay_title": "Please wait",
    "ui.prompt_suggestions": [{"title": ["Cook", "with me"], "content": "What can I cook?"}],
    "notes.enable": False,
    "folders.max_file_count": 12,
    "auth.jwt_expiry": "9d",
    "task.title.prompt_template": "A title of three words: {{MESSAGES}}",
}


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with Host(network, "webui", Options(lower=(debian12.layer,))) as host:
        host.boot()
        wait_ready(host)
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host) -> Ownstack:
    return Ownstack(box)


@pytest.fixture(scope="module")
def plan(box: Host) -> Plan:
    return Plan.model_validate(json.loads(box.output("cat /var/lib/ownstack/manifest.json"))["plan"])


def step(box: Host, plan: Plan, probe: str, /, **spec: Any) -> dict[str, Any]:
    """A runner step on the host, as the kit itself runs it."""
    done = box.run(f"{plan.layout.current('base')}/runner open_webui.{probe}", data=json.dumps(spec))
    last = json.loads(done.stdout.strip().splitlines()[-1])
    assert last["event"] == "result", last
    return dict(last["data"])


def web(box: Host, plan: Plan, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, Any]:
    """Open WebUI's interface, asked on the host."""
    sent = f"-H 'authorization: Bearer {token}'" if token else ""
    ask = f"curl -s -X {method} {sent} -H 'content-type: application/json' -d @- -w '\\n%{{http_code}}' "
    text, _, status = box.run(ask + open_webui.url(plan) + path, data=json.dumps(body)).stdout.rpartition("\n")
    return int(status), json.loads(text) if text.startswith(("{", "[", '"')) else text


def sign_in(box: Host, plan: Plan, email: str, password: str) -> tuple[int, str]:
    status, answer = web(box, plan, "POST", "/api/v1/auths/signin", {"email": email, "password": password})
    return status, answer["token"] if status == 200 else ""


def config(box: Host, plan: Plan, token: str) -> dict[str, Any]:
    return dict(web(box, plan, "GET", "/api/v1/configs/export", token=token)[1])


def verdicts(ownstack: Ownstack) -> dict[str, dict[str, Any]]:
    return {check["id"]: check for check in ownstack.json("verify", check=False)["checks"]}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_an_office_file_is_read_embedded_and_found(box: Host, plan: Plan, kind: str) -> None:
    token = f"token-{secrets.token_hex(6)}"
    content = base64.b64encode(DOCUMENTS[kind](f"The harbour code of today is {token}.")).decode()
    store = {"url": open_webui.qdrant_url(plan), "secret": "qdrant_api_key", "prefix": "open-webui"}
    asked = {"model": owned.serving(plan), "timeout": 600, "qdrant": store}
    file = {"file": f"harbour.{kind}", "content": content, "token": token}
    data = step(box, plan, "document", **open_webui.identity(plan), **asked, **file)
    assert data["token_found"], data
    assert data["during"] > data["before"] == data["after"]
    assert data["left"] == []


def test_the_owners_changes_survive_and_an_owned_key_is_put_back(box: Host, plan: Plan, ownstack: Ownstack) -> None:
    email, first = ownstack.first_password("open_webui")
    _, token = sign_in(box, plan, email, first)
    change = {"password": first, "new_password": OWN_PASSWORD}
    assert web(box, plan, "POST", "/api/v1/auths/update/password", change, token)[0] == 200
    status, token = sign_in(box, plan, email, OWN_PASSWORD)
    assert status == 200
    before = config(box, plan, token)
    assert [key for key, value in OWNERS.items() if before[key] == value] == []
    wanted = {**OWNERS, "openai.enable": True}
    assert web(box, plan, "POST", "/api/v1/configs/import", {"config": wanted}, token)[0] == 200

    found = verdicts(ownstack)
    assert found["open-webui-settings"]["status"] == "amber"
    assert "openai.enable" in found["open-webui-settings"]["measured"]
    assert {name for name, check in found.items() if check["status"] != "ok"} == {"open-webui-settings"}

    box.reboot()
    wait_ready(box)
    ownstack.json("up", "--yes")
    after = config(box, plan, token)
    assert {key: after[key] for key in OWNERS} == OWNERS
    assert after["openai.enable"] is False
    assert sign_in(box, plan, email, OWN_PASSWORD)[0] == 200
    assert sign_in(box, plan, email, first)[0] == 400
    assert {check["status"] for check in verdicts(ownstack).values()} == {"ok"}


def test_a_lost_account_of_the_kit_comes_back_without_the_owners_password(
    box: Host, plan: Plan, ownstack: Ownstack
) -> None:
    email, _ = ownstack.first_password("open_webui")
    _, token = sign_in(box, plan, email, OWN_PASSWORD)
    users = web(box, plan, "GET", "/api/v1/users/", token=token)[1]["users"]
    kit = next(user for user in users if user["email"] == "ownstack@localhost")
    assert web(box, plan, "DELETE", f"/api/v1/users/{kit['id']}", token=token)[0] == 200
    assert verdicts(ownstack)["open-webui-account"]["status"] == "failed"
    ownstack.json("up", "--yes")
    assert verdicts(ownstack)["open-webui-account"]["status"] == "ok"
    assert sign_in(box, plan, email, OWN_PASSWORD)[0] == 200
    assert box.output("find /var/lib/ownstack/open_webui ! -user ownstack-open-webui") == ""


def test_a_password_that_was_lost_is_made_anew(box: Host, plan: Plan, ownstack: Ownstack) -> None:
    ownstack("password", "--reset", "--yes", "open-webui")
    email, new = ownstack.first_password("open_webui")
    assert sign_in(box, plan, email, new)[0] == 200
    assert sign_in(box, plan, email, OWN_PASSWORD)[0] == 400
    assert ownstack("plan", "--exit-code", check=False).returncode == 0


def test_the_checks_are_those_that_verify_runs(plan: Plan, ownstack: Ownstack) -> None:
    assert {check.id for check in checks.checks(plan)} <= set(verdicts(ownstack))
