"""The test hosts themselves: what the other end-to-end tests take for granted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts import PASSWORD, Host, Network, Options, purge
from tests.hosts.commands import run
from tests.hosts.local import LocalBox

DIES = """
import os
from tests.hosts import Host, Network
from tests.hosts.local import LocalBox
network = Network.open()
host = Host(network, "orphan").boot()
LocalBox(network, "orphan-local")
print(network.slot, host.process.pid, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("suite", "version"), [("bookworm", "12."), ("trixie", "13.")])
def test_a_host_boots_a_whole_system(network: Network, suite: str, version: str) -> None:
    with Host(network, f"whole-{suite}", Options(suite=suite)) as host:
        host.boot()
        assert host.output("cat /etc/debian_version").startswith(version)
        assert host.output("systemctl is-system-running") == "running"
        assert host.output("stat -f -c %T /sys/fs/cgroup") == "cgroup2fs"
        assert host.output("cat /proc/1/comm") == "systemd"
        assert host.output("python3 -c 'import ssl; print(1)'") == "1"
        assert host.run("sudo -n id -u", user="tester").stdout.strip() == "0"


def test_no_python_and_a_sudo_password_in_french(network: Network) -> None:
    options = Options(suite="trixie", python=False, locale="fr_FR.UTF-8", sudo="password")
    with Host(network, "french", options) as host:
        host.boot()
        assert host.run("command -v python3", check=False).returncode != 0
        assert host.run("sudo -S -p '' id -u", user="tester", data=f"{PASSWORD}\n").stdout.strip() == "0"
        refused = host.run("sudo -k; sudo -S id", user="tester", data="wrong\n", check=False)
        assert refused.returncode != 0
        assert "mot de passe" in refused.stderr
        assert host.run("sudo -n true", user="tester", check=False).returncode != 0


def test_reboot_uplink_and_the_second_host(network: Network) -> None:
    with Host(network, "first") as first, Host(network, "second") as second:
        first.boot()
        second.boot()
        first.run(f"ping -c 1 -W 2 {second.address}")
        first.run(f"ping -c 1 -W 2 {network.gateway}")
        way_out = "ip route get 192.0.2.77"
        first.run(way_out)
        first.uplink.cut()
        assert first.run(way_out, check=False).returncode != 0
        first.uplink.restore()
        first.run(way_out)
        first.run("echo kept > /etc/kept")
        first.reboot()
        assert first.output("cat /etc/kept") == "kept"
        assert float(first.output("cut -d' ' -f1 /proc/uptime")) < 60


def test_a_clone_of_a_frozen_host_is_the_same_host(network: Network) -> None:
    provisioned = Host(network, "provisioned").boot()
    unit = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
    provisioned.run("cat > /etc/systemd/system/still.service && systemctl enable --now still", data=unit)
    identity = provisioned.output("cat /etc/machine-id /etc/hostname")
    layer = provisioned.freeze()
    with Host(network, "one", Options(lower=(layer,))) as one, Host(network, "two", Options(lower=(layer,))) as two:
        for clone in (one, two):
            clone.boot()
            assert clone.output("systemctl is-active still") == "active"
            assert clone.output("cat /etc/machine-id /etc/hostname") == identity
        one.run("rm /etc/systemd/system/still.service")
        two.run("test -e /etc/systemd/system/still.service")


def test_a_local_box_has_no_systemd_and_leaves_the_machine_alone(network: Network) -> None:
    with LocalBox(network) as box:
        box.run("echo x > /etc/written-in-the-box; touch /tmp/in-the-box")
        assert not Path("/etc/written-in-the-box").exists()
        assert not Path("/tmp/in-the-box").exists()
        assert box.output("cat /proc/1/comm") == "sleep"
        assert not box.output("ls /run/systemd 2>/dev/null || true")
        listening = box.output(
            f"{sys.executable} -c 'import socket; print(socket.create_server((\"127.0.0.1\", 11434)))'"
        )
        assert "11434" in listening
        box.run("(sleep 0.1 &); sleep 0.3")
        assert "Z" not in box.output("ps -e -o stat=")
        layer = box.freeze()
    with LocalBox(network, "again", lower=layer) as again:
        assert again.output("cat /etc/written-in-the-box") == "x"


def _alive(pid: str) -> bool:
    """Whether the process runs; one that its new parent has not waited for yet does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_leftovers_of_a_dead_run_go_and_a_living_run_stays(network: Network) -> None:
    died = subprocess.run(
        [sys.executable, "-c", DIES], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    slot, pid = died.stdout.split()
    assert _alive(pid)
    assert f"ownstack-{slot}-orphan" in run("ip", "netns").stdout
    assert f"run-{slot}" in purge()
    assert not _alive(pid)
    left = run("ip", "netns").stdout + run("nft", "list", "tables").stdout + Path("/proc/mounts").read_text()
    assert f"ownstack-{slot}-" not in left
    assert f"ownstack_hosts_{slot}\n" not in left
    assert f"run-{slot}/" not in left
    assert Path(f"/sys/class/net/{network.bridge}").exists()
