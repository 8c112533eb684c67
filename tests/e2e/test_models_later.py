"""The planned model comes later: the small one answers meanwhile, a reboot costs nothing, then it switches.

A newer build in the registry is told and taken. Then its store moves to another disk.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_ollama_engine import artefact, sha256
from tests.fixtures.bundles import SERIAL, Publisher, data, replaced
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack
from tests.hosts.registry import Registry
from tests.hosts.serve import Answer, Fault, FileServer, folder

CHAT = "smollm2:135m-q8_0"
SLOW = 500_000  # bytes a second of each connection; the engine fetches in two


KEPT = 16_000_000  # bytes that are there when the host goes down

hurried: list[bool] = []


@pytest.fixture(scope="module")
def registry(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """A model registry with a chat model of its own size, made by the engine's quantiser, and the embedding model."""
    folder = tmp_path_factory.mktemp("registry")
    engine = folder / "engine"
    engine.mkdir()
    subprocess.run(["tar", "-xzf", artefact("ollama", "ollama", "go-module"), "-C", engine], check=True)
    quantised = folder / "q8_0.gguf"
    tool = engine / "lib/ollama/llama-quantize"
    small = artefact("models", "smollm2-135m", "pypi-wheel")
    subprocess.run([tool, "--allow-requantize", small, quantised, "Q8_0", "2"], check=True, capture_output=True)
    made = Registry(folder / "registry")
    made.add("smollm2", "135m-q8_0", quantised)
    made.add("all-minilm", "22m", artefact("models", "all-minilm", "pypi-converted"))
    large = sha256(quantised)
    with made.serve(network.gateway) as server:
        plain = server.resolve

        def resolve(host: str, path: str) -> Answer | None:
            """Only the large file is slow, until a test says otherwise."""
            server.rate = SLOW if large in path and not hurried else None
            return plain(host, path)

        server.resolve = resolve
        yield server


@pytest.fixture(scope="module")
def box(network: Network) -> Iterator[Host]:
    with Host(network, "later") as host:
        host.boot()
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, registry: FileServer) -> Ownstack:
    toml = (
        'roles = ["ollama", "models"]\n[ollama]\n'
        f'registry = "{registry.url.removeprefix("http://")}"\nregistry_insecure = true\n'
        f'[models]\nchat = "{CHAT}"\nembedding = "all-minilm:22m"\ncontext = 4096\n'
    )
    return Ownstack(box, toml=toml)


def not_ok(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["id"]: check for check in verdict["checks"] if check["status"] not in ("ok", "skipped")}


def pull(box: Host) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.output("cat /var/lib/ownstack/run/pull-smollm2-135m-q8-0.json"))
    return found


def test_meanwhile_the_small_model_answers_and_verify_is_amber(
    box: Host, ownstack: Ownstack, registry: FileServer
) -> None:
    first = ownstack.json("up", "--yes", check=False)
    wrong = not_ok(first["verify"])
    assert set(wrong) == {"models-bootstrap-only"}, wrong
    amber = wrong["models-bootstrap-only"]
    assert amber["status"] == "amber"
    assert CHAT in amber["measured"]
    assert not first["verify"]["ok"]
    chat = next(check for check in first["verify"]["checks"] if check["id"] == "models-chat")
    assert "smollm2:135m:" in chat["measured"]
    assert ownstack("verify", check=False).returncode == 1
    while not pull(box)["rate"]:
        time.sleep(0.5)
    state = pull(box)
    assert state["status"] == "pulling"
    assert 0.3 * SLOW < state["rate"] < 3 * SLOW
    assert "left" in ownstack("status").stdout


def test_the_engine_that_pulls_is_another_account_in_a_unit_of_its_own(box: Host) -> None:
    unit = "ownstack-pull-smollm2-135m-q8-0-engine"
    shown = box.output(f"systemctl show {unit} -p User,ProtectSystem,ActiveState,ReadWritePaths")
    assert "User=ownstack-pull" in shown
    assert "ProtectSystem=strict" in shown
    store = "/var/lib/ownstack/models"
    assert f"ReadWritePaths={store}/.pull-smollm2-135m-q8-0" in shown
    as_puller = "setpriv --reuid ownstack-pull --regid ownstack-pull --clear-groups"
    assert box.run(f"{as_puller} ls {store}/.pull-smollm2-135m-q8-0", check=False).returncode == 0
    assert box.run(f"{as_puller} ls {store}/blobs", check=False).returncode != 0
    assert box.run(f"{as_puller} ls {store}", check=False).returncode != 0


