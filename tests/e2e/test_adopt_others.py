"""An existing Ollama of a distribution's package, and one that is a user's own service: adopted and given back.

Both stand on bare hosts, so that after `down --purge` the whole host can be compared with what it was before. That
of the vendor's script is in test_adopt.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Mirror, Provisioned
from tests.e2e.there_already import READY, Theirs
from tests.hosts import Host, Network, Options, footprint
from tests.hosts.footprint import Footprint

pytestmark = pytest.mark.slow

VENDOR = "/usr/lib/systemd/system/ollama.service"
OURS = "/etc/systemd/system/ollama.service.d"  # for drop-ins of whoever owns the machine: not there yet
HOME = "/home/tester"
MINE = f"{HOME}/.config/systemd/user/ollama.service"
# the box's own file, which a drop-in names
TOLD, TOLD_HOME = "/etc/ownstack/adopted.env", f"{HOME}/.config/ownstack/adopted.env"
# what a distribution's package brings: account, unit, preset, a drop-in of the vendor's, a file for its settings
PACKAGE = f"""
set -e
cd "$LAYER"
install -D opt/ownstack/ollama/releases/*/bin/ollama /usr/bin/ollama
mkdir -p /usr/lib/ollama && cp -a opt/ownstack/ollama/releases/*/lib/ollama/. /usr/lib/ollama/
chown -R root: /usr/lib/ollama /usr/bin/ollama
echo 'u ollama - "Ollama" /var/lib/ollama' > /usr/lib/sysusers.d/ollama.conf && systemd-sysusers ollama.conf
mkdir -p /var/lib/ollama && cp -a var/lib/ownstack/models/. /var/lib/ollama/
chown -R ollama:ollama /var/lib/ollama && chmod 750 /var/lib/ollama
cat > {VENDOR} <<END
[Unit]
Description=Ollama Service
Wants=network-online.target
After=network.target network-online.target

[Service]
ExecStart=/usr/bin/ollama serve
WorkingDirectory=/var/lib/ollama
Environment="HOME=/var/lib/ollama" "OLLAMA_MODELS=/var/lib/ollama"
EnvironmentFile=-/etc/default/ollama
User=ollama
Group=ollama
Restart=on-failure
RestartSec=3
PrivateTmp=yes
ProtectSystem=full
ProtectHome=yes

