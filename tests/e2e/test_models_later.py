"""The planned model comes later: the small one answers meanwhile, a reboot costs nothing, then it switches."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
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


def test_after_a_reboot_it_goes_on_where_it_stopped_and_switches(
    box: Host, ownstack: Ownstack, registry: FileServer
) -> None:
    done = pull(box)["done"]
    assert done > 0
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
    assert sum(asked.sent for asked in registry.asked[mark:] if asked.method == "GET") < state["total"] - done / 2
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


def test_purge_takes_models_and_the_pulling_account(box: Host, ownstack: Ownstack) -> None:
    ownstack("down", "--purge", "--yes")
    assert box.run("test -e /var/lib/ownstack", check=False).returncode != 0, box.output("find /var/lib/ownstack")
    assert box.run("getent passwd ownstack-pull ownstack-ollama", check=False).returncode != 0
