"""A box with an account's data is backed up while people use it, checked, and restored; all of it or nothing."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ownstack.engine import backups
from ownstack.kit import activate
from ownstack.plan import Plan
from ownstack.runner import backup_parts
from ownstack.runner.backup_check import unlock
from ownstack.runner.backup_file import opened
from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.test_open_webui import sign_in, web
from tests.fixtures.cut_restore import cut
from tests.fixtures.small_box import age_folder, identity, rewritten
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack
from tests.results import matrix

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
def forever(work, rest):
    while True:
        work()
        time.sleep(rest)
ask("DELETE", f"{qdrant}/collections/load", None, {"api-key": key})  # of an earlier load
ask("PUT", f"{qdrant}/collections/load", {"vectors": {"size": 4, "distance": "Cosine"}}, {"api-key": key})
for work, rest in ((chats, 0.05), (hooks, 0.2), (vectors, 0.05)):
    threading.Thread(target=forever, args=(work, rest), daemon=True).start()
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
    ask = f"curl -sS --fail-with-body -X {method} {sent} -d @- "
    return json.loads(box.run(ask + open_webui.qdrant_url(plan) + path, data=json.dumps(body or {})).stdout)["result"]


def counts(box: Host, plan: Plan) -> dict[str, int]:
    names = [row["name"] for row in qdrant(box, plan, "GET", "/collections")["collections"]]
    path = "/collections/{}/points/count"
    return {name: qdrant(box, plan, "POST", path.format(name), {"exact": True})["count"] for name in names}


def flow(box: Host, plan: Plan, method: str, path: str, body: Any = None) -> Any:
    """n8n's own interface, as its owner uses it."""
    key = "-H \"X-N8N-API-KEY: $(cat /etc/ownstack/secrets/n8n_api_key)\" -H 'content-type: application/json'"
    again = "--retry 20 --retry-delay 1 --retry-all-errors" if method == "DELETE" else ""  # what it still unpublishes
    ask = f"curl -sS --fail-with-body {again} -X {method} {key} -d @- {n8n.url(plan)}/api/v1{path}"
    text = box.run(ask, data=json.dumps(body or {})).stdout
    return json.loads(text) if text and not again else None


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
    assert works(box, plan, True)
    return {"chat": made["id"], "base": base["id"], "workflow": workflow["id"], "credential": credential["id"]}


def dump(box: Host) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = json.loads(box.run("python3 -", data=DUMP).stdout)
    return found


def found_again(box: Host, plan: Plan, ownstack: Ownstack, base: str, token: str = "") -> bool:
    """`token` of somebody who is signed in already: Open WebUI refuses more than 15 sign-ins in three minutes."""
    token = token or sign_in(box, plan, *ownstack.first_password("open_webui"))[1]
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
        said = process.stdout.readline().strip()
        assert said == "busy", said + process.stdout.read()
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


# store: (database, the table that grows under load), as the host sees it
GROWING = {"Open WebUI": ("open_webui/webui.db", "chat"), "n8n": ("n8n/.n8n/database.sqlite", "execution_entity")}
GREW = """
import json, sqlite3
found = {}
for store, (file, table) in GROWING.items():
    database = sqlite3.connect(f"file:/var/lib/ownstack/{file}?mode=ro", uri=True)
    found[store] = database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
print(json.dumps(found))
"""


def there(box: Host, plan: Plan) -> dict[str, int]:
    """How much each store holds now, as its users see it."""
    said = box.run("python3 -", data=GREW.replace("GROWING", repr(GROWING))).stdout
    found: dict[str, int] = json.loads(said)
    return {**found, "Qdrant": counts(box, plan).get("load", 0)}


def held(path: Path, key: Key) -> dict[str, int]:
    """The same of a backup."""
    with opened(str(path)) as reader:
        unlock(reader, {"age": age_folder(), "identity_file": key.identity})
        tables = {store: reader.inside["tables"][f"data/{file}"][table] for store, (file, table) in GROWING.items()}
        points = {row["collection"]: row["points"][0] for row in reader.inside["vectors"]["collections"]}
    return {**tables, "Qdrant": points["load"]}


