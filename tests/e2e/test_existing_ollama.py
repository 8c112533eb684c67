"""An Ollama that is somebody else's: a standing box takes it as its engine, leaves out the rest, and goes.

Their engine is a copy of the box's own, in a unit and a folder of its own, with its models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Mirror, Provisioned
from tests.hosts import Host, Network
from tests.hosts.kit import SERVICES, Ownstack

PORT = 11500
URL = f"http://127.0.0.1:{PORT}"
DATA = ("open_webui/webui.db", "n8n/.n8n/database.sqlite", "qdrant/storage/collections", "models/manifests")
START = f"""
set -e
mkdir /srv/theirs
cp -a /opt/ownstack/ollama/current/. /srv/theirs/
cp -a /var/lib/ownstack/models /srv/theirs/models
chown -R root: /srv/theirs
systemd-run -q --unit theirs -E HOME=/srv/theirs -E OLLAMA_HOST=127.0.0.1:{PORT} -E OLLAMA_NO_CLOUD=1 \\
    -E OLLAMA_MODELS=/srv/theirs/models /srv/theirs/bin/ollama serve
for i in $(seq 100); do curl -sf {URL}/api/version && exit; sleep 0.1; done; exit 1
"""


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "theirs") as host:
        host.run(START)
        yield host


@pytest.fixture(scope="module")
def ownstack(box: Host, mirror: Mirror) -> Ownstack:
    made = mirror.ownstack(box)
    names = [model["name"] for model in json.loads(box.output(f"curl -s {URL}/api/tags"))["models"]]
    (chat,) = [name for name in names if name.startswith("smollm2:135m-q8_0")]
    (embedding,) = [name for name in names if name.startswith("all-minilm")]
    made.toml = (
        f'roles = ["models"]\n[sources]\nmirror = "{mirror.files.url}"\n[ollama]\nuse = "existing"\nurl = "{URL}"\n'
        f'[models]\nchat = "{chat}"\nembedding = "{embedding}"\n'
    )
    return made


def theirs(box: Host) -> str:
    """Process, files and models of the engine that is not ours."""
    return (
        box.output("systemctl show theirs -p MainPID -p NRestarts -p ActiveState")
        + box.output(
            "find /srv/theirs -type f -exec sha256sum {} + | sort -k 2; find /srv/theirs -printf '%p %m %u\\n' | sort"
        )
        + str(sorted(model["digest"] for model in json.loads(box.output(f"curl -s {URL}/api/tags"))["models"]))
    )


def test_it_is_used_as_it_is_and_what_is_left_out_goes(box: Host, ownstack: Ownstack) -> None:
    before = theirs(box)
    result = ownstack.json("up", "--yes")
    checks = {check["id"]: check for check in result["verify"]["checks"]}
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert f"answers at {URL}" in checks["models-engine"]["measured"]
    assert "tokens" in checks["models-chat"]["measured"]
    for service in SERVICES:
        assert box.run(f"systemctl cat ownstack-{service}", check=False).returncode != 0, f"{service} has no unit"
        assert box.output(f"id -un ownstack-{service}") == f"ownstack-{service}", "its data keeps its owner"
    listening = {line.rpartition(":")[2] for line in box.output("ss -Hltn | awk '{print $4}'").splitlines()}
    assert listening.isdisjoint({"6333", "8080", "5678", "5679", "11434"}), listening
    left = set(box.output("ls /opt/ownstack").split())
    assert left.isdisjoint({"qdrant", "ollama", "open_webui", "n8n", "node"}), left
    for path in DATA:
        box.run(f"test -s /var/lib/ownstack/{path}")
    assert ownstack("plan", "--exit-code", check=False).returncode == 0
    assert theirs(box) == before


def test_without_consent_nothing_is_added_to_it(box: Host, ownstack: Ownstack, mirror: Mirror) -> None:
    before = theirs(box)
    other = Ownstack(box, variables=ownstack.variables, toml=ownstack.toml.replace("smollm2:135m-q8_0", "other:1b"))
    refused = other("up", "--yes", "--json", check=False)
    assert refused.returncode == 2
    error = json.loads(refused.stdout)["error"]
    assert error["code"] == "existing-lacks-model"
    assert "may_add_models" in error["hint"]
    assert theirs(box) == before


def test_purge_takes_what_is_ours_alone(box: Host, ownstack: Ownstack) -> None:
    before = theirs(box)
    ownstack("down", "--purge", "--yes")
    assert theirs(box) == before
    assert box.output("ls -d /opt/ownstack /etc/ownstack /var/lib/ownstack 2>/dev/null || true") == ""
    assert box.output("getent passwd | grep ^ownstack || true") == ""
    assert box.output("ls /etc/systemd/system | grep ^ownstack || true") == ""
