"""A box of older versions with an account's data, and everything that it holds as text that can be compared."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ownstack.kit import activate
from ownstack.plan import Plan
from tests.e2e.test_backup import account_data, found_again, qdrant
from tests.e2e.test_backup import works as answers
from tests.e2e.test_open_webui import sign_in
from tests.hosts import Host, Network, Options, older, watching
from tests.hosts.kit import Ownstack, wait_ready

activate()

State = dict[str, Any]
ACCOUNTS = ("open_webui/webui.db", "n8n/.n8n/database.sqlite")
# every table of both databases with its number of rows and their hash, the schema as a table of its own, and what is
# people's of the accounts, whose table services write to at each sign-in
ALL = """
import hashlib, json, sqlite3, sys
ACCOUNTS = {"webui.db": "id, name, email, role", "database.sqlite": "id, email, password"}
found = {}
def told(rows):
    rows = sorted(map(repr, rows))
    return [len(rows), hashlib.sha256("\\n".join(rows).encode()).hexdigest()]
for file in sys.argv[1:]:
    database = sqlite3.connect(f"file:/var/lib/ownstack/{file}?mode=ro", uri=True)
    database.text_factory = bytes
    assert database.execute("PRAGMA integrity_check").fetchone() == (b"ok",)
    found[f"{file}:schema"] = told(database.execute("SELECT type, name, sql FROM sqlite_master"))
    columns = ACCOUNTS[file.rpartition("/")[2]]
    found[f"{file}:accounts"] = told(database.execute(f"SELECT {columns} FROM user"))
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        name = name.decode()
        found[f"{file}:{name}"] = told(database.execute(f'SELECT * FROM "{name}"'))
print(json.dumps(found))
"""
# what the services write by themselves whenever they start, or when somebody signs in, calls a workflow or asks n8n
# with a key, as `verify` does; everything else must be equal after a rollback
MOVING = {
    "open_webui/webui.db:user", "open_webui/webui.db:config", "open_webui/webui.db:api_key",
    "n8n/.n8n/database.sqlite:settings", "n8n/.n8n/database.sqlite:insights_raw",
    "n8n/.n8n/database.sqlite:insights_metadata", "n8n/.n8n/database.sqlite:insights_by_period",
    "n8n/.n8n/database.sqlite:sqlite_sequence", "n8n/.n8n/database.sqlite:user",
    "n8n/.n8n/database.sqlite:user_api_keys", "n8n/.n8n/database.sqlite:workflow_statistics",
    "n8n/.n8n/database.sqlite:activity_event", "n8n/.n8n/database.sqlite:workflow_publication_outbox",
}  # fmt: skip
# where every call of a workflow leaves something, one of a gate that failed too: none may be missing
RUNS = {"n8n/.n8n/database.sqlite:execution_entity", "n8n/.n8n/database.sqlite:execution_data"}


@dataclass(frozen=True)
class Older:
    """A frozen host of older versions. `data`: what an account has on it; `state`: all that it held."""

    layer: Path
    programs: tuple[Path, ...]
    kit: Path
    data: dict[str, Any]
    state: State
    secrets: dict[str, str] = field(repr=False)  # a test that fails shows its arguments

    @contextlib.contextmanager
    def clone(self, network: Network, name: str, *newer: Path) -> Iterator[Host]:
        """The same host once more, ready; with the programs of `newer` layers, which need no installation then."""
        options = Options(lower=(self.layer,), programs=(*newer, *self.programs), redirect=True)
        with Host(network, name, options) as host:
            host.boot()
            wait_ready(host)
            yield host


def plan_of(box: Host) -> Plan:
    return Plan.model_validate(json.loads(box.output("cat /var/lib/ownstack/manifest.json"))["plan"])


def versions(box: Host) -> dict[str, str]:
    """What the services themselves say that they are."""
    asked = {
        "open_webui": "curl -s http://127.0.0.1:8080/api/version",
        "ollama": "curl -s http://127.0.0.1:11434/api/version",
        "n8n": "cat /opt/ownstack/n8n/current/node_modules/n8n/package.json",
        "qdrant": "curl -s http://127.0.0.1:6333/",
    }
    return {name: str(json.loads(box.output(command))["version"]) for name, command in asked.items()}


def state(box: Host, plan: Plan) -> State:
    """All that a rollback must put back: tables, schemas, vectors with their contents, uploads, models."""
    found: State = json.loads(box.run(f"python3 - {' '.join(ACCOUNTS)}", data=ALL).stdout)
    for row in qdrant(box, plan, "GET", "/collections")["collections"]:
        asked = {"limit": 10000, "with_payload": True, "with_vector": True}
        points = qdrant(box, plan, "POST", f"/collections/{row['name']}/points/scroll", asked)["points"]
        text = json.dumps(sorted(points, key=lambda point: str(point["id"])), sort_keys=True)
        found[f"qdrant:{row['name']}"] = [len(points), hashlib.sha256(text.encode()).hexdigest()]
    found["uploads"] = box.output("cd /var/lib/ownstack/open_webui/uploads && find . -type f | sort | xargs sha256sum")
    models = json.loads(box.output(f"curl -s {plan.engine_url}/api/tags"))["models"]
    found["models"] = sorted([model["name"], model["digest"]] for model in models)
    found["key"] = box.output("sha256sum < /etc/ownstack/secrets/n8n_encryption_key")
    return found


def differing(before: State, after: State) -> set[str]:
    """What is not as it was, apart from what services write by themselves."""
    found = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - MOVING
    more = {name for name in RUNS & before.keys() & after.keys() if after[name][0] >= before[name][0]}
    return found - more


def works(box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any]) -> list[str]:
    """What an account misses: sign-in, the document that is found, the workflow with its credential.

    n8n keeps that run of the workflow: what is compared later begins with a state from after it.
    """
    missing = []
    status, token = sign_in(box, plan, *ownstack.first_password("open_webui"))
    if status != 200:
        missing.append("sign-in")
    if not found_again(box, plan, ownstack, data["base"], token):
        missing.append("document")
    if not answers(box, plan, True):
        missing.append("webhook")
    return missing


def newer_programs(kit: Path, request: pytest.FixtureRequest) -> tuple[Path, ...]:
    """Layers with today's larger programs, so that an upgrade need not install them; of a fresh box at first."""
    found = []
    for name in older.HEAVY:
        role = kit / "roles" / name
        layer = older.kept(role)
        found.append(layer if layer.exists() else older.keep(role, request.getfixturevalue("debian12").layer))
    return tuple(found)


def make(network: Network, ownstack_of: Any, kit: Path) -> Older:
    """Install the older box, put an account's data in it, freeze it. `ownstack_of`: Mirror.ownstack."""
    roles = [kit / "roles" / name for name in older.HEAVY]
    programs = tuple(older.kept(role) for role in roles if older.kept(role).exists())
    host = Host(network, "older", Options(programs=programs))
    try:
        host.boot()
        ownstack: Ownstack = replace(ownstack_of(host), variables={"OWNSTACK_KIT": str(kit)})
        done = ownstack.json("up", "--yes", "--no-verify")
        print(f"the older box in {done['seconds']} s")
        found = watching.secrets(host)
        plan = plan_of(host)
        data = account_data(host, plan, ownstack)
        assert works(host, plan, ownstack, data) == []
        assert {**versions(host), **older.VERSIONS} == versions(host)
        ownstack.json("verify")  # what decides on an upgrade has to work with these versions too
        held = state(host, plan)
        layer = host.freeze()
    except BaseException:
        host.destroy()
        raise
    for role in roles:
        older.keep(role, layer)
    return Older(layer, programs, kit, data, held, found)