def sound(box: Host, plan: Plan, key: Key, number: int) -> list[dict[str, str]]:
    """What is wrong with each store in each of `number` backups; empty where nothing.

    The runner that makes one opens it again, and looks into each database and snapshot, before it says so. Here it is
    compared: what was there before it began is in it, and nothing that came after its end.
    """
    keys = {"recipients": [key.recipient]}
    spec = json.dumps(backups.make_spec(plan, {}, FOLDER, 3, False, keys))
    found = []
    for _ in range(number):
        before = there(box, plan)
        said = box.run("/opt/ownstack/base/current/runner backup.make", data=spec, check=False).stdout
        last = json.loads(said.splitlines()[-1])
        after = there(box, plan)
        if last["event"] != "result":
            found.append(dict.fromkeys(before, last["message"]))
            continue
        inside = held(on_disk(box, last["data"]["file"]), key)
        wrong = {store: not before[store] <= inside[store] <= after[store] for store in before}
        found.append({store: str((before, inside, after)) if bad else "" for store, bad in wrong.items()})
        assert all(before[store] < after[store] for store in before if store != "Qdrant"), "nobody wrote meanwhile"
    return found


def plain_copies(box: Host, plan: Plan, number: int) -> dict[str, list[str]]:
    """The control: what the same look finds in copies of the live files of databases."""
    found: dict[str, list[str]] = {store: [] for store in GROWING}
    for _ in range(number):
        for store, (file, table) in GROWING.items():
            before = there(box, plan)[store]
            box.run(f"cp /var/lib/ownstack/{file} /var/tmp/plain.db")
            copy = on_disk(box, "/var/tmp/plain.db")
            wrong = backup_parts.examine(str(copy))
            if not wrong:
                rows = backup_parts.rows(str(copy)).get(table, 0)
                wrong = f"{before - rows} rows of {before} are missing" if rows < before else ""
            found[store].append(wrong)
    return found


def test_backups_of_a_busy_box_are_sound(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], key: Key
) -> None:
    make(ownstack, key)  # brings today's runner
    with load(box, plan, ownstack) as done:
        found = sound(box, plan, key, 3)
    print(f"3 backups, meanwhile {done[-1]}")
    assert [wrong for one in found for wrong in one.values() if wrong] == []
    names = box.output(f"ls {FOLDER}").split()
    assert len(names) == 3
    assert box.output(f"stat -c '%a %U' {FOLDER}/{names[-1]}") == "600 root"
    assert box.output("find /var/lib/ownstack/qdrant/snapshots -name '*.snapshot'") == ""
    assert box.output("find /var/lib/ownstack/work /dev/shm /run/user -name 'ownstack-*' -o -name 'backup-*'") == ""


@pytest.mark.slow
def test_a_hundred_backups_of_a_busy_box_are_sound(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], key: Key
) -> None:
    about = (
        "A real box is written to through its own interfaces: chats, runs of a workflow, vectors. Each backup is "
        "opened again by what made it (SQLite's integrity check, rows, every byte of a snapshot), and compared: it "
        "holds what was there before it began, and nothing that came after its end. The control copies the live file "
        "of a database."
    )
    with matrix(
        "backups", "Backups under load", about, ("store", "what was made", "number", "bad", "meanwhile")
    ) as page:
        make(ownstack, key)
        with load(box, plan, ownstack) as done:
            found = sound(box, plan, key, 100)
            control = plain_copies(box, plan, 100)
        for store, what in (("Open WebUI", "chat"), ("n8n", "hook"), ("Qdrant", "vector")):
            bad = [one[store] for one in found if one[store]]
            page.add(store, "backup", len(found), len(bad), f"{done[-1][what]} writes")
        for store, copies in control.items():
            page.add(store, "control: copy of the live file", len(copies), sum(map(bool, copies)), "the same")
    assert [wrong for one in found for wrong in one.values() if wrong] == []
    assert all(map(any, control.values())), "the look sees nothing in copies of one of them"


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


def processes_of(box: Host) -> str:
    return box.output("systemctl show -p MainPID,NRestarts ownstack-qdrant ownstack-open-webui ownstack-n8n")


