"""The runner's n8n steps: what is made once, what is never put back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import n8n, n8n_content
from ownstack.runner.core import StepError, read_json
from tests.fixtures.n8n_server import FakeN8n, serve

KEY = "k" * 43
OTHER = "o" * 43


@pytest.fixture
def server() -> Iterator[FakeN8n]:
    with serve() as fake:
        yield fake


@pytest.fixture
def spec(tmp_path: Path, server: FakeN8n) -> dict[str, Any]:
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)
    for name, value in (("n8n_encryption_key", KEY), ("n8n_owner_password", "Abcdefgh1"), ("qdrant_api_key", "qk")):
        (folder / name).write_text(value + "\n")
    return {
        "url": server.url, "secrets_dir": str(folder), "data": str(tmp_path / "data"), "email": "owner@ownstack.local",
        "first_name": "Box", "last_name": "Owner", "timeout": 5, "state": str(tmp_path / "record.json"),
        "engine_url": "http://127.0.0.1:11434", "qdrant_url": "http://127.0.0.1:6333", "model": "small",
    }  # fmt: skip


def run(step: Any, spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = step({**spec, **changes}, lambda event: None)
    return result


def data_folder(spec: dict[str, Any], key: str | None, database: bool = True) -> None:
    folder = Path(spec["data"]) / ".n8n"
    folder.mkdir(parents=True)
    if key is not None:
        (folder / "config").write_text(json.dumps({"encryptionKey": key}))
    if database:
        (folder / "database.sqlite").touch()


# ------------------------------------------------------------------------------------------------------------ the key


def test_preflight_passes_without_data_and_with_the_right_key(spec: dict[str, Any]) -> None:
    print_of_key = n8n.fingerprint(KEY)
    fresh = run(n8n.preflight, spec)
    assert fresh == {"changed": False, "data": {"key_fingerprint": print_of_key, "data": False}}
    data_folder(spec, KEY)
    assert run(n8n.preflight, spec)["data"] == {"key_fingerprint": print_of_key, "data": True}
    assert len(print_of_key) == 16
    assert KEY not in print_of_key


@pytest.mark.parametrize("recorded", [False, True])
def test_preflight_refuses_another_key_and_never_shows_one(spec: dict[str, Any], recorded: bool) -> None:
    data_folder(spec, None if recorded else OTHER)
    if recorded:  # n8n's own copy is gone; what it was set up with is on record
        Path(spec["state"]).write_text(json.dumps({"key_fingerprint": n8n.fingerprint(OTHER)}))
    with pytest.raises(StepError) as error:
        run(n8n.preflight, spec)
    assert error.value.code == "n8n-key"
    assert n8n.fingerprint(OTHER) in error.value.message
    assert "n8n_encryption_key" in error.value.hint
    for secret in (KEY, OTHER):
        assert secret not in error.value.message + error.value.hint


def test_preflight_says_where_a_lost_key_still_is(spec: dict[str, Any]) -> None:
    """A new one, which `up` would make, could decrypt nothing."""
    data_folder(spec, KEY)
    (Path(spec["secrets_dir"]) / "n8n_encryption_key").unlink()
    with pytest.raises(StepError, match="n8n_encryption_key is gone") as error:
        run(n8n.preflight, spec)
    assert error.value.code == "n8n-key"
    assert f"{spec['data']}/.n8n/config" in error.value.hint


def test_preflight_without_key_and_without_data(spec: dict[str, Any]) -> None:
    (Path(spec["secrets_dir"]) / "n8n_encryption_key").unlink()
    with pytest.raises(StepError) as error:
        run(n8n.preflight, spec)
    assert error.value.code == "secret-missing"


def test_preflight_refuses_damaged_settings_of_n8n(spec: dict[str, Any]) -> None:
    data_folder(spec, None)
    (Path(spec["data"]) / ".n8n" / "config").write_text("{")
    with pytest.raises(StepError, match="cannot be read"):
        run(n8n.preflight, spec)


# --------------------------------------------------------------------------------------------------------- the owner


def test_setup_makes_owner_and_key_once(spec: dict[str, Any], server: FakeN8n) -> None:
    assert run(n8n.setup, spec, dry=True)["changed"] is True
    assert not server.keys
    first = run(n8n.setup, spec)
    assert first == {"changed": True, "data": {"owner_made": True, "key_made": True}}
    assert server.owner == {
        "email": "owner@ownstack.local",
        "firstName": "Box",
        "lastName": "Owner",
        "password": "Abcdefgh1",
    }
    stored = Path(spec["secrets_dir"]) / "n8n_api_key"
    assert stored.stat().st_mode & 0o777 == 0o600
    assert [key["label"] for key in server.keys.values()] == ["ownstack"]
    assert run(n8n.setup, spec, dry=True)["changed"] is False
    assert run(n8n.setup, spec)["changed"] is False
    assert len(server.keys) == 1
    assert read_json(spec["state"]) == {"key_fingerprint": n8n.fingerprint(KEY)}


def test_the_owners_new_password_is_left_alone_while_the_key_works(spec: dict[str, Any], server: FakeN8n) -> None:
    run(n8n.setup, spec)
    assert server.owner is not None
    server.owner["password"] = "Chosen-by-the-owner-1"
    before = list(server.log)
    assert run(n8n.setup, spec)["changed"] is False
    assert server.owner["password"] == "Chosen-by-the-owner-1"
    assert ("POST", "/rest/login") not in server.log[len(before) :]


def test_a_lost_key_is_made_again_with_the_first_password(spec: dict[str, Any], server: FakeN8n) -> None:
    run(n8n.setup, spec)
    server.keys["theirs"] = {"label": "my own", "scopes": [], "rawApiKey": "x"}
    (Path(spec["secrets_dir"]) / "n8n_api_key").unlink()
    assert run(n8n.setup, spec)["data"] == {"owner_made": False, "key_made": True}
    assert sorted(key["label"] for key in server.keys.values()) == ["my own", "ownstack"]


def test_a_lost_key_and_another_password_is_a_clear_refusal(spec: dict[str, Any], server: FakeN8n) -> None:
    run(n8n.setup, spec)
    assert server.owner is not None
    server.owner["password"] = "Chosen-by-the-owner-1"
    (Path(spec["secrets_dir"]) / "n8n_api_key").unlink()
    with pytest.raises(StepError) as error:
        run(n8n.setup, spec)
    assert error.value.code == "n8n-signin"
    assert "ownstack password --reset n8n" in error.value.hint
    assert "Abcdefgh1" not in error.value.message + error.value.hint


# ----------------------------------------------------------------------------------------- credentials and the demo


@pytest.fixture
def ready(spec: dict[str, Any], server: FakeN8n) -> dict[str, Any]:
    run(n8n.setup, spec)
    return spec


def words(spec: dict[str, Any], **changes: Any) -> dict[str, str]:
    stands: dict[str, str] = run(n8n_content.content, spec, **changes)["data"]["stands"]
    return stands


def test_content_is_made_once(ready: dict[str, Any], server: FakeN8n) -> None:
    assert run(n8n_content.content, ready, dry=True)["changed"] is True
    assert (server.workflows, server.credentials) == ({}, {})
    assert words(ready) == {"ollama": "made", "qdrant": "made", "demo": "made"}
    again = run(n8n_content.content, ready)
    assert (again["changed"], again["data"]["stands"]) == (False, {"ollama": "kept", "qdrant": "kept", "demo": "kept"})
    assert run(n8n_content.content, ready, dry=True)["changed"] is False
    (demo,) = server.workflows.values()
    assert demo["active"] is True
    (hook,) = [node for node in demo["nodes"] if node["type"].endswith(".webhook")]
    assert hook["parameters"]["options"] == {"allowedOrigins": server.url}
    assert server.credentials["ownstackQdrant"]["data"] == {"qdrantUrl": "http://127.0.0.1:6333", "apiKey": "qk"}
    assert "qk" not in Path(ready["state"]).read_text()


def test_what_the_owner_deletes_stays_deleted(ready: dict[str, Any], server: FakeN8n) -> None:
    words(ready)
    server.workflows.clear()
    server.credentials.pop("ownstackQdrant")
    assert words(ready, model="large") == {"ollama": "kept", "qdrant": "removed", "demo": "removed"}
    assert server.workflows == {}
    assert list(server.credentials) == ["ownstackOllama"]
    assert run(n8n_content.demo, ready)["data"] == {"stands": "removed"}


def test_what_the_owner_edits_stays_edited(ready: dict[str, Any], server: FakeN8n) -> None:
    words(ready)
    (demo,) = server.workflows.values()
    demo.update(name="mine now", versionId="theirs")
    server.credentials["ownstackOllama"].update(data={"baseUrl": "http://theirs"}, updatedAt="later")
    stands = words(ready, model="large", engine_url="http://127.0.0.1:9")
    assert stands == {"ollama": "yours", "qdrant": "kept", "demo": "yours"}
    assert demo["name"] == "mine now"
    assert server.credentials["ownstackOllama"]["data"] == {"baseUrl": "http://theirs"}


def test_untouched_content_follows_the_plan(ready: dict[str, Any], server: FakeN8n) -> None:
    words(ready)
    stands = words(ready, model="large", engine_url="http://127.0.0.1:9")
    assert stands == {"ollama": "updated", "qdrant": "kept", "demo": "updated"}
    (demo,) = server.workflows.values()
    assert [n["parameters"]["model"] for n in demo["nodes"] if n["name"] == "Model"] == ["large"]
    assert demo["active"] is True
    assert words(ready, model="large", engine_url="http://127.0.0.1:9")["demo"] == "kept"


def test_a_demo_that_was_switched_off_is_not_switched_on(ready: dict[str, Any], server: FakeN8n) -> None:
    words(ready)
    (demo,) = server.workflows.values()
    demo["active"] = False
    assert words(ready, model="large")["demo"] == "updated"
    assert demo["active"] is False
    assert run(n8n_content.demo, ready, model="large")["data"] == {"stands": "as made", "active": False}


def test_a_lost_record_adopts_what_stands_and_changes_nothing(ready: dict[str, Any], server: FakeN8n) -> None:
    words(ready)
    Path(ready["state"]).unlink()
    before = json.dumps([server.workflows, server.credentials], sort_keys=True)
    assert words(ready, model="large") == {"ollama": "yours", "qdrant": "yours", "demo": "yours"}
    assert json.dumps([server.workflows, server.credentials], sort_keys=True) == before


def test_a_demo_whose_publishing_failed_is_published_next_time(ready: dict[str, Any], server: FakeN8n) -> None:
    words_before = server.refuse
    server.refuse = {("POST", "/api/v1/workflows/"): 500}
    with pytest.raises(StepError, match="refused POST"):
        words(ready)
    server.refuse = words_before
    assert read_json(ready["state"])["demo"]["published"] is False
    assert words(ready)["demo"] == "updated"
    (demo,) = server.workflows.values()
    assert demo["active"] is True


def test_without_qdrant_there_is_no_credential_for_it(ready: dict[str, Any], server: FakeN8n) -> None:
    assert words(ready, qdrant_url="") == {"ollama": "made", "demo": "made"}


# ------------------------------------------------------------------------------------------------------------ verify


def test_ask_goes_through_its_own_workflow_and_leaves_nothing(ready: dict[str, Any], server: FakeN8n) -> None:
    words(ready)
    server.workflows.clear()  # the owner removed the demo: the check does not need it
    data = run(n8n_content.ask, ready)["data"]
    assert (data["status"], data["answer"], data["stored_credential"]) == (
        200,
        {"answer": "Paris", "model": "small"},
        True,
    )
    assert server.workflows == {}
    assert sorted(server.credentials) == ["ownstackOllama", "ownstackQdrant"]


def test_ask_lends_itself_a_credential_where_the_owner_removed_it(ready: dict[str, Any], server: FakeN8n) -> None:
    data = run(n8n_content.ask, ready)["data"]
    assert (data["status"], data["stored_credential"]) == (200, False)
    assert (server.workflows, server.credentials) == ({}, {})


def test_ask_cleans_up_when_the_model_fails_and_after_an_interrupted_check(
    ready: dict[str, Any], server: FakeN8n
) -> None:
    words(ready)
    kept = dict(server.workflows)
    server.model_answers = False
    server.workflows["old"] = {
        **n8n_content.workflow("ownstack verify 1", "x", "m", "c", "o"),
        "id": "old",
        "active": True,
    }
    assert run(n8n_content.ask, ready)["data"]["status"] == 500
    assert list(server.workflows) == list(kept)


def test_ask_says_when_something_had_to_be_left_behind(
    ready: dict[str, Any], server: FakeN8n, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refuse = {("DELETE", "/api/v1/workflows/"): 500}
    with pytest.raises(StepError) as error:
        run(n8n_content.ask, ready)
    assert error.value.code == "n8n-left-over"


def test_the_demo_says_how_it_stands(ready: dict[str, Any], server: FakeN8n) -> None:
    assert run(n8n_content.demo, ready)["data"] == {"stands": "never made"}
    words(ready)
    data = run(n8n_content.demo, ready)["data"]
    assert (data["stands"], data["active"], data["status"]) == ("as made", True, 200)
    (demo,) = server.workflows.values()
    demo["versionId"] = "theirs"
    assert run(n8n_content.demo, ready)["data"]["stands"] == "edited"


def test_of_the_demos_runs_the_checks_own_alone_is_deleted(ready: dict[str, Any], server: FakeN8n) -> None:
    words(ready)
    server.webhook("ask", {"question": "the owner's"})
    owners = dict(server.executions)
    assert run(n8n_content.demo, ready)["data"]["status"] == 200
    assert server.executions == owners
    server.model_answers = False
    assert run(n8n_content.demo, ready)["data"]["status"] == 500


# ---------------------------------------------------------------------------------------------------- a new password


@pytest.fixture
def reset(ready: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """With a program in Node's place that notes what it is given and answers what `answer` holds."""
    program = tmp_path / "node" / "bin" / "node"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\ncat > "{tmp_path}/stdin"\nprintf "%s\\n" "$@" > "{tmp_path}/argv"\ncat "{tmp_path}/answer"\n'
        f'[ ! -e "{tmp_path}/fail" ]\n'
    )
    program.chmod(0o755)
    (tmp_path / "answer").write_text('{"email": "owner@ownstack.local", "mfa": false}')
    return {**ready, "node": str(tmp_path / "node"), "n8n": str(tmp_path), "user": ""}