[Install]
WantedBy=multi-user.target
END
mkdir {VENDOR}.d
printf '[Service]\\nEnvironment=OLLAMA_KEEP_ALIVE=7m OLLAMA_LOAD_TIMEOUT=9m\\n' > {VENDOR}.d/10-vendor.conf
cat > /etc/default/ollama <<'END'
# of this machine
OLLAMA_HOST=0.0.0.0:11434
OLLAMA_MAX_LOADED_MODELS="3"
OLLAMA_MAX_QUEUE=77
END
echo 'enable ollama.service' > /usr/lib/systemd/system-preset/80-ollama.preset
touch -d '2026-01-02 03:04:05' {VENDOR} {VENDOR}.d {VENDOR}.d/* /etc/default/ollama
systemctl daemon-reload
systemctl preset -q ollama && systemctl start ollama
{READY}
"""
# a user's own: program below ~/.local, models where Ollama puts them by itself, a drop-in folder that is not there
PROGRAM = f"""
set -e
loginctl enable-linger tester
mkdir -p {HOME}/.local {HOME}/.ollama
cd "$LAYER"
cp -r opt/ownstack/ollama/releases/*/bin opt/ownstack/ollama/releases/*/lib {HOME}/.local/
cp -r var/lib/ownstack/models {HOME}/.ollama/
chown -R tester: {HOME}/.local {HOME}/.ollama
"""
SERVICE = f"""
set -e
mkdir -p ~/.config/systemd/user ~/.local/state && chmod 700 ~/.config/systemd/user
cat > {MINE} <<END
[Unit]
Description=My Ollama

[Service]
ExecStart=%h/.local/bin/ollama serve
Environment=OLLAMA_HOST=0.0.0.0:11434
Restart=always

[Install]
WantedBy=default.target
END
touch -d '2026-01-02 03:04:05' {MINE}
systemctl --user daemon-reload
systemctl --user enable -q --now ollama
{READY}
"""


@pytest.fixture(scope="module")
def packaged(network: Network, debian12: Provisioned) -> Iterator[Theirs]:
    layer = debian12.layer
    with Host(network, "packaged", Options(shared=(layer,), packages=("zstd",))) as host:
        host.boot()
        host.run(f"LAYER={layer}\n{PACKAGE}")
        places = f"/usr/bin/ollama /usr/lib/ollama /var/lib/ollama {VENDOR} {VENDOR}.d /etc/default/ollama"
        yield Theirs(host, places)


@pytest.fixture(scope="module")
def owned(network: Network, debian12: Provisioned) -> Iterator[Theirs]:
    layer = debian12.layer
    with Host(network, "owned", Options(shared=(layer,), packages=("zstd",), sudo="none")) as host:
        host.boot()
        host.run(f"LAYER={layer}\n{PROGRAM}")
        host.run(SERVICE, user="tester")
        yield Theirs(host, f"{HOME}/.local/bin {HOME}/.local/lib {HOME}/.ollama {MINE}", "tester")


class Story:
    """How a host was before, and calls of `ownstack` by which its Ollama is adopted."""

    def __init__(self, theirs: Theirs, mirror: Mirror) -> None:
        self.theirs = theirs
        self.seen, self.host = theirs.seen(), footprint.take(theirs.box)
        self.ownstack = theirs.adopting(mirror, theirs.user)

    def given_back(self) -> None:
        assert self.theirs.seen() == self.seen
        now = self.theirs.variables()
        assert "OLLAMA_NO_CLOUD" not in now
        assert now["OLLAMA_HOST"] == "0.0.0.0:11434"
        assert self.theirs.listens() <= {"*", "0.0.0.0"}

    def nothing_left(self) -> None:
        later: Footprint = footprint.take(self.theirs.box)
        assert self.host.differences(later) == []


@pytest.fixture(scope="module")
def package(packaged: Theirs, mirror: Mirror) -> Story:
    return Story(packaged, mirror)


@pytest.fixture(scope="module")
def service(owned: Theirs, mirror: Mirror) -> Story:
    return Story(owned, mirror)


def adopted(story: Story, dropin: str, told: str) -> str:
    """`up` makes of it an engine with a drop-in more and its own files untouched. What was said."""
    plan = story.ownstack.json("plan")["plan"]
    assert any(text.startswith("adopted: ollama.service, Ollama ") for text in plan["reasons"])
    assert any("is restarted once" in text for text in plan["warnings"]), "said beforehand"
    done = story.ownstack.json("up", "--yes", check=False)
    print(f"up: {done['seconds']} s")
    checks = {check["id"]: check for check in done["verify"]["checks"]}
    assert {name: check for name, check in checks.items() if check["status"] == "failed"} == {}
    assert "adopted: ollama.service" in checks["models-engine"]["measured"]
    assert "tokens" in checks["models-chat"]["measured"]
    assert [checks[name]["status"] for name in ("models-adopted", "models-loopback")] == ["ok", "ok"]
    now = story.theirs.variables()
    assert (now["OLLAMA_HOST"], now["OLLAMA_NO_CLOUD"], now["OLLAMA_KEEP_ALIVE"]) == ("127.0.0.1:11434", "1", "30m")
    assert story.theirs.listens() == {"127.0.0.1"}
    assert story.theirs.added(story.seen) == set(), "nothing of its own differs"
    folder = dropin.rpartition("/")[0]
    found = story.theirs.box.output(f"stat -c '%a %U %n' {folder} {folder}/* {told}").splitlines()
    user = story.theirs.user
    assert found == [f"755 {user} {folder}", f"644 {user} {dropin}", f"644 {user} {told}"]
    assert dropin in story.theirs.show("DropInPaths")
    assert story.theirs.show("EnvironmentFiles").splitlines()[-1].startswith(f"EnvironmentFiles={told} ")
    return "\n".join(line for operation in done["operations"] for line in operation.get("said", ()))


def test_a_package_is_adopted_with_one_drop_in(package: Story) -> None:
    assert package.theirs.listens() <= {"*", "0.0.0.0"}, "its own file of variables opens it"
    said = adopted(package, f"{OURS}/ownstack.conf", TOLD)
    assert f"OLLAMA_KEEP_ALIVE of {VENDOR}.d/10-vendor.conf does not count while the box stands" in said
    for name in ("OLLAMA_HOST", "OLLAMA_MAX_LOADED_MODELS"):
        assert f"{name} of /etc/default/ollama does not count while the box stands" in said
    now = package.theirs.variables()
    assert now["OLLAMA_MAX_LOADED_MODELS"] == "2"
    assert (now["OLLAMA_MAX_QUEUE"], now["OLLAMA_LOAD_TIMEOUT"]) == ("77", "9m"), "what the box does not set stays"


def test_down_gives_a_package_back_and_up_adopts_it_again(package: Story) -> None:
    said = package.ownstack("down", "--yes").stderr
    assert f"{TOLD} and {OURS}/ownstack.conf: ollama.service runs again as it did before" in said
    package.given_back()
    assert package.theirs.box.output(f"ls -d {OURS} {TOLD} /opt/ownstack 2>/dev/null || true") == ""
    package.theirs.box.run("test -d /etc/ownstack -a -d /var/lib/ownstack")
    adopted(package, f"{OURS}/ownstack.conf", TOLD)


def test_purge_gives_a_package_back_byte_for_byte(package: Story) -> None:
    package.ownstack("down", "--purge", "--yes")
    package.given_back()
    package.nothing_left()


def test_a_users_own_service_is_adopted_with_one_drop_in(service: Story) -> None:
    adopted(service, f"{MINE}.d/ownstack.conf", TOLD_HOME)
    pid = service.theirs.pid()
    assert service.ownstack.json("up", "--yes", "--no-verify")["changed"] == 0
    assert service.theirs.pid() == pid, "left alone from then on"


def test_down_gives_a_users_own_service_back_and_up_adopts_it_again(service: Story) -> None:
    service.ownstack("down", "--yes")
    service.given_back()
    assert service.theirs.box.output(f"ls -d {MINE}.d {TOLD_HOME} 2>/dev/null || true") == ""
    adopted(service, f"{MINE}.d/ownstack.conf", TOLD_HOME)


def test_purge_gives_a_users_own_service_back_byte_for_byte(service: Story) -> None:
    service.ownstack("down", "--purge", "--yes")
    service.given_back()
    service.nothing_left()
