"""The open_webui steps against a small server with Open WebUI's answers and refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import open_webui
from ownstack.runner.core import StepError
from ownstack.runner.files import edited
from ownstack.runner.secrets import fill
from tests.fixtures.open_webui_server import OWNER, FakeOpenWebUI, serve

FIRST = "FirstPassword123"
KIT = open_webui.KIT_EMAIL
STEPS = open_webui.STEPS


def quiet(event: dict[str, Any]) -> None:
    """Nobody listens."""


@pytest.fixture
def site() -> Iterator[FakeOpenWebUI]:
    with serve(FakeOpenWebUI(FIRST)) as running:
        yield running


@pytest.fixture
def spec(site: FakeOpenWebUI, tmp_path: Path) -> dict[str, Any]:
    secrets, data = tmp_path / "secrets", tmp_path / "data"
    secrets.mkdir(mode=0o700)
    data.mkdir()
    (secrets / "open_webui_admin_password").write_text(FIRST + "\n")
    (secrets / "qdrant_api_key").write_text("q\n")
    return {
        "url": site.url, "secrets_dir": str(secrets), "admin_email": OWNER, "model": "small:1b", "timeout": 5,
        "qdrant": {"url": site.url, "secret": "qdrant_api_key", "prefix": "open-webui"},
        "inside": {
            "python": sys.executable, "user": "", "environment": {"DATA_DIR": str(data)}, "environment_files": [],
        },
        "values": {"openai.enable": False, "ui.enable_signup": False},
    }  # fmt: skip


def secret(spec: dict[str, Any], name: str) -> str:
    return (Path(spec["secrets_dir"]) / name).read_text().strip()


# ---------------------------------------------------------------------------------------------------------- identity


def test_setup_signs_in_once_and_then_works_with_its_own_key(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    assert STEPS["setup"](spec, quiet) == {"changed": True, "data": {"way": "first-password"}}
    assert site.accounts[KIT]["role"] == "admin"
    assert site.keys == {KIT: secret(spec, "open_webui_kit_key")}
    site.accounts[OWNER]["password"] = "the owner's own"
    site.log.clear()
    assert STEPS["setup"](spec, quiet) == {"changed": False, "data": {"way": "held"}}
    assert ("POST", "/api/v1/auths/signin") not in site.log
    assert site.accounts[OWNER]["password"] == "the owner's own"


def test_a_lost_key_is_made_again_by_the_kits_own_account(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    STEPS["setup"](spec, quiet)
    site.accounts[OWNER]["password"] = "the owner's own"
    (Path(spec["secrets_dir"]) / "open_webui_kit_key").unlink()
    assert STEPS["setup"](spec, quiet)["data"] == {"way": "kit"}
    assert STEPS["setup"](spec, quiet)["changed"] is False


def test_api_keys_that_were_switched_off_are_switched_on(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    STEPS["setup"](spec, quiet)
    site.config["auth.enable_api_keys"] = False
    assert STEPS["setup"](spec, quiet)["data"] == {"way": "kit"}
    assert STEPS["setup"](spec, quiet)["changed"] is False


@pytest.mark.parametrize("damage", ["deleted", "demoted"])
def test_a_lost_account_is_made_again_without_the_owners_password(
    site: FakeOpenWebUI, spec: dict[str, Any], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    STEPS["setup"](spec, quiet)
    site.accounts[OWNER]["password"] = "the owner's own"
    if damage == "deleted":
        del site.accounts[KIT], site.keys[KIT]
    else:
        site.accounts[KIT]["role"] = "user"

    def account_code(spec: dict[str, Any], action: str, **values: str) -> dict[str, str]:
        assert (action, values["email"]) == ("kit", KIT)
        site.accounts[KIT] = {"password": values["password"], "role": "admin"}
        site.keys[KIT] = "sk-inside"
        return {"api_key": "sk-inside"}

    monkeypatch.setattr(open_webui, "inside", account_code)
    assert STEPS["setup"](spec, quiet)["data"] == {"way": "recovered"}
    assert secret(spec, "open_webui_kit_key") == "sk-inside"
    assert site.accounts[OWNER]["password"] == "the owner's own"


def test_an_account_that_is_refused_all_the_same_is_an_error(
    site: FakeOpenWebUI, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.accounts[OWNER]["password"] = "the owner's own"
    monkeypatch.setattr(open_webui, "inside", lambda spec, action, **values: {"api_key": "sk-nobody"})
    with pytest.raises(StepError) as caught:
        STEPS["setup"](spec, quiet)
    assert caught.value.code == "open-webui-identity"
    assert caught.value.hint


def test_a_key_that_is_refused_says_how_to_go_on(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    STEPS["setup"](spec, quiet)
    site.keys.clear()
    with pytest.raises(StepError) as caught:
        STEPS["drift"](spec, quiet)
    assert caught.value.code == "open-webui-identity"
    assert "ownstack up" in caught.value.hint


def test_a_dry_run_of_setup_changes_nothing(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    assert STEPS["setup"](spec | {"dry": True}, quiet)["changed"] is True
    assert set(site.accounts) == {OWNER}
    STEPS["setup"](spec, quiet)
    assert STEPS["setup"](spec | {"dry": True}, quiet)["changed"] is False
    assert STEPS["setup"](spec | {"dry": True, "url": "http://127.0.0.1:9"}, quiet)["changed"] is True


# ------------------------------------------------------------------------------------------------- the account's code

INSIDE = """
import json, os, sys
asked = json.load(sys.stdin)
print("noise of an import")
print(json.dumps({"asked": asked, "argv": sys.argv, "env": dict(os.environ), "cwd": os.getcwd()}))
"""


def test_secrets_reach_the_account_code_on_standard_input_only(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env").write_text('WEBUI_SECRET_KEY=abc\nPASSWORD_VALIDATION_REGEX_PATTERN="^.{10,}$"\n')
    spec["inside"]["environment_files"] = [str(tmp_path / "env")]
    monkeypatch.setattr("pkgutil.get_data", lambda package, name: INSIDE.encode())
    found = open_webui.inside(spec, "password", kit=KIT, password="canary-4711")
    assert found["asked"] == {"action": "password", "kit": KIT, "password": "canary-4711"}
    assert "canary-4711" not in json.dumps([found["argv"], found["env"]])
    assert found["env"]["WEBUI_SECRET_KEY"] == "abc"
    assert found["env"]["ENABLE_DB_MIGRATIONS"] == "False"
    assert found["cwd"] == spec["inside"]["environment"]["DATA_DIR"]


def test_account_code_that_fails_is_an_error_without_its_input(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pkgutil.get_data", lambda package, name: b"raise SystemExit('no such table: auth')")
    with pytest.raises(StepError, match="no such table: auth") as caught:
        open_webui.inside(spec, "password", kit=KIT, password="canary-4711")
    assert "canary" not in caught.value.message + caught.value.hint


def test_a_new_password_is_recorded_and_its_files_filled(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str] = {}

    def account_code(spec: dict[str, Any], action: str, **values: str) -> dict[str, str]:
        given.update(values)
        return {"email": OWNER}

    monkeypatch.setattr(open_webui, "inside", account_code)
    target = tmp_path / "env"
    content = "WEBUI_ADMIN_PASSWORD=@@secret:open_webui_admin_password@@\n"
    file = {"path": str(target), "content": content, "mode": "0600", "owner": "", "group": ""}
    record = str(tmp_path / "files.sha256")
    spec |= {"files": [file], "record": record}
    fill(spec, quiet)
    result = STEPS["password_reset"](spec, quiet)
    new = secret(spec, "open_webui_admin_password")
    assert result == {"changed": True, "data": {"email": OWNER}}
    assert new == given["password"] != FIRST
    assert target.read_text() == f"WEBUI_ADMIN_PASSWORD={new}\n"
    assert edited(record) == [], "who wrote it was us"
    assert new not in json.dumps(result)


# -------------------------------------------------------------------------------------------------------- owned keys


def test_configure_brings_owned_keys_back_and_leaves_all_others(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    STEPS["setup"](spec, quiet)
    site.config |= {"openai.enable": True, "ui.enable_signup": False, "rag.top_k": 7}
    drift = STEPS["drift"](spec, quiet)
    assert drift == {
        "changed": False, "data": {"drift": [{"key": "openai.enable", "planned": False, "found": True}]},
    }  # fmt: skip
    assert STEPS["configure"](spec | {"dry": True}, quiet)["changed"] is True
    assert site.config["openai.enable"] is True
    assert STEPS["configure"](spec, quiet)["data"]["keys"] == drift["data"]["drift"]
    sent = [body["config"] for (_, path), body in zip(site.log, site.bodies, strict=True) if path.endswith("/import")]
    assert sent == [{"openai.enable": False}]
    assert (site.config["rag.top_k"], site.config["ui.watermark"]) == (7, "the owner's")
    assert STEPS["configure"](spec, quiet) == {"changed": False, "data": {"keys": []}}


def test_the_embedding_is_set_where_it_also_takes_effect(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    STEPS["setup"](spec, quiet)
    spec["values"] = {"rag.embedding_model": "better:latest", "rag.ollama.base_url": "http://127.0.0.1:2"}
    assert STEPS["configure"](spec, quiet)["changed"] is True
    assert site.loaded["RAG_EMBEDDING_MODEL"] == "better:latest"
    assert site.loaded["ollama_config"] == {"url": "http://127.0.0.1:2", "key": "k"}
    assert site.loaded["RAG_EMBEDDING_BATCH_SIZE"] == 4
    assert ("POST", "/api/v1/configs/import") not in site.log


def test_a_key_that_does_not_take_its_value_is_an_error(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    STEPS["setup"](spec, quiet)
    site.stubborn = {"openai.enable"}
    with pytest.raises(StepError, match=r"openai\.enable"):
        STEPS["configure"](spec, quiet)


def test_a_dry_run_before_the_first_start_says_that_there_is_something_to_do(spec: dict[str, Any]) -> None:
    assert STEPS["configure"](spec | {"dry": True, "url": "http://127.0.0.1:9"}, quiet)["changed"] is True


# ------------------------------------------------------------------------------------------------------------ probes


def test_a_stranger_is_refused_everywhere(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    data = STEPS["refuses"](spec, quiet)["data"]
    assert (data["open"], data["signup"], data["asked"]) == ([], False, 20)


def test_signup_that_is_open_is_not_tried(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    """It would leave an account behind."""
    site.signup = True
    assert STEPS["refuses"](spec, quiet)["data"]["signup"] is True
    assert ("POST", "/api/v1/auths/signup") not in site.log


def test_models_are_listed_with_their_limits(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    STEPS["setup"](spec, quiet)
    site.config["models.default_params"] = {"num_ctx": 1024}
    assert STEPS["models"](spec, quiet)["data"] == {
        "models": ["embed:latest", "small:1b"], "num_ctx": {"small:1b": 2048, "*": 1024},
    }  # fmt: skip


def test_a_chat_is_measured(spec: dict[str, Any]) -> None:
    STEPS["setup"](spec, quiet)
    data = STEPS["chat"](spec, quiet)["data"]
    assert {key: data[key] for key in ("model", "characters", "prompt_tokens", "answer_tokens")} == {
        "model": "small:1b", "characters": 6, "prompt_tokens": 3, "answer_tokens": 2,
    }  # fmt: skip


def test_a_document_is_found_and_taken_away(site: FakeOpenWebUI, spec: dict[str, Any]) -> None:
    STEPS["setup"](spec, quiet)
    data = STEPS["document"](spec, quiet)["data"]
    assert (data["before"], data["during"], data["after"], data["left"]) == (0, 2, 0, [])
    assert data["token_found"] is True
    assert (site.files, site.knowledge) == (set(), {})


@pytest.mark.parametrize(("what", "why"), [("chat", "404"), ("processing", "not a document")])
def test_a_document_is_taken_away_also_when_the_rest_fails(
    site: FakeOpenWebUI, spec: dict[str, Any], what: str, why: str
) -> None:
    STEPS["setup"](spec, quiet)
    site.chat_fails, site.processing = what == "chat", "failed" if what == "processing" else "completed"
    with pytest.raises(StepError, match=why):
        STEPS["document"](spec, quiet)
    assert (site.files, site.knowledge) == (set(), {})


def test_what_cannot_be_taken_away_is_named(
    site: FakeOpenWebUI, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    STEPS["setup"](spec, quiet)
    site.undeletable = True
    monkeypatch.setattr("ownstack.runner.open_webui_probe.time.sleep", lambda seconds: None)
    monkeypatch.setattr("ownstack.runner.open_webui_probe._settled", lambda spec, wanted: site.points())
    data = STEPS["document"](spec, quiet)["data"]
    assert data["left"] == ["file f", "knowledge kb"]
    assert data["after"] == 2