def first_password(spec: dict[str, Any]) -> str:
    return (Path(spec["secrets_dir"]) / "n8n_owner_password").read_text().strip()


def test_a_new_password_travels_on_stdin_only(reset: dict[str, Any], tmp_path: Path) -> None:
    data = run(n8n.password_reset, reset)["data"]
    new = first_password(reset)
    assert data == {"email": "owner@ownstack.local", "second_factor": False}
    assert (len(new), new != "Abcdefgh1") == (24, True)
    assert (tmp_path / "stdin").read_text() == new
    assert new not in (tmp_path / "argv").read_text()
    assert (Path(reset["secrets_dir"]) / "n8n_owner_password").stat().st_mode & 0o777 == 0o600


def test_a_failed_change_keeps_the_password_that_is_stored(reset: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(StepError, match="was not changed"):
        run(n8n.password_reset, reset)
    assert first_password(reset) == "Abcdefgh1"
    (tmp_path / "answer").write_text('{"owners": 0}')
    with pytest.raises(StepError, match="no owner yet"):
        run(n8n.password_reset, reset)


def test_a_reset_gives_the_kit_its_lost_key_too(reset: dict[str, Any], server: FakeN8n, tmp_path: Path) -> None:
    (Path(reset["secrets_dir"]) / "n8n_api_key").unlink()
    owner = server.owner
    assert owner is not None

    # the change happens in n8n's database, of which the server under test knows nothing
    def changed(spec: dict[str, Any], password: str) -> dict[str, Any]:
        owner["password"] = password
        return {"email": owner["email"], "mfa": False}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(n8n, "_set_password", changed)
        run(n8n.password_reset, reset)
    assert run(n8n.setup, reset)["changed"] is False
    assert [key["label"] for key in server.keys.values()] == ["ownstack"]
