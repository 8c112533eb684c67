"""The planned model comes later: the small one answers meanwhile, a reboot costs nothing, then it switches.

Then its store moves to another disk.
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
from tests.hosts import Host, Network
from tests.hosts.kit import Ownstack
from tests.hosts.registry import Registry
from tests.hosts.serve import Answer, FileServer

CHAT = "smollm2:135m-q8_0"
SLOW = 500_000  # bytes a second of each connection; the engine fetches in two


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
    """An engine that goes down with its host may lose what it has noted of a part: that is fetched anew, not more."""
    assert pull(box)["done"] > 0
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
    assert sum(asked.sent for asked in registry.asked[mark:] if asked.method == "GET") < 1.05 * state["total"]
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