def test_the_timer_makes_and_tries_them_and_goes_when_it_is_told(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], word: str
) -> None:
    assert "no backup was ever tried" in ownstack("status").stdout
    pending = ownstack.json("plan")["changes"]
    ownstack("backup", "--every", "day", "--drill", "--to", f"{FOLDER}/timed", "--passphrase-file", word)
    assert "ownstack-backup.timer" in box.output("systemctl list-timers --all --no-legend")
    before, running = dump(box), processes_of(box)
    box.run("systemctl start ownstack-backup.service")
    (made,) = box.output(f"ls {FOLDER}/timed").split()
    told = ownstack.json("status")["backup"]
    assert told["last"]["file"] == f"{FOLDER}/timed/{made}"
    found = ownstack.json("backup", "--verify", f"{FOLDER}/timed/{made}", "--passphrase-file", word)
    assert found["opened"]
    good = told["restorable"]
    print(f"tried in {good['seconds']} s: {good['counts']}")
    assert good["file"] == told["last"]["file"]
    decrypted = good["counts"].pop("credentials decrypted")
    assert good["counts"] == found["holds"]
    assert decrypted == found["holds"]["credentials"] >= 2
    assert "restorable: the backup of" in ownstack("status").stdout
    assert processes_of(box) == running, "the box was touched"
    assert dump(box) == before
    assert box.output("ls /var/lib/ownstack/scratch; ls /run/systemd/system | grep drill; true") == ""
    assert box.output("ls /var/lib/ownstack/run /var/lib/ownstack/work | grep -E 'drill|verify-|backup-'; true") == ""
    box.run("systemctl start ownstack-backup.service")  # a week has not passed
    assert ownstack.json("status")["backup"]["restorable"]["time"] == good["time"]
    ownstack("backup", "--every", "never")
    assert "ownstack-backup" not in box.output("systemctl list-unit-files --no-legend 'ownstack-backup*'; true")
    assert box.run("ls /etc/ownstack/backup.json /etc/ownstack/secrets/backup_passphrase", check=False).returncode
    assert ownstack.json("plan")["changes"] == pending


@pytest.mark.slow
def test_a_backup_with_a_foreign_key_is_sound_to_look_at_and_its_drill_fails(
    box: Host, ownstack: Ownstack, data: dict[str, Any], key: Key, tmp_path: Path
) -> None:
    """What no look at the file can see: n8n's key was replaced, everywhere, and opens nothing that n8n keeps."""
    made = make(ownstack, key)
    wrong = "A" * 43
    with opened(str(on_disk(box, made["file"]))) as held:
        unlock(held, {"age": age_folder(), "identity_file": key.identity})
        held.manifest["services"] = ["n8n"]
        config = base64.b64encode(json.dumps({"encryptionKey": wrong}).encode()).decode()
        about = {"age": age_folder(), "work": str(tmp_path), "recipients": [key.recipient]}
        rewritten(
            held, str(on_disk(box, f"{FOLDER}/foreign.tar")), about, {}, vectors=None,
            secrets={**held.inside["secrets"], "n8n_encryption_key": wrong}, sealed={"n8n/.n8n/config": config},
        )  # fmt: skip
    looked = ownstack.json("backup", "--verify", f"{FOLDER}/foreign.tar", "--identity", key.identity)
    assert looked["opened"]
    said = ownstack(
        "backup", "--verify", f"{FOLDER}/foreign.tar", "--drill", "--identity", key.identity, "--json", check=False
    )
    error = json.loads(said.stdout)["error"]
    assert error["code"] in ("not-restorable", "scratch-not-ready"), error
    assert "n8n" in error["message"]
    assert f"failed: {error['message']}" in ownstack("status").stdout
    assert box.output("ls /var/lib/ownstack/scratch; ls /run/systemd/system | grep drill; true") == ""
    box.run(f"rm {FOLDER}/foreign.tar")


def spoil(box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any]) -> None:
    """What people do by mistake: a chat, a collection and a workflow are gone; another chat came."""
    assert works(box, plan, True), "n8n publishes its workflows a moment after its start"
    _, token = sign_in(box, plan, *ownstack.first_password("open_webui"))
    assert web(box, plan, "DELETE", f"/api/v1/chats/{data['chat']}", token=token)[0] == 200
    assert web(box, plan, "DELETE", f"/api/v1/knowledge/{data['base']}/delete", token=token)[0] == 200
    web(box, plan, "POST", "/api/v1/chats/new", {"chat": {"title": "later", "messages": []}}, token)
    flow(box, plan, "POST", f"/workflows/{data['workflow']}/deactivate")
    flow(box, plan, "DELETE", f"/workflows/{data['workflow']}")
    flow(box, plan, "DELETE", f"/credentials/{data['credential']}")
    assert not hook(box, plan).endswith(" 200")


