"""A box with an account's data is backed up while people use it, checked, and restored; all of it or nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ownstack.kit import activate
from ownstack.plan import Plan
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.test_open_webui import sign_in, web
from tests.fixtures.small_box import identity
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack

activate()
from roles import n8n, open_webui  # noqa: E402

WORD = "the harbour is quiet at night"
FOLDER = "/srv/backups"
# people at work: chats are made and changed, workflows run, vectors come and go
LOAD = """
import json, os, sys, threading, time, urllib.request
web, token, hook, qdrant, key = sys.argv[1:6]
counts = {"chat": 0, "hook": 0, "vector": 0}
def ask(method, url, body, headers):
    data = json.dumps(body).encode()
    sent = {"content-type": "application/json", **headers}
    with urllib.request.urlopen(urllib.request.Request(url, data, sent, method=method), timeout=60) as answer:
        return json.loads(answer.read() or b"null")
def chats():
    body = {"chat": {"title": "under load", "models": [], "messages": [{"role": "user", "content": "x" * 2000}]}}
    ask("POST", f"{web}/api/v1/chats/new", body, {"authorization": f"Bearer {token}"})
    counts["chat"] += 1
def hooks():
    urllib.request.urlopen(hook, timeout=60).read()
    counts["hook"] += 1
def vectors():
    number = counts["vector"] % 400
    points = [{"id": number * 10 + n, "vector": [0.1, 0.2, 0.3, number / 400]} for n in range(10)]
    ask("PUT", f"{qdrant}/collections/load/points?wait=true", {"points": points}, {"api-key": key})
    counts["vector"] += 1
def forever(work):
    while True:
        work()
ask("PUT", f"{qdrant}/collections/load", {"vectors": {"size": 4, "distance": "Cosine"}}, {"api-key": key})
for work in (chats, hooks, vectors):
    threading.Thread(target=forever, args=(work,), daemon=True).start()
open("/tmp/load.pid", "w").write(str(os.getpid()))
print("busy", flush=True)
while True:
    time.sleep(1)
    print(json.dumps(counts), flush=True)
"""
# what people would miss, by table; of tables that services write to by themselves only the columns that are theirs
DUMP = """
import hashlib, json, sqlite3, sys
WANTED = {
    "open_webui/webui.db": {
        "user": "id, name, email, role", "auth": "id, email, password", "chat": "id, user_id, title, chat",
        "file": "id, user_id, filename, path, hash", "knowledge": "id, name, description",
        "knowledge_file": "knowledge_id, file_id",
    },
    "n8n/.n8n/database.sqlite": {
        "user": "id, email, password", "workflow_entity": "id, name, nodes, connections, active",
        "credentials_entity": "id, name, type, data", "webhook_entity": "webhookPath, method, workflowId",
    },
}
found = {}
for file, tables in WANTED.items():
    database = sqlite3.connect(f"file:/var/lib/ownstack/{file}?mode=ro", uri=True)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for table, columns in tables.items():
        rows = sorted(map(repr, database.execute(f"SELECT {columns} FROM {table}")))
        found[f"{file}:{table}"] = [len(rows), hashlib.sha256("\\n".join(rows).encode()).hexdigest()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "backup") as host:
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    return mirror.ownstack(box)


@pytest.fixture(scope="module")
def plan(box: Host) -> Plan:
    return Plan.model_validate(json.loads(box.output("cat /var/lib/ownstack/manifest.json"))["plan"])