def test_after_a_reboot_it_goes_on_and_switches(box: Host, ownstack: Ownstack, registry: FileServer) -> None:
    """The pull ends before its engine, which has then written down how far each part has come."""
    while pull(box)["done"] < KEPT:
        time.sleep(0.5)
    before = pull(box)["done"]
    box.reboot()
    hurried.append(True)
    time.sleep(1)
    interrupted = not_ok(ownstack.json("verify", check=False))["models-bootstrap-only"]
    assert "interrupted" in interrupted["measured"]
    mark = len(registry.asked)
    ownstack("up", "--yes", "--no-verify")
    for _ in range(240):
        if pull(box)["status"] in ("done", "failed"):
            break
        time.sleep(0.5)
    state = pull(box)
    assert state["status"] == "done", state
    sent = sum(asked.sent for asked in registry.asked[mark:] if asked.method == "GET")
    print(f"fetched before the reboot: {before}, of {state['total']}; after it: {sent}")
    # some MB more may go out: the engine asks for each file once to learn where it lies, and does not read it
    assert sent < state["total"] - 0.9 * before + 10e6
    verdict = ownstack.json("verify")
    assert not_ok(verdict) == {}
    checks = {check["id"]: check for check in verdict["checks"]}
    assert CHAT in checks["models-chat"]["measured"]
    print(checks["models-memory"]["measured"])


def test_then_nothing_is_left_to_do(box: Host, ownstack: Ownstack) -> None:
    again = ownstack.json("up", "--yes", "--no-verify")
    assert [op["name"] for op in again["operations"] if op["changed"]] == []
    assert box.output("find /var/lib/ownstack/models -name '.pull-*'") == ""
    assert box.output("systemctl list-units --all --plain --no-legend 'ownstack-pull*'") == ""


def test_a_newer_build_in_the_registry_is_told_and_taken(box: Host, ownstack: Ownstack, registry: FileServer) -> None:
    def outdated() -> dict[str, str]:
        return {row["name"]: row["status"] for row in ownstack.json("models", "outdated")["models"]}

    client = "HOME=/root /opt/ownstack/ollama/current/bin/ollama"
    box.run(f"printf 'FROM {CHAT}\n' > /root/Modelfile && cd /root && {client} create mine -f Modelfile")
    mark = len(registry.asked)
    rest = outdated()
    assert (rest.pop(CHAT), rest["mine:latest"]) == ("same", "made-here")
    assert set(rest.values()) <= {"same", "made-here"}
    asked = registry.paths()[mark:]
    assert "/v2/library/smollm2/manifests/135m-q8_0" in asked
    assert [path for path in asked if "mine" in path or "/manifests/" not in path] == []
    told = box.output("journalctl --no-pager -o cat -u ownstack-registry-ask")
    assert "asking the model registry for digests" in told

    usual = registry.resolve

    def moved(host: str, path: str) -> Answer | None:
        """The same model in another manifest: its digest is another one."""
        found = usual(host, path)
        if found and path.endswith("/manifests/135m-q8_0"):
            assert isinstance(found.body, Path)
            return Answer(found.body.read_bytes() + b"\n", found.headers)
        return found

    registry.resolve = moved
    assert outdated() == {CHAT: "changed", **rest}
    said = ownstack("models", "outdated", CHAT)
    assert f"`ownstack models pull {CHAT}`" in said.stdout
    assert ownstack.json("models", "pull", CHAT, "--yes")["pulled"] == [CHAT]
    assert outdated() == {CHAT: "same", **rest}
    assert ownstack.json("up", "--yes", "--no-verify")["changed"] == 0, "nothing takes it back"
    registry.faults = {"/v2/library/smollm2/manifests/135m-q8_0": Fault(status=502)}
    failed = ownstack("models", "outdated", "--json", check=False)
    assert (failed.returncode, json.loads(failed.stdout)["error"]["code"]) == (1, "registry-unreachable")
    registry.faults = {}
    box.run(f"{client} rm mine")