@dataclass(frozen=True)
class Lost:
    """A backup, what people would miss at that time, and what is there since they made mistakes."""

    made: dict[str, Any]
    before: dict[str, list[Any]]
    vectors: dict[str, int]
    now: dict[str, list[Any]]

    @property
    def file(self) -> str:
        return str(self.made["file"])


@pytest.fixture(scope="module")
def lost(box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], key: Key) -> Lost:
    made = make(ownstack, key)
    before, vectors = dump(box), counts(box, plan)
    shutil.copy(on_disk(box, made["file"]), box.folder / "kept.tar")
    spoil(box, plan, ownstack, data)
    now = dump(box)
    assert now != before
    return Lost(made, before, vectors, now)


def works(box: Host, plan: Plan, wanted: bool) -> bool:
    """Whether the workflow runs; n8n publishes it a moment after it is made active, and after each start."""
    for _ in range(10 if wanted else 1):
        if hook(box, plan).endswith(" 200"):
            return True
        time.sleep(1)
    return False


def nothing_lies_about(box: Host) -> None:
    assert box.output("ls /var/lib/ownstack | grep restore; ls /etc/ownstack | grep restore; true") == ""


@pytest.mark.slow
def test_a_restore_that_fails_half_way_is_taken_back(
    box: Host, plan: Plan, ownstack: Ownstack, lost: Lost, key: Key, tmp_path: Path
) -> None:
    """The data was exchanged already when Qdrant refuses the vectors: a tar, whole, with right hashes, of nonsense."""
    vectors = counts(box, plan)
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no segment of Qdrant")
    with tarfile.open(tmp_path / "snapshot", "w") as tar:
        tar.add(nonsense, "nonsense")
    file = f"{FOLDER}/nonsense.tar"
    with opened(str(on_disk(box, lost.file))) as held:
        unlock(held, {"age": age_folder(), "identity_file": key.identity})
        members = {row["member"]: (tmp_path / "snapshot").read_bytes() for row in held.inside["vectors"]["collections"]}
        about = {"age": age_folder(), "work": str(tmp_path), "recipients": [key.recipient]}
        rewritten(held, str(on_disk(box, file)), about, members)
    said = ownstack("restore", file, "--yes", "--json", "--identity", key.identity, check=False)
    error = json.loads(said.stdout)["error"]
    assert error["code"] == "restore-reverted", error
    assert "Qdrant refused" in error["message"]
    assert "as it was" in error["hint"]
    assert dump(box) == lost.now
    assert counts(box, plan) == vectors
    nothing_lies_about(box)
    box.run(f"rm {file}")


def put_right(ownstack: Ownstack) -> str:
    """One further run, and what it says."""
    done = ownstack("up", "--yes", "--no-verify")
    return done.stdout + done.stderr


def test_the_power_goes_in_the_middle_of_a_restore_and_up_puts_back(
    box: Host, plan: Plan, ownstack: Ownstack, lost: Lost, key: Key
) -> None:
    vectors = counts(box, plan)
    cut(box, ownstack, key.identity, lost.file, "rename 4", hard=True)
    told = ownstack("status", check=False).stdout + put_right(ownstack)
    assert re.search("a restore (was|had been) cut off: the box is as it was before it", told), told
    assert dump(box) == lost.now
    assert counts(box, plan) == vectors
    nothing_lies_about(box)


# point -> whether the data is that of the backup afterwards
POINTS = {
    "extract 9": False, "swap": False, "noted swapping": False,
    **{f"rename {number}": False for number in (1, 2, 5, 8, 10)},
    "noted swapped": False, "vectors": False, "models": False, "finish": False, "noted done": True,
}  # fmt: skip