@pytest.fixture(scope="module")
def word(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("word") / "word"
    path.write_text(WORD + "\n")
    return str(path)


@dataclass(frozen=True)
class Key:
    """A key of age: quicker than a passphrase, which is slow on purpose."""

    recipient: str
    identity: str


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    path = tmp_path_factory.mktemp("identity") / "identity"
    text, recipient = identity()
    path.write_text(text + "\n")
    return Key(recipient, str(path))


def secret(box: Host, name: str) -> str:
    return box.output(f"cat /etc/ownstack/secrets/{name}")


def qdrant(box: Host, plan: Plan, method: str, path: str, body: Any = None) -> Any:
    sent = "-H \"api-key: $(cat /etc/ownstack/secrets/qdrant_api_key)\" -H 'content-type: application/json'"
    ask = f"curl -sf -X {method} {sent} -d @- "
    return json.loads(box.run(ask + open_webui.qdrant_url(plan) + path, data=json.dumps(body or {})).stdout)["result"]


def counts(box: Host, plan: Plan) -> dict[str, int]:
    names = [row["name"] for row in qdrant(box, plan, "GET", "/collections")["collections"]]
    path = "/collections/{}/points/count"
    return {name: qdrant(box, plan, "POST", path.format(name), {"exact": True})["count"] for name in names}


def flow(box: Host, plan: Plan, method: str, path: str, body: Any = None) -> Any:
    """n8n's own interface, as its owner uses it."""
    key = "-H \"X-N8N-API-KEY: $(cat /etc/ownstack/secrets/n8n_api_key)\" -H 'content-type: application/json'"
    text = box.run(f"curl -sf -X {method} {key} -d @- {n8n.url(plan)}/api/v1{path}", data=json.dumps(body or {})).stdout
    return json.loads(text) if text else None


def hook(box: Host, plan: Plan) -> str:
    """What a workflow answers that asks Qdrant with a credential that n8n keeps encrypted."""
    return box.run(f"curl -s -m 60 -w ' %{{http_code}}' {n8n.url(plan)}/webhook/mine", check=False).stdout


@pytest.fixture(scope="module")
def data(box: Host, plan: Plan, ownstack: Ownstack) -> dict[str, Any]:
    return account_data(box, plan, ownstack)


def account_data(box: Host, plan: Plan, ownstack: Ownstack) -> dict[str, Any]:
    """An account's data: a chat, a knowledge collection with a document, a workflow with a credential of its own."""
    _, token = sign_in(box, plan, *ownstack.first_password("open_webui"))
    message = {"role": "user", "content": "Where is the key of the boat house?"}
    chat = {"chat": {"title": "the boat house", "models": [], "messages": [message]}}
    status, made = web(box, plan, "POST", "/api/v1/chats/new", chat, token)
    assert status == 200, made
    _, base = web(box, plan, "POST", "/api/v1/knowledge/create", {"name": "house", "description": "kept"}, token)
    box.run("printf 'The word of the house is harbour-4711.' > /tmp/house.txt")
    sent = f"curl -sf -H 'authorization: Bearer {token}' -F file=@/tmp/house.txt"
    path = "/api/v1/files/?process=true&process_in_background=false"
    file = json.loads(box.output(f"{sent} '{open_webui.url(plan)}{path}'"))
    add = f"/api/v1/knowledge/{base['id']}/file/add"
    assert web(box, plan, "POST", add, {"file_id": file["id"]}, token)[0] == 200
    header = {"name": "api-key", "value": secret(box, "qdrant_api_key")}
    credential = flow(box, plan, "POST", "/credentials", {"name": "my key", "type": "httpHeaderAuth", "data": header})
    nodes = [
        {"id": "a", "name": "Hook", "type": "n8n-nodes-base.webhook", "typeVersion": 2, "position": [0, 0],
         "webhookId": "mine", "parameters": {"path": "mine", "httpMethod": "GET", "responseMode": "lastNode"}},
        {"id": "b", "name": "Ask", "type": "n8n-nodes-base.httpRequest", "typeVersion": 4.2, "position": [200, 0],
         "parameters": {"url": f"{open_webui.qdrant_url(plan)}/collections", "authentication": "genericCredentialType",
                        "genericAuthType": "httpHeaderAuth"},
         "credentials": {"httpHeaderAuth": {"id": credential["id"], "name": "my key"}}},
    ]  # fmt: skip
    wires = {"Hook": {"main": [[{"node": "Ask", "type": "main", "index": 0}]]}}
    workflow = flow(
        box, plan, "POST", "/workflows", {"name": "mine", "nodes": nodes, "connections": wires, "settings": {}}
    )
    flow(box, plan, "POST", f"/workflows/{workflow['id']}/activate")
    return {"chat": made["id"], "base": base["id"], "workflow": workflow["id"], "credential": credential["id"]}


def dump(box: Host) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = json.loads(box.run("python3 -", data=DUMP).stdout)
    return found


def found_again(box: Host, plan: Plan, ownstack: Ownstack, base: str) -> bool:
    _, token = sign_in(box, plan, *ownstack.first_password("open_webui"))
    query = {"collection_names": [base], "query": "What is the word of the house?", "k": 1}
    status, answer = web(box, plan, "POST", "/api/v1/retrieval/query/collection", query, token)
    return status == 200 and "harbour-4711" in json.dumps(answer)


@contextlib.contextmanager
def load(box: Host, plan: Plan, ownstack: Ownstack) -> Iterator[list[dict[str, int]]]:
    """People at work on the box meanwhile; how much they have done, second by second."""
    _, token = sign_in(box, plan, *ownstack.first_password("open_webui"))
    box.run("cat > /tmp/load.py", data=LOAD)
    words = f"{open_webui.url(plan)} {token} {n8n.url(plan)}/webhook/mine {open_webui.qdrant_url(plan)}"
    command = f"python3 /tmp/load.py {words} $(cat /etc/ownstack/secrets/qdrant_api_key)"
    process = subprocess.Popen([*box.ssh(), "-tt", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    done: list[dict[str, int]] = []
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "busy"
        yield done
        assert process.poll() is None, process.stdout.read()
    finally:
        box.run("kill $(cat /tmp/load.pid)", check=False)
        assert process.stdout is not None
        done += [json.loads(line) for line in process.stdout.read().splitlines() if line.startswith("{")]
        process.wait(30)


def make(ownstack: Ownstack, key: Key, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = ownstack.json("backup", "--to", FOLDER, "--recipient", key.recipient, *more)
    return found


def on_disk(box: Host, file: str) -> Path:
    """A file of the host, seen from here."""
    return box.root / file.lstrip("/")


def under_load(box: Host, plan: Plan, ownstack: Ownstack, key: Key, number: int) -> None:
    with load(box, plan, ownstack) as done:
        made = [make(ownstack, key, "--keep", "3") for _ in range(number)]
    for before, after in itertools.pairwise(made):
        assert after["holds"]["chats"] > before["holds"]["chats"], "nobody wrote meanwhile"
    assert min(done[-1].values()) > number, done[-1]
    assert len(box.output(f"ls {FOLDER}").split()) == min(3, number)
    print(f"{number} backups, {[one['seconds'] for one in made]} s, meanwhile {done[-1]}")


def test_backups_of_a_busy_box_are_sound(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], key: Key
) -> None:
    assert hook(box, plan).endswith(" 200")
    under_load(box, plan, ownstack, key, 3)
    newest = box.output(f"ls {FOLDER}").split()[-1]
    found = ownstack.json("backup", "--verify", f"{FOLDER}/{newest}", "--identity", key.identity)
    assert found["opened"]
    assert found["holds"]["knowledge collections"] == 1
    assert box.output(f"stat -c '%a %U' {FOLDER}/{newest}") == "600 root"
    assert box.output("find /var/lib/ownstack/qdrant/snapshots -name '*.snapshot'") == ""
    assert box.output("find /var/lib/ownstack/work /dev/shm /run/user -name 'ownstack-*' -o -name 'backup-*'") == ""


@pytest.mark.slow
def test_a_hundred_backups_of_a_busy_box_are_sound(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], key: Key
) -> None:
    under_load(box, plan, ownstack, key, 100)


def test_no_secret_is_in_the_file_and_a_damaged_one_is_found(
    box: Host, ownstack: Ownstack, data: dict[str, Any], key: Key
) -> None:
    made = make(ownstack, key)
    path = on_disk(box, made["file"])
    whole = path.read_bytes()
    names = box.output("ls /etc/ownstack/secrets").split()
    values = [secret(box, name).encode() for name in names]
    assert len(values) >= 8
    assert [name for name, value in zip(names, values, strict=True) if value in whole] == []
    assert b"harbour-4711" not in whole
    place = len(whole) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    failed = ownstack("backup", "--verify", made["file"], "--json", check=False)
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["error"]["code"] == "backup-damaged"
    refused = ownstack("restore", made["file"], "--yes", "--json", "--identity", key.identity, check=False)
    assert json.loads(refused.stdout)["error"]["code"] == "backup-damaged"
    path.unlink()


def test_the_timer_makes_them_and_goes_when_it_is_told(box: Host, ownstack: Ownstack, word: str) -> None:
    ownstack("backup", "--every", "day", "--to", f"{FOLDER}/timed", "--passphrase-file", word)
    assert "ownstack-backup.timer" in box.output("systemctl list-timers --all --no-legend")
    box.run("systemctl start ownstack-backup.service")
    (made,) = box.output(f"ls {FOLDER}/timed").split()
    assert ownstack.json("status")["backup"]["last"]["file"] == f"{FOLDER}/timed/{made}"
    found = ownstack.json("backup", "--verify", f"{FOLDER}/timed/{made}", "--passphrase-file", word)
    assert found["opened"]
    ownstack("backup", "--every", "never")
    assert "ownstack-backup" not in box.output("systemctl list-unit-files --no-legend 'ownstack-backup*'; true")
    assert box.run("ls /etc/ownstack/backup.json /etc/ownstack/secrets/backup_passphrase", check=False).returncode
    assert ownstack.json("plan")["changes"] == []


def spoil(box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any]) -> None:
    """What people do by mistake: a chat, a collection and a workflow are gone; another chat came."""
    _, token = sign_in(box, plan, *ownstack.first_password("open_webui"))
    assert web(box, plan, "DELETE", f"/api/v1/chats/{data['chat']}", token=token)[0] == 200
    assert web(box, plan, "DELETE", f"/api/v1/knowledge/{data['base']}/delete", token=token)[0] == 200
    web(box, plan, "POST", "/api/v1/chats/new", {"chat": {"title": "later", "messages": []}}, token)
    flow(box, plan, "POST", f"/workflows/{data['workflow']}/deactivate")
    flow(box, plan, "DELETE", f"/workflows/{data['workflow']}")
    flow(box, plan, "DELETE", f"/credentials/{data['credential']}")
    assert not hook(box, plan).endswith(" 200")


def test_what_was_lost_comes_back_on_the_same_box(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], key: Key
) -> None:
    made = make(ownstack, key)
    before, vectors = dump(box), counts(box, plan)
    shutil.copy(on_disk(box, made["file"]), box.folder / "kept.tar")
    (box.folder / "kept.json").write_text(json.dumps([before, vectors]))
    spoil(box, plan, ownstack, data)
    assert dump(box) != before
    inode = box.output("stat -c %i /var/lib/ownstack/open_webui/webui.db")
    done = ownstack.json("restore", made["file"], "--yes", "--identity", key.identity)
    print(f"restored in {done['seconds']} s")
    assert done["holds"] == made["holds"]
    assert dump(box) == before
    assert counts(box, plan) == vectors
    assert box.output("stat -c %i /var/lib/ownstack/open_webui/webui.db") != inode
    assert hook(box, plan).endswith(" 200")
    assert found_again(box, plan, ownstack, data["base"])
    assert box.output("ls /var/lib/ownstack | grep restore; ls /etc/ownstack | grep restore; true") == ""
    assert box.output("find /var/lib/ownstack/open_webui ! -user ownstack-open-webui") == ""
    assert box.output("find /var/lib/ownstack/n8n ! -user ownstack-n8n") == ""
    assert ownstack.json("plan")["changes"] == []


@pytest.mark.slow
def test_a_bare_machine_becomes_the_box(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], key: Key, network: Network, mirror: Mirror
) -> None:
    before, vectors = json.loads((box.folder / "kept.json").read_text())
    with Host(network, "other") as bare:
        bare.boot()
        elsewhere = mirror.ownstack(bare)
        source = str(box.folder / "kept.tar")
        done = elsewhere.json("restore", source, "--yes", "--identity", key.identity)
        print(f"a bare machine, made and restored in {done['seconds']} s")
        assert {check["status"] for check in elsewhere.json("verify")["checks"]} == {"ok"}
        assert dump(bare) == before
        assert counts(bare, plan) == vectors
        assert hook(bare, plan).endswith(" 200")
        assert found_again(bare, plan, elsewhere, data["base"])
        assert sign_in(bare, plan, *ownstack.first_password("open_webui"))[0] == 200