def test_a_bundle_from_an_address_makes_plan_say_that_an_upgrade_is_available(
    network: Network, ownstack: Ownstack, tmp_path: Path
) -> None:
    publisher = Publisher(tmp_path)
    publisher.publish(replaced("roles/ollama/artifacts.toml", '"0.34.2"', '"0.34.9"'))
    words = ("--set", publisher.trust)
    with FileServer(folder(tmp_path), network.gateway) as server:
        asked = ("upgrade", "--self", "--from", f"{server.url}/", *words, "--yes")
        taken = ownstack.json(*asked)
        assert (taken["taken"], taken["serial"]) == (True, SERIAL)
        publisher.publish(data(SERIAL - 100))
        older = ownstack(*asked, "--json", check=False)
        assert (older.returncode, json.loads(older.stdout)["error"]["code"]) == (1, "bundle-older")
    said = ownstack("plan").stdout
    assert "ollama 0.34.2 is installed, the lock has 0.34.9: upgrade available" in said
    assert ownstack.json("status")["data"]["serial"] == SERIAL
    ownstack("upgrade", "--self", "--undo", "--yes")
    assert "upgrade available" not in ownstack("plan").stdout


def engine(box: Host) -> str:
    return box.output("systemctl show ownstack-ollama -p Environment --value")


def test_the_models_move_to_another_disk(box: Host, ownstack: Ownstack) -> None:
    box.run("mkdir -p /mnt/large && mount -t tmpfs -o size=3g none /mnt/large && mount -t tmpfs -o ro none /media")
    before = box.output("curl -s http://127.0.0.1:11434/api/tags")
    store = "/var/lib/ownstack/models"
    blobs = box.output(f"cd {store} && find blobs manifests -type f | sort | xargs sha256sum")
    for target, code in (("/media/models", "store-write"), ("/etc", "store-foreign"), (f"{store}/x", "store-same")):
        refused = json.loads(ownstack("models", "move", target, "--yes", "--json", check=False).stdout)
        assert refused["error"]["code"] == code, refused
    assert box.output(f"cd {store} && find blobs manifests -type f | sort | xargs sha256sum") == blobs

    # the engine that is started anew cannot load anything: what serves stays where it was
    fault = "/run/systemd/system/ownstack-ollama.service.d"
    limit = "[Service]\nEnvironment=OLLAMA_LOAD_TIMEOUT=1ns\n"
    box.run(f"mkdir -p {fault} && cat > {fault}/fault.conf && systemctl daemon-reload", data=limit)
    failed = json.loads(ownstack("models", "move", "/mnt/large/models", "--yes", "--json", check=False).stdout)
    box.run(f"rm {fault}/fault.conf && systemctl daemon-reload && systemctl restart ownstack-ollama")
    assert failed["error"]["code"] == "move-reverted", failed
    assert f"OLLAMA_MODELS={store}" in engine(box)
    assert Path(ownstack.settings).read_text() == ownstack.toml
    assert box.output(f"cd {store} && find blobs manifests -type f | sort | xargs sha256sum") == blobs

    moved = ownstack.json("models", "move", "/mnt/large/models", "--yes")
    print(f"moved {moved['moved']} bytes, freed {moved['freed']}")
    assert "OLLAMA_MODELS=/mnt/large/models" in engine(box)
    assert box.output("curl -s http://127.0.0.1:11434/api/tags") == before
    assert box.output("cd /mnt/large/models && find blobs manifests -type f | sort | xargs sha256sum") == blobs
    assert box.run(f"test -e {store}", check=False).returncode == 1
    there = Ownstack(box, toml=Path(ownstack.settings).read_text())
    assert there.json("verify")["ok"]
    assert there.json("up", "--yes", "--no-verify")["changed"] == 0


def test_purge_takes_models_and_the_pulling_account(box: Host, ownstack: Ownstack) -> None:
    ownstack("down", "--purge", "--yes")
    assert box.run("test -e /var/lib/ownstack", check=False).returncode != 0, box.output("find /var/lib/ownstack")
    assert box.run("getent passwd ownstack-pull ownstack-ollama", check=False).returncode != 0
