"""An Ollama that was there before becomes the box's engine, and is given back as it was, byte for byte.

It stands as the vendor's script installs it: program, account, unit, models below the account's home. It was there
before the box: the programs of a provisioned box are taken away first.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.there_already import READY, Theirs
from tests.hosts import Host, Network, Options
from tests.hosts.kit import Ownstack

MINE = "/etc/systemd/system/ollama.service.d"
TOLD = "/etc/ownstack/adopted.env"
PLACES = f"/usr/local/bin/ollama /usr/local/lib/theirs /usr/share/ollama /etc/systemd/system/ollama.service {MINE}"
# what the vendor's script leaves, and a drop-in of the owner's own as `systemctl edit` makes it
INSTALL = f"""
set -e
systemctl stop ownstack-ollama ownstack-open-webui ownstack-n8n
useradd -r -s /bin/false -U -m -d /usr/share/ollama ollama
mkdir -p /usr/local/lib/theirs && cp -a /opt/ownstack/ollama/current/. /usr/local/lib/theirs/
ln -s ../lib/theirs/bin/ollama /usr/local/bin/ollama
mkdir -p /usr/share/ollama/.ollama && cp -a /var/lib/ownstack/models /usr/share/ollama/.ollama/models
chown -R ollama:ollama /usr/share/ollama; chown -R root: /usr/local/lib/theirs
cat > /etc/systemd/system/ollama.service <<END
[Unit]
Description=Ollama Service
After=network-online.target

[Service]
ExecStart=/usr/local/bin/ollama serve
User=ollama
Group=ollama
Restart=always
RestartSec=3
Environment="PATH=/usr/local/bin:/usr/bin:/bin"

[Install]
WantedBy=default.target
END
mkdir {MINE}
printf '[Service]\\nEnvironment="OLLAMA_HOST=0.0.0.0:11434" "OLLAMA_KEEP_ALIVE=7m"\\n' > {MINE}/override.conf
printf '[Service]\\nEnvironment=OLLAMA_NO_CLOUD=0\\nEnvironmentFile={MINE}/mine.env\\n' > {MINE}/zz-mine.conf
echo OLLAMA_MAX_LOADED_MODELS=3 > {MINE}/mine.env
touch -d '2026-01-02 03:04:05' {MINE} {MINE}/* /etc/systemd/system/ollama.service
systemctl daemon-reload
systemctl enable -q --now ollama
{READY}
"""


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with Host(network, "adopt", Options(lower=(debian12.layer,))) as host:
        host.boot()
        host.run(INSTALL)  # it stops the services, so nobody waits until they are ready
        yield host


@pytest.fixture(scope="module")
def theirs(box: Host) -> Theirs:
    return Theirs(box, PLACES)


@pytest.fixture(scope="module")
def before(theirs: Theirs) -> str:
    return theirs.seen()


@pytest.fixture(scope="module")
def ownstack(theirs: Theirs, mirror: Mirror, before: str) -> Ownstack:
    return theirs.adopting(mirror)


def test_it_is_adopted_with_one_drop_in(theirs: Theirs, ownstack: Ownstack, before: str) -> None:
    plan = ownstack.json("plan")["plan"]
    assert any(text.startswith("adopted: ollama.service, Ollama ") for text in plan["reasons"])
    assert any("is restarted once" in text for text in plan["warnings"]), "said beforehand"
    done = ownstack.json("up", "--yes", check=False)  # amber is no green: see below
    said = "\n".join(line for operation in done["operations"] for line in operation.get("said", ()))
    assert f"OLLAMA_HOST of {MINE}/override.conf does not count" in said
    assert f"OLLAMA_NO_CLOUD of {MINE}/zz-mine.conf does not count" in said
    assert f"{MINE}/mine.env is read after ours and wins: OLLAMA_MAX_LOADED_MODELS" in said
    checks = {check["id"]: check for check in done["verify"]["checks"]}
    assert {name for name, check in checks.items() if check["status"] == "failed"} == set()
    assert checks["models-adopted"]["status"] == "amber", "one setting is the owner's"
    assert checks["models-loopback"]["status"] == "ok"
    assert "adopted: ollama.service" in checks["models-engine"]["measured"]
    assert "tokens" in checks["models-chat"]["measured"]
    now = theirs.variables()
    assert now["OLLAMA_HOST"] == "127.0.0.1:11434"
    assert (now["OLLAMA_NO_CLOUD"], now["OLLAMA_KEEP_ALIVE"], now["OLLAMA_MAX_LOADED_MODELS"]) == ("1", "30m", "3")
    assert now["OLLAMA_CONTEXT_LENGTH"]
    assert theirs.listens() == {"127.0.0.1"}
    assert theirs.added(before) == {f"{MINE}/ownstack.conf", MINE}, "a file of ours, and the time of its folder"
    assert theirs.box.output(f"stat -c '%a %U' {TOLD}") == "644 root"


def test_it_is_left_alone_from_then_on(theirs: Theirs, ownstack: Ownstack) -> None:
    pid = theirs.pid()
    assert ownstack.json("up", "--yes", "--no-verify")["changed"] == 0
    assert theirs.pid() == pid
    text = ownstack("status").stdout
    assert "adopted: ollama.service" in text


def test_down_gives_it_back_byte_for_byte(box: Host, theirs: Theirs, ownstack: Ownstack, before: str) -> None:
    said = ownstack("down", "--purge", "--yes")
    assert f"{TOLD} and {MINE}/ownstack.conf: ollama.service runs again as it did before" in said.stderr
    assert theirs.seen() == before
    assert theirs.variables()["OLLAMA_HOST"] == "0.0.0.0:11434"
    assert box.output("ls -d /opt/ownstack /etc/ownstack /var/lib/ownstack 2>/dev/null || true") == ""
