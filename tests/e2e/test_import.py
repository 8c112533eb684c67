"""What ran elsewhere moves in: an Open WebUI while it works, and an n8n with a key of its own, over SSH.

They are real: the box's own programs, started beside it with other folders, accounts and keys.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.kit import activate
from ownstack.plan import Plan
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.test_backup import dump
from tests.e2e.test_open_webui import sign_in, web
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack, own_vectors

activate()
from roles import n8n, open_webui  # noqa: E402

OWNER, WORD = "mara@example.org", "their-own-Word-1"
FRIEND = "jo@example.org"
KEY = "TheirKey/0123456789+abcdefghijklmnop="
START = f"""
set -e
mkdir -m 700 /srv/webui /srv/n8n /srv/secrets
cat > /srv/webui.env <<END
DATA_DIR=/srv/webui
STATIC_DIR=/srv/webui/static
HOME=/srv/webui
XDG_CACHE_HOME=/srv/webui/cache
FROM_INIT_PY=true
WEBUI_SECRET_KEY=theirs-alone
WEBUI_ADMIN_EMAIL={OWNER}
WEBUI_ADMIN_PASSWORD={WORD}
QDRANT_COLLECTION_PREFIX=theirs
END
cat > /srv/n8n.env <<END
N8N_USER_FOLDER=/srv/n8n
N8N_ENCRYPTION_KEY={KEY}
N8N_PORT=5690
N8N_RUNNERS_BROKER_PORT=5691
END
printf '%s' '{WORD}' > /srv/secrets/n8n_owner_password
printf '%s' '{KEY}' > /srv/secrets/n8n_encryption_key
opt=/opt/ownstack
run() {{ systemd-run -q --unit theirs-$1 -p EnvironmentFile=/etc/ownstack/$2/env -p EnvironmentFile=/srv/$1.env \\
    -p WorkingDirectory=/srv/$1 -- $3; }}
run webui open_webui "$opt/open_webui/current/bin/python -m uvicorn open_webui.main:app --host 127.0.0.1 --port 8090"
run n8n n8n "$opt/node/current/bin/node $opt/n8n/current/node_modules/n8n/bin/n8n start"
for at in 8090/ready 5690/healthz/readiness; do
  for i in $(seq 600); do curl -sf -o /dev/null http://127.0.0.1:$at && break; sleep 0.2; done
done
"""
# as another Open WebUI would be: its uploads lie in a container, its own embedding, no account of ours
FOREIGN = """
import sqlite3
work = sqlite3.connect("/srv/webui/webui.db", timeout=30)
work.execute("UPDATE file SET path = replace(path, '/srv/webui/', '/app/backend/data/')")
for key, value in {"rag.embedding_engine": '""', "rag.embedding_model": '"other/model"', "ui.enable_signup": "true",
                   "openai.enable": "true", "ui.banners": '[{"id": "mine"}]'}.items():
    work.execute("UPDATE config SET value = ? WHERE key = ?", (value, key))
