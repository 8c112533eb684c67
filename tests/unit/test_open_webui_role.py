"""The open_webui role's data and pure functions: locks, owned keys, environment, service, settings."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ownstack.data import load_data
from ownstack.kit import activate, kit_root
from ownstack.plan import ChosenArtifact, HostIdentity, Layout, ModelChoice, Plan, RolePlan
from ownstack.runner.box import read_environment

activate()
from roles import open_webui  # noqa: E402
from roles.open_webui import checks, owned, tasks  # noqa: E402
from roles.open_webui.settings import Settings  # noqa: E402
from tests.unit import machines  # noqa: E402

ROLE = kit_root() / "roles" / "open_webui"
CHAT = ModelChoice(use="chat", name="q", tag="qwen:8b", source="registry", context=16384)
BOOTSTRAP = ModelChoice(use="bootstrap", name="s", tag="small:1b", source="artifact", context=8192)
EMBEDDING = ModelChoice(use="embedding", name="e", tag="embed", source="artifact", dimension=384)
TASK = ModelChoice(use="task", name="t", tag="tiny:1b", source="registry")


def variant() -> dict[str, Any]:
    (artifact,) = load_data(("open_webui",), fit=False).artifacts["open_webui"]
    (row,) = artifact["variant"]
    return dict(row)


def a_plan(network: str = "closed", **changes: Any) -> Plan:
    settings = Settings(**changes.pop("settings", {})).model_dump(mode="json")
    row = variant()
    artifact = ChosenArtifact(
        name="open-webui", variant=row["id"], version=row["version"], platform="linux-x86_64", kind="file",
        way="carry", source="pypi", sha256=row["sha256"], details=row,
    )  # fmt: skip
    part = RolePlan.model_validate(
        {
            "name": "open_webui", "settings": settings, "ports": {"port": settings["port"]}, "network": network,
            "artifacts": (artifact,),
        }
    )  # fmt: skip
    values: dict[str, Any] = {
        "kit_version": "0", "host": HostIdentity(machine_id_hash="m", hostname="h", target="local"),
        "hardware_fingerprint": "f", "state_hash": "s", "layout": Layout(), "manager": "systemd",
        "platform": "linux-x86_64", "profile": "cpu", "models": (CHAT, BOOTSTRAP, EMBEDDING),
        "roles": (RolePlan(name="qdrant", ports={"port": 6399}), part),
    }  # fmt: skip
    return Plan(**(values | changes))


def environment(plan: Plan, tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "env"
    path.write_text(open_webui.files(plan)[0].content)
    return read_environment(str(path))


# ------------------------------------------------------------------------------------------------------------- locks


def locked(name: str) -> dict[str, list[str]]:
    """package -> its lines of hashes."""
    found: dict[str, list[str]] = {}
    last = ""
    for line in (ROLE / name).read_text().splitlines():
        if match := re.match(r"([a-z0-9][a-z0-9._-]*)(?:\[[^\]]*\])?==(\S+)", line):
            last = match[1]
            found.setdefault(last, [])
        elif line.strip().startswith("--hash=sha256:"):
            found[last].append(line.strip())
        else:
            assert line.startswith("#"), f"{name} holds a line of another kind: {line}"
    return found


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-full.lock"])
def test_every_locked_package_has_hashes_and_no_address(name: str) -> None:
    packages = locked(name)
    assert len(packages) > 150
    assert [package for package, hashes in packages.items() if not hashes] == []
    assert re.findall(r"https?://|--index|--find-links", (ROLE / name).read_text()) == []


@pytest.mark.parametrize(
    ("overrides", "name"), [("overrides.txt", "requirements.lock"), ("overrides-full.txt", "requirements-full.lock")]
)
def test_what_is_left_out_is_in_no_lock(overrides: str, name: str) -> None:
    left_out = re.findall(r'(?m)^(\S+) ; sys_platform == "never"$', (ROLE / overrides).read_text())
    assert "torch" in left_out
    assert sorted(set(left_out) & set(locked(name))) == []


def test_the_full_lock_adds_to_the_other_and_takes_nothing_away() -> None:
    small, full = locked("requirements.lock"), locked("requirements-full.lock")
    assert set(small) < set(full)
    assert {"faster-whisper", "rapidocr", "chromadb"} <= set(full) - set(small)


def test_artifacts_name_the_locks_as_they_are() -> None:
    row = variant()
    for kind in ("", "full_"):
        text = (ROLE / row[f"{kind}lock"]).read_bytes()
        assert row[f"{kind}sha256"] == hashlib.sha256(text).hexdigest()
        assert f"\nopen-webui=={row['version']} ;" in text.decode()


def test_the_readers_of_office_files_are_locked() -> None:
    assert {"pypdf", "docx2txt", "openpyxl", "pandas", "python-pptx", "qdrant-client"} <= set(
        locked("requirements.lock")
    )


# ----------------------------------------------------------------------------------------------------------- install


def test_a_box_made_from_an_earlier_lock_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(tasks, "python_env", lambda **spec: made.append(spec))
    tasks.install(a_plan())
    tasks.install(a_plan(settings={"full": True}))
    assert [spec["lock"].splitlines()[0].split()[5] for spec in made] == ["requirements.in"] * 2
    assert len({spec["lock"] for spec in made}) == 2
    earlier = a_plan()
    details = {**earlier.role("open_webui").artifacts[0].details, "sha256": "0" * 64}
    artifact = earlier.role("open_webui").artifacts[0].model_copy(update={"details": details})
    part = earlier.role("open_webui").model_copy(update={"artifacts": (artifact,)})
    tasks.install(earlier.model_copy(update={"roles": (earlier.roles[0], part)}))
    assert len(made) == 2


# -------------------------------------------------------------------------------------------------------- owned keys


def test_owned_keys_are_planned_and_each_has_a_reason() -> None:
    assert set(owned.planned(a_plan())) == set(owned.KEYS)
    assert all(len(reason) > 10 for reason in owned.KEYS.values())


def test_owned_values_follow_the_plan() -> None:
    values = owned.values(a_plan(engine_url="http://10.0.0.7:11434"))
    assert values["ollama.base_urls"] == ["http://10.0.0.7:11434"]
    assert values["rag.ollama.base_url"] == "http://10.0.0.7:11434"
    assert values["rag.embedding_model"] == "embed:latest"
    assert values["ui.default_models"] == "qwen:8b"
    assert owned.values(a_plan(), model="small:1b")["ui.default_models"] == "small:1b"
    assert owned.values(a_plan(models=(BOOTSTRAP, EMBEDDING)))["ui.default_models"] == "small:1b"


def test_a_key_that_the_user_took_over_is_neither_set_nor_watched() -> None:
    plan = a_plan(settings={"user_owned": ["ui.default_models", "code_execution.enable"]})
    assert set(owned.KEYS) - set(owned.values(plan)) == {"ui.default_models", "code_execution.enable"}
    assert open_webui.configure_spec(plan)["values"] == owned.values(plan)


@pytest.mark.parametrize(
    ("engine", "models", "wish", "on"),
    [
        ("cpu", (CHAT, EMBEDDING), "auto", False),
        ("cpu", (CHAT, EMBEDDING, TASK), "auto", True),
        ("cuda", (CHAT, EMBEDDING), "auto", True),
        ("cuda", (BOOTSTRAP, EMBEDDING), "auto", False),
        ("cpu", (CHAT, EMBEDDING), "on", True),
        ("cuda", (CHAT, EMBEDDING, TASK), "off", False),
    ],
)
def test_background_tasks_run_where_they_do_not_delay_the_answer(
    engine: str, models: tuple[ModelChoice, ...], wish: str, on: bool
) -> None:
    values = owned.planned(a_plan(engine=engine, models=models, settings={"background_tasks": wish}))
    names = ("task.title.enable", "task.tags.enable", "task.follow_up.enable", "task.query.retrieval.enable")
    assert {values[name] for name in names} == {on}
    assert values["task.model.default"] == ("tiny:1b" if TASK in models else "")


# ------------------------------------------------------------------------------------------------------- environment


def test_the_first_start_has_the_owned_values_already(tmp_path: Path) -> None:
    """Otherwise the page would stand open, or ask a cloud, until it is configured."""
    found = environment(a_plan(), tmp_path)
    assert {
        "ENABLE_SIGNUP": "False", "ENABLE_OPENAI_API": "False", "OLLAMA_BASE_URL": "http://127.0.0.1:11434",
        "RAG_EMBEDDING_ENGINE": "ollama", "RAG_EMBEDDING_MODEL": "embed:latest", "DEFAULT_MODELS": "qwen:8b",
        "ENABLE_TITLE_GENERATION": "False", "VECTOR_DB": "qdrant", "QDRANT_URI": "http://127.0.0.1:6399",
        "OFFLINE_MODE": "True", "ENABLE_API_KEYS": "True", "ENABLE_PLUGINS": "False",
    }.items() <= found.items()  # fmt: skip
    assert "ENABLE_PERSISTENT_CONFIG" not in found, "what a person sets in the web page must survive"


def test_the_environment_file_holds_marks_and_no_secret() -> None:
    env, serve = open_webui.files(a_plan())
    marks = set(re.findall(r"@@secret:([a-z_]+)@@", env.content))
    assert marks == {"open_webui_secret_key", "open_webui_admin_password", "qdrant_api_key"}
    assert (env.mode, env.secret, serve.secret) == ("0600", True, False)
    assert {secret.name for secret in open_webui.ROLE.secrets} >= marks - {"qdrant_api_key"}


@pytest.mark.parametrize("name", ['"; touch /tmp/x; "', "$(id) `id`", "{{ 7*7 }} %h %%", "O'Neill \\ Ümit"])
def test_hostile_names_stay_text(name: str, tmp_path: Path) -> None:
    assert environment(a_plan(settings={"admin_name": name}), tmp_path)["WEBUI_ADMIN_NAME"] == name


def test_a_closed_page_loads_nothing_foreign(tmp_path: Path) -> None:
    closed = environment(a_plan(), tmp_path)
    policy = dict(part.strip().split(" ", 1) for part in closed["CONTENT_SECURITY_POLICY"].split(";"))
    assert {word for rule in policy.values() for word in rule.split() if ":" in word} <= {"data:", "blob:"}
    assert "connect-src" not in closed["IFRAME_CSP"]
    assert closed["IFRAME_CSP"].startswith("default-src 'none';")
    opened = environment(a_plan(network="internet"), tmp_path)
    assert "img-src 'self' data: blob: http: https:" in opened["CONTENT_SECURITY_POLICY"]
    assert "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;" in opened["CONTENT_SECURITY_POLICY"]


# ----------------------------------------------------------------------------------------------- service and settings


def test_the_service_reads_its_secrets_from_a_file() -> None:
    (service,) = open_webui.services(a_plan())
    assert service.command == (
        "/opt/ownstack/open_webui/current/bin/python", "-P", "/etc/ownstack/open_webui/serve.py",
    )  # fmt: skip
    assert service.environment_files == ("/etc/ownstack/open_webui/env",)
    assert set(service.requires) == {"/etc/ownstack/open_webui/env", "/etc/ownstack/open_webui/serve.py"}
    assert not service.jit
    assert open_webui.services(a_plan(settings={"full": True}))[0].jit
    assert (service.ports, service.ready_path, service.umask) == ((8080,), "/ready", "0077")


def test_the_account_code_runs_as_the_service_user() -> None:
    system = a_plan()
    about = open_webui.inside(system)
    assert about["user"] == system.account("open_webui") != ""
    assert open_webui.inside(a_plan(system=False))["user"] == ""
    assert [file["path"] for file in open_webui.password_spec(system)["files"]] == ["/etc/ownstack/open_webui/env"]


def test_same_plan_same_files() -> None:
    assert open_webui.files(a_plan()) == open_webui.files(a_plan())


def test_an_unknown_key_to_take_over_is_an_error_with_a_proposal() -> None:
    with pytest.raises(ValidationError, match=r"did you mean 'ui\.default_models'"):
        Settings(user_owned=("ui.default_model",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"admin_email": "no address"},
        {"admin_email": "a@b\nX=1"},
        {"admin_name": "a\nb"},
        {"hosts": ("a b",)},
        {"port": 80},
    ],
)
def test_malformed_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


# ------------------------------------------------------------------------------------------------------------ checks


class Target:
    """A verify context whose steps answer what the test says."""

    def __init__(self, plan: Plan, **answers: dict[str, Any]) -> None:
        self.plan, self.host, self.answers = plan, None, answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def step(self, name: str, **spec: Any) -> dict[str, Any]:
        self.asked.append((name, spec))
        return self.answers[name.partition(".")[2]]


CLOSED = {
    "open": [], "asked": 20, "signup": False, "onboarding": False, "foreign_host": 421, "foreign_origin": 403,
    "tunnel_origin": 101,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"open": ["GET /api/models"]}, "failed"),
        ({"onboarding": True}, "failed"),
        ({"foreign_host": 200}, "failed"),
        ({"foreign_origin": 101}, "failed"),
        ({"tunnel_origin": 403}, "failed"),
    ],
)
def test_the_check_of_refusals(change: dict[str, Any], status: str) -> None:
    assert checks.refuses(Target(a_plan(), refuses=CLOSED | change)).status == status


def test_signup_that_the_user_opened_is_amber_otherwise_it_fails() -> None:
    on = CLOSED | {"signup": True}
    assert checks.signup(Target(a_plan(), refuses=CLOSED)).status == "ok"
    assert checks.signup(Target(a_plan(), refuses=on)).status == "failed"
    mine = a_plan(settings={"user_owned": ["ui.enable_signup"]})
    assert checks.signup(Target(mine, refuses=on)).status == "amber"


def test_drift_is_amber_and_names_the_key() -> None:
    item = {"key": "openai.enable", "planned": False, "found": True}
    found = checks.drift(Target(a_plan(), drift={"drift": [item]}))
    assert found.status == "amber"
    assert "openai.enable" in found.measured
    assert checks.drift(Target(a_plan(), drift={"drift": []})).status == "ok"


def test_a_shorter_context_is_amber() -> None:
    def status(limits: dict[str, int]) -> str:
        return checks.context_length(Target(a_plan(), models={"models": [], "num_ctx": limits})).status

    assert status({}) == "ok"
    assert status({"qwen:8b": 16384}) == "ok"
    assert status({"qwen:8b": 2048}) == "amber"
    assert status({"*": 8192}) == "amber"
    assert status({"a model of the user's": 512}) == "ok"


@pytest.mark.parametrize(
    ("answer", "status"),
    [(200, "ok"), (403, "ok"), (429, "ok"), (None, "ok"), (500, "failed"), (400, "failed"), (0, "failed")],
)
def test_a_key_that_works_is_not_enough_somebody_has_to_be_able_to_sign_in(answer: int | None, status: str) -> None:
    assert checks.kit_account(Target(a_plan(), models=OFFERED, sign_in={"status": answer})).status == status


CHATTED = {"model": "qwen:8b", "characters": 5, "prompt_tokens": 3, "answer_tokens": 2, "seconds": 1.0}
OFFERED = {"models": ["embed:latest", "qwen:8b", "small:1b"], "num_ctx": {}}


@pytest.mark.parametrize("change", [{"characters": 0}, {"answer_tokens": 0}, {"prompt_tokens": 0}, {"model": "other"}])
def test_a_chat_without_substance_fails(change: dict[str, Any]) -> None:
    assert checks.chat(Target(a_plan(), models=OFFERED, chat=CHATTED)).status == "ok"
    assert checks.chat(Target(a_plan(), models=OFFERED, chat=CHATTED | change)).status == "failed"


def test_the_bootstrap_model_is_asked_until_the_planned_one_is_there() -> None:
    waiting = Target(a_plan(), models={"models": ["embed:latest", "small:1b"], "num_ctx": {}}, chat=CHATTED)
    checks.chat(waiting)
    assert waiting.asked[-1][1]["model"] == "small:1b"
    assert checks.models(waiting).status == "failed"


FOUND = {"before": 4, "during": 7, "after": 4, "left": [], "token_found": True, "sources": 1, "seconds": 2.0}


@pytest.mark.parametrize(
    "change", [{"during": 4}, {"token_found": False}, {"left": ["file x"]}, {"after": 7}, {"token_found": None}]
)
def test_a_document_that_is_not_found_or_not_removed_fails(change: dict[str, Any]) -> None:
    assert checks.document(Target(a_plan(), models=OFFERED, document=FOUND)).status == "ok"
    assert checks.document(Target(a_plan(), models=OFFERED, document=FOUND | change)).status == "failed"


def test_ids_are_stable_and_name_the_role() -> None:
    found = checks.checks(a_plan())
    assert [check.id for check in found] == [
        "open-webui-login-required", "open-webui-signup-off", "open-webui-version", "open-webui-account",
        "open-webui-settings", "open-webui-models", "open-webui-context", "open-webui-chat", "open-webui-document",
    ]  # fmt: skip
    assert {check.role for check in found} == {"open_webui"}
    assert all(check.hint for check in found)


@pytest.mark.parametrize("key", ["rag.embedding_engine", "rag.embedding_model"])
def test_texts_get_no_vectors_of_a_model_that_their_owner_does_not_use(key: str) -> None:
    plan = machines.plan()
    part = plan.role("open_webui")
    embedding = plan.model("embedding")
    assert embedding is not None
    assert open_webui.embedding(plan)["model"] == owned.tag(embedding.tag)
    theirs = part.model_copy(update={"settings": {**part.settings, "user_owned": [key]}})
    mine = plan.model_copy(update={"roles": tuple(theirs if one is part else one for one in plan.roles)})
    for spec in (
        open_webui.embedding(mine),
        open_webui.reindex_spec(mine, "old"),
        open_webui.vectors_spec(mine, "old"),
    ):
        assert spec["model"] == ""
