"""What is the owner's: documents are found again, changes survive, a lost account or password comes back.

The changes are made in a headless browser, in the pages' own forms. Only the model is added through the interface
that the page itself uses, with the page's session.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from ownstack.kit import activate
from ownstack.plan import Plan
from tests.e2e.conftest import Mirror, Provisioned
from tests.fixtures.office import DOCUMENTS
from tests.hosts import Host, Network
from tests.hosts.browser import Browser, Chat, Workflows
from tests.hosts.kit import Ownstack, wait_ready

activate()
from roles import open_webui  # noqa: E402
from roles.open_webui import checks, owned  # noqa: E402

OPEN_WEBUI, N8N = "http://127.0.0.1:8080", "http://127.0.0.1:5678"
OWN_PASSWORD, N8N_PASSWORD = "The owner chose this 77", "The owner chose that 78"  # of the test's owner
# settings that the kit does not own: page, label, and what is set; none is Open WebUI's default
OWNERS = {
    "rag.chunk_size": ("documents", "Chunk Size", 1111),
    "rag.chunk_overlap": ("documents", "Chunk Overlap", 111),
    "rag.chunk_min_size_target": ("documents", "Chunk Min Size Target", 11),
    "rag.top_k": ("documents", "Top K", 7),
    "rag.file.max_size": ("documents", "Max Upload Size", 77),
    "rag.file.max_count": ("documents", "Max Upload Count", 17),
    "file.image_compression_width": ("documents", "Image Compression Width", 1600),
    "file.image_compression_height": ("documents", "Image Compression Height", 1200),
    "folders.max_file_count": ("general", "Folder Max File Count", 12),
    "ui.watermark": ("general", "Response Watermark", "from our house"),
}
OWNED, OWNED_LABEL = "openai.enable", "OpenAI API"
MODEL, TITLE = "mine:latest", "My own demo"


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "owner") as host:
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


@pytest.fixture(scope="module")
def plan(box: Host) -> Plan:
    return Plan.model_validate(json.loads(box.output("cat /var/lib/ownstack/manifest.json"))["plan"])


@pytest.fixture(scope="module")
def browser(box: Host) -> Iterator[Browser]:
    with Browser(box.uplink.name) as browser:
        yield browser


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


def settings(browser: Browser) -> dict[str, Any]:
    """Open WebUI's settings, as its signed-in page gets them."""
    browser.open(OPEN_WEBUI)
    return dict(browser.fetch("GET", "/api/v1/configs/export"))


def test_the_owner_changes_passwords_settings_a_model_and_a_workflow(browser: Browser, ownstack: Ownstack) -> None:
    email, first = ownstack.first_password("open_webui")
    chat = Chat(browser, OPEN_WEBUI)
    chat.sign_in(email, first)
    before = settings(browser)
    assert [key for key, (*_, value) in OWNERS.items() if before[key] == value] == []
    assert before[OWNED] is False
    chat.change_password(first, OWN_PASSWORD)
    chat.sign_in(email, OWN_PASSWORD)
    for section in ("documents", "general"):
        chat.change_settings(section, {label: str(to) for page, label, to in OWNERS.values() if page == section})
    chat.change_settings("connections", {}, [OWNED_LABEL])
    made = {"model": MODEL, "from": "smollm2:135m-q8_0", "system": "Answer in one word."}
    browser.fetch("POST", "/ollama/api/create", made)

    email, first = ownstack.first_password("n8n")
    workflows = Workflows(browser, N8N)
    workflows.sign_in(email, first)
    workflows.change_password(first, N8N_PASSWORD)
    workflows.rename_first(TITLE)


def test_verify_names_the_owned_key_and_up_puts_it_back_and_says_so(plan: Plan, ownstack: Ownstack) -> None:
    found = verdicts(ownstack)
    assert {check.id for check in checks.checks(plan)} <= set(found)
    assert {name for name, check in found.items() if check["status"] != "ok"} == {"open-webui-settings"}
    assert found["open-webui-settings"]["status"] == "amber"
    assert OWNED in found["open-webui-settings"]["measured"]
    done = ownstack("up", "--yes", "--no-verify")
    assert f"{OWNED} is as planned again" in done.stderr


def test_after_a_reboot_and_another_up_all_is_the_owners(
    browser: Browser, box: Host, plan: Plan, ownstack: Ownstack
) -> None:
    """Seen in the pages, with the new passwords, which the kit does not know."""
    browser.open(N8N)
    edited = Workflows(browser, N8N).workflows()
    box.reboot()
    wait_ready(box)
    again = ownstack.json("up", "--yes")
    assert again["changed"] == 0
    assert {check["status"] for check in again["verify"]["checks"]} == {"ok"}
    email, first = ownstack.first_password("open_webui")
    assert sign_in(box, plan, email, first)[0] == 400
    with Browser(box.uplink.name) as anew:
        Chat(anew, OPEN_WEBUI).sign_in(email, OWN_PASSWORD)
        after = settings(anew)
        assert {key: after[key] for key in OWNERS} == {key: value for key, (*_, value) in OWNERS.items()}
        assert after[OWNED] is False
        assert MODEL in [model["model"] for model in anew.fetch("GET", "/ollama/api/tags")["models"]]
        email, _ = ownstack.first_password("n8n")
        workflows = Workflows(anew, N8N)
        workflows.sign_in(email, N8N_PASSWORD)
        assert workflows.names() == [TITLE]
        assert [flow["nodes"] for flow in workflows.workflows()] == [flow["nodes"] for flow in edited]


def test_a_lost_account_of_the_kit_comes_back_without_the_owners_password(
    box: Host, plan: Plan, ownstack: Ownstack
) -> None:
    email, _ = ownstack.first_password("open_webui")
    _, token = sign_in(box, plan, email, OWN_PASSWORD)
    users = web(box, plan, "GET", "/api/v1/users/", token=token)[1]["users"]
    kit = next(user for user in users if user["email"] == "ownstack@localhost")
    assert web(box, plan, "DELETE", f"/api/v1/users/{kit['id']}", token=token)[0] == 200
    assert verdicts(ownstack)["open-webui-account"]["status"] == "failed"
    again = {check["id"]: check["status"] for check in ownstack.json("up", "--yes")["verify"]["checks"]}
    assert again["open-webui-account"] == "ok"
    assert sign_in(box, plan, email, OWN_PASSWORD)[0] == 200
    assert box.output("find /var/lib/ownstack/open_webui ! -user ownstack-open-webui") == ""


def test_a_password_that_was_lost_is_made_anew(box: Host, plan: Plan, ownstack: Ownstack) -> None:
    ownstack("password", "--reset", "--yes", "open-webui")
    email, new = ownstack.first_password("open_webui")
    assert sign_in(box, plan, email, new)[0] == 200
    assert sign_in(box, plan, email, OWN_PASSWORD)[0] == 400
    assert ownstack("plan", "--exit-code", check=False).returncode == 0