work.commit()
assert work.execute("SELECT count(*) FROM config WHERE key = 'rag.embedding_engine'").fetchone() == (1,)
"""


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "import") as host:
        own_vectors(host)
        host.run(START)
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


@pytest.fixture(scope="module")
def plan(box: Host) -> Plan:
    return Plan.model_validate(json.loads(box.output("cat /var/lib/ownstack/manifest.json"))["plan"])


def elsewhere(plan: Plan) -> Plan:
    """The same services, as they run beside the box."""
    ports = {"open_webui": {"port": 8090}, "n8n": {"port": 5690, "broker_port": 5691}}
    roles = [part.model_copy(update={"ports": ports.get(part.name, part.ports)}) for part in plan.roles]
    return plan.model_copy(update={"roles": tuple(roles)})


def upload(box: Host, plan: Plan, token: str) -> dict[str, Any]:
    box.run("printf 'The word of the house is harbour-4711.' > /tmp/house.txt")
    sent = f"curl -sf -H 'authorization: Bearer {token}' -F file=@/tmp/house.txt"
    path = "/api/v1/files/?process=true&process_in_background=false"
    found: dict[str, Any] = json.loads(box.output(f"{sent} '{open_webui.url(plan)}{path}'"))
    return found


@pytest.fixture(scope="module")
def theirs(box: Host, plan: Plan) -> dict[str, Any]:
    """Accounts, a chat, a document in a knowledge collection."""
    there = elsewhere(plan)
    status, token = sign_in(box, there, OWNER, WORD)
    assert status == 200
    friend = {"email": FRIEND, "name": "Jo", "password": WORD, "role": "user"}
    assert web(box, there, "POST", "/api/v1/auths/add", friend, token)[0] == 200
    chat = {"chat": {"title": "the boat house", "models": [], "messages": [{"role": "user", "content": "Where?"}]}}
    _, made = web(box, there, "POST", "/api/v1/chats/new", chat, token)
    _, base = web(box, there, "POST", "/api/v1/knowledge/create", {"name": "house", "description": "kept"}, token)
    file = upload(box, there, token)
    add = f"/api/v1/knowledge/{base['id']}/file/add"
    assert web(box, there, "POST", add, {"file_id": file["id"]}, token)[0] == 200
    box.run("python3 -", data=FOREIGN)
    return {"chat": made["id"], "base": base["id"], "file": file["id"], "token": token}


def settings(box: Host, plan: Plan, token: str) -> dict[str, Any]:
    found: dict[str, Any] = web(box, plan, "GET", "/api/v1/configs/export", token=token)[1]
    return found


def refused(ownstack: Ownstack, *words: str) -> dict[str, str]:
    """The error of an import that did not take place."""
    said = ownstack("import", *words, "--yes", "--json", check=False)
    assert said.returncode, said.stdout
    error: dict[str, str] = json.loads(said.stdout)["error"]
    return error


def test_an_open_webui_that_is_in_use_moves_in(
    box: Host, plan: Plan, ownstack: Ownstack, theirs: dict[str, Any]
) -> None:
    old, pending = ownstack.first_password("open_webui"), ownstack.json("plan")["changes"]
    found = ownstack.json("import", "/srv/webui", "--yes")
    print(f"imported Open WebUI in {found['seconds']} s")
    assert found["holds"] == {"accounts": 2, "chats": 1, "files": 1, "knowledge collections": 1}
    assert found["documents"] == {"files": 1, "knowledge": 1, "memories": 0, "left": []}
    assert {check["status"] for check in found["checks"]} == {"ok"}
    status, token = sign_in(box, plan, OWNER, WORD)
    assert status == 200, "with the password of there"
    assert sign_in(box, plan, FRIEND, WORD)[0] == 200
    assert sign_in(box, plan, *old)[0] == 400, "what the box held before is gone"
    assert web(box, plan, "GET", f"/api/v1/chats/{theirs['chat']}", token=token)[1]["title"] == "the boat house"
    query = {"collection_names": [theirs["base"]], "query": "What is the word of the house?", "k": 1}
    assert "harbour-4711" in json.dumps(web(box, plan, "POST", "/api/v1/retrieval/query/collection", query, token)[1])
    sent = f"curl -sf -H 'authorization: Bearer {token}' {open_webui.url(plan)}/api/v1/files/{theirs['file']}/content"
    assert "harbour-4711" in box.output(sent)
    now = settings(box, plan, token)
    assert (now["rag.embedding_engine"], now["ui.enable_signup"], now["openai.enable"]) == ("ollama", False, False)
    assert now["ui.banners"] == [{"id": "mine"}], "what the kit does not own stays as it was there"
    assert box.output("ls /var/lib/ownstack | grep restore; ls /etc/ownstack | grep restore; true") == ""
    assert box.output("find /var/lib/ownstack/open_webui ! -user ownstack-open-webui") == ""
    assert ownstack.json("plan")["changes"] == pending
    assert "imported" in ownstack("password", "open-webui").stdout
    status, _ = web(box, elsewhere(plan), "GET", f"/api/v1/chats/{theirs['chat']}", token=theirs["token"])
    assert status == 200, "where it came from it goes on"


RUNNER = "/opt/ownstack/base/current/runner"


def their_api(box: Host, method: str, path: str, body: Any = None) -> Any:
    key = "-H \"X-N8N-API-KEY: $(cat /srv/secrets/n8n_api_key)\" -H 'content-type: application/json'"
    text = box.run(f"curl -sf -X {method} {key} -d @- http://127.0.0.1:5690/api/v1{path}", data=json.dumps(body or {}))
    return json.loads(text.stdout)


@pytest.fixture(scope="module")
def flows(box: Host, plan: Plan) -> dict[str, Any]:
    """An owner, and a workflow that asks Qdrant with a credential that n8n keeps encrypted. Then it is stopped."""
    asked = {"url": "http://127.0.0.1:5690", "secrets_dir": "/srv/secrets", "state": "/srv/secrets/state.json",
             "email": OWNER, "first_name": "Mara", "last_name": "M", "timeout": 60}  # fmt: skip
    box.run(f"{RUNNER} n8n.setup --json '{json.dumps(asked)}'")
    secret = box.output("cat /etc/ownstack/secrets/qdrant_api_key")
    header = {"name": "api-key", "value": secret}
    made = their_api(box, "POST", "/credentials", {"name": "my key", "type": "httpHeaderAuth", "data": header})
    nodes = [
        {"id": "a", "name": "Hook", "type": "n8n-nodes-base.webhook", "typeVersion": 2, "position": [0, 0],
         "webhookId": "mine", "parameters": {"path": "mine", "httpMethod": "GET", "responseMode": "lastNode"}},
        {"id": "b", "name": "Ask", "type": "n8n-nodes-base.httpRequest", "typeVersion": 4.2, "position": [200, 0],
         "parameters": {"url": f"{open_webui.qdrant_url(plan)}/collections", "authentication": "genericCredentialType",
                        "genericAuthType": "httpHeaderAuth"},
         "credentials": {"httpHeaderAuth": {"id": made["id"], "name": "my key"}}},
    ]  # fmt: skip
    wires = {"Hook": {"main": [[{"node": "Ask", "type": "main", "index": 0}]]}}
    flow = {"name": "mine", "nodes": nodes, "connections": wires, "settings": {}}
    workflow = their_api(box, "POST", "/workflows", flow)
    their_api(box, "POST", f"/workflows/{workflow['id']}/activate")
    box.run("systemctl stop theirs-n8n; rm -f /srv/n8n/.n8n/*.log")
    return {"workflow": workflow["id"]}


def state(folder: Path) -> list[Any]:
    """Without SQLite's shared index (`-shm`): whoever reads a database that is written ahead uses it, too."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith("-shm")]
    return sorted((str(p), p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files)


def test_an_n8n_with_its_own_key_moves_in_over_ssh(
    box: Host, plan: Plan, ownstack: Ownstack, flows: dict[str, Any], tmp_path: Path
) -> None:
    here = tmp_path / "volume"
    shutil.copytree(box.root / "srv/n8n/.n8n", here)
    before, data, pending = state(here), dump(box), ownstack.json("plan")["changes"]
    other = tmp_path / "key"
    other.write_text("another-key-than-theirs\n")
    assert refused(ownstack, str(here), "--key-file", str(other))["code"] == "import-key"
    assert dump(box) == data, "a refusal changes nothing"
    found = ownstack.json("import", str(here), "--yes")
    print(f"imported n8n in {found['seconds']} s")
    assert found["holds"] == {"accounts": 1, "workflows": 1, "credentials": 1}
    assert {check["status"] for check in found["checks"]} == {"ok"}
    assert any("active workflows" in line for line in found["notes"])
    assert state(here) == before, "the source was read only"
    hook = f"curl -s -m 60 -w ' %{{http_code}}' {n8n.url(plan)}/webhook/mine"
    assert box.output(hook).endswith(" 200"), "the stored credential was decrypted"
    login = json.dumps({"emailOrLdapLoginId": OWNER, "password": WORD})
    sent = (
        f"curl -s -o /dev/null -w '%{{http_code}}' -H 'content-type: application/json' -d @- {n8n.url(plan)}/rest/login"
    )
    assert box.run(sent, data=login).stdout == "200", "with the password of there"
    assert box.output("cat /etc/ownstack/secrets/n8n_encryption_key") == KEY
    left = "find /var/lib/ownstack/n8n ! -user ownstack-n8n; ls /var/lib/ownstack/work | grep import; true"
    assert box.output(left) == ""
    assert ownstack.json("plan")["changes"] == pending
    assert refused(ownstack, "postgresql://n8n:word@db/n8n")["code"] == "import-postgres"


@pytest.mark.slow
def test_what_cannot_be_brought_up_to_date_is_taken_back(
    box: Host, plan: Plan, ownstack: Ownstack, theirs: dict[str, Any]
) -> None:
    """Its schema says that it is older than it is: the service's own migration stops half-way."""
    box.run(
        "systemctl stop theirs-webui; cp -a /srv/webui /srv/broken; python3 -",
        data="import sqlite3\n"
        "work = sqlite3.connect('/srv/broken/webui.db')\n"
        "work.execute(\"UPDATE alembic_version SET version_num = '7e5b5dc7342b'\")\nwork.commit()\n",
    )
    before = dump(box)
    error = refused(ownstack, "/srv/broken")
    assert error["code"] == "import-reverted", error
    assert dump(box) == before
    assert {check["status"] for check in ownstack.json("verify")["checks"]} == {"ok"}
    assert ownstack.json("plan")["changes"] == []


@pytest.mark.slow
def test_an_import_that_is_cut_off_is_taken_back_by_the_next_up(
    box: Host, plan: Plan, ownstack: Ownstack, theirs: dict[str, Any], tmp_path: Path
) -> None:
    before = dump(box)
    box.run("systemctl stop theirs-webui", check=False)  # it is stopped already where the test before has run
    argv = ownstack._prepared("import", "/srv/webui", "--yes")
    said_by_it = tmp_path / "said"
    with said_by_it.open("w") as out:  # a pipe that nobody reads would fill up
        process = subprocess.Popen(argv, env=ownstack.environment, cwd="/", stdout=out, stderr=out)
    try:
        while '"swapped"' not in box.run("cat /var/lib/ownstack/run/restore.json", check=False).stdout:
            assert process.poll() is None, said_by_it.read_text()
            time.sleep(0.3)
        time.sleep(2)
    finally:
        process.kill()
        process.wait()
    assert dump(box) != before
    said = ownstack("up", "--yes")
    assert "an import was cut off" in said.stderr
    assert dump(box) == before
    assert ownstack.json("plan")["changes"] == []