@pytest.mark.slow
def test_cut_off_at_every_step_one_further_run_converges(
    box: Host, plan: Plan, ownstack: Ownstack, lost: Lost, key: Key
) -> None:
    about = (
        "`restore` is ended at each of its journal steps: by killing it and what it runs on the host (`kill -9`), or "
        "by a hard stop of the whole host. One further `up` follows. Then the databases are compared by dumps, and "
        "vectors by counts."
    )
    vectors, found = counts(box, plan), []
    columns = ("point", "how", "after one more `up`", "seconds")
    with matrix("restores-cut-off-within", "Restores that are cut off within a step", about, columns) as page:
        for point, new in POINTS.items():
            for hard in (False, True):
                if new and not hard:
                    continue  # the box changes for good: once is enough
                began = time.monotonic()
                cut(box, ownstack, key.identity, lost.file, point, hard)
                put_right(ownstack)
                wanted = (lost.before, lost.vectors) if new else (lost.now, vectors)
                same = (dump(box), counts(box, plan)) == wanted and works(box, plan, new) == new
                word = ("the backup's data" if new else "the box as before") if same else "DIFFERS"
                page.add(point, "hard stop" if hard else "kill -9", word, round(time.monotonic() - began))
                found.append((point, hard, same))
                nothing_lies_about(box)
    assert [one for one in found if not one[2]] == []


def test_what_was_lost_comes_back_on_the_same_box(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], lost: Lost, key: Key
) -> None:
    inode = box.output("stat -c %i /var/lib/ownstack/open_webui/webui.db")
    done = ownstack.json("restore", lost.file, "--yes", "--identity", key.identity)
    print(f"restored in {done['seconds']} s")
    assert done["holds"] == lost.made["holds"]
    assert dump(box) == lost.before
    assert counts(box, plan) == lost.vectors
    assert box.output("stat -c %i /var/lib/ownstack/open_webui/webui.db") != inode
    assert works(box, plan, True)
    assert found_again(box, plan, ownstack, data["base"])
    nothing_lies_about(box)
    assert box.output("find /var/lib/ownstack/open_webui ! -user ownstack-open-webui") == ""
    assert box.output("find /var/lib/ownstack/n8n ! -user ownstack-n8n") == ""
    assert ownstack.json("plan")["changes"] == []


@pytest.mark.slow
def test_vectors_of_a_much_older_qdrant_are_made_anew(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], key: Key, tmp_path: Path
) -> None:
    """Only one Qdrant is to be had here: the backup says that it is of another."""
    for name in counts(box, plan):
        if not name.startswith(plan.vectors):
            qdrant(box, plan, "DELETE", f"/collections/{name}")
    before, vectors = dump(box), counts(box, plan)
    made, file = make(ownstack, key), f"{FOLDER}/older.tar"
    with opened(str(on_disk(box, made["file"]))) as held:
        unlock(held, {"age": age_folder(), "identity_file": key.identity})
        held.manifest["versions"]["qdrant"] = "1.1.0"
        about = {"age": age_folder(), "work": str(tmp_path), "recipients": [key.recipient]}
        rewritten(held, str(on_disk(box, file)), about, {})
    done = ownstack.json("restore", file, "--yes", "--identity", key.identity)
    assert "Qdrant 1.1.0" in done["reindex"]
    assert done["documents"]["files"] >= 1
    assert done["documents"]["left"] == []
    assert dump(box) == before
    assert (
        counts(box, plan).items() >= {name: number for name, number in vectors.items() if "knowledge" in name}.items()
    )
    assert found_again(box, plan, ownstack, data["base"])
    nothing_lies_about(box)
    box.run(f"rm {file}")


@pytest.mark.slow
def test_a_bare_machine_becomes_the_box(
    box: Host, plan: Plan, ownstack: Ownstack, data: dict[str, Any], lost: Lost, key: Key, network: Network,
    mirror: Mirror,
) -> None:  # fmt: skip
    with Host(network, "other") as bare:
        bare.boot()
        elsewhere = mirror.ownstack(bare)
        source = str(box.folder / "kept.tar")
        done = elsewhere.json("restore", source, "--yes", "--identity", key.identity)
        print(f"a bare machine, made and restored in {done['seconds']} s")
        assert {check["status"] for check in elsewhere.json("verify")["checks"]} == {"ok"}
        assert dump(bare) == lost.before
        assert counts(bare, plan) == lost.vectors
        assert works(bare, plan, True)
        assert found_again(bare, plan, elsewhere, data["base"])
        assert sign_in(bare, plan, *ownstack.first_password("open_webui"))[0] == 200
