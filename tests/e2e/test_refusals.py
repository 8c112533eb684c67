"""Bad luck and bad input on real hosts: a clear error, an unchanged host, and the next `up` converges.

A wrong sudo password is in test_debian13_sudo.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Mirror
from tests.hosts import Host, Network, Options, footprint
from tests.hosts.kit import Ownstack
from tests.hosts.serve import Fault

ONLY_QDRANT = 'roles = ["qdrant"]\n'


def small(mirror: Mirror, host: Host, settings: str = "") -> Ownstack:
    """A box of one service, so that each case takes seconds."""
    ownstack = mirror.ownstack(host)
    ownstack.toml = settings + ONLY_QDRANT + ownstack.toml
    return ownstack


def refusal(ownstack: Ownstack, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and error of an `up` that must not succeed."""
    result = ownstack("up", "--yes", "--json", *words, check=False)
    error = json.loads(result.stdout)["error"]
    assert error["message"]
    assert error["hint"]
    return result.returncode, error


@pytest.fixture
def host(network: Network) -> Iterator[Host]:
    with Host(network, "refusing") as made:
        yield made.boot()


@pytest.fixture
def archive(mirror: Mirror) -> Iterator[str]:
    """The path of Qdrant's archive on the mirror; faults set on it are gone afterwards."""
    (url,) = [one.url for url, one in mirror.lab.made.items() if "/qdrant/" in url]
    yield "/" + url.removeprefix("https://")
    mirror.files.faults.clear()
    mirror.files.rate = None


def test_without_sudo_a_system_wide_box_is_refused(network: Network, mirror: Mirror) -> None:
    with Host(network, "no-sudo", Options(sudo="none")) as host:
        host.boot()
        before = footprint.take(host)
        ownstack = small(mirror, host, 'scope = "system"\n')
        ownstack.user = "tester"
        assert refusal(ownstack)[1]["code"] == "no-sudo"
        assert before.differences(footprint.take(host)) == []


def test_a_foreign_service_on_the_port_is_named(host: Host, mirror: Mirror) -> None:
    host.run("systemd-run --unit theirs python3 -m http.server --bind 127.0.0.1 6333")
    host.run("for i in $(seq 50); do curl -s http://127.0.0.1:6333 >/dev/null && exit; sleep 0.1; done; exit 1")
    before = footprint.take(host)
    status, error = refusal(small(mirror, host))
    assert status in (1, 2, 3)
    assert "theirs.service" in error["message"]
    assert "6333" in error["message"]
    assert before.differences(footprint.take(host)) == []


def test_wrong_bytes_are_never_installed(host: Host, mirror: Mirror, archive: str) -> None:
    mirror.files.faults[archive] = Fault(flip=True)
    status, error = refusal(small(mirror, host))
    assert (status, error["code"]) == (1, "fetch-hash")
    assert host.run("ls -d /opt/ownstack/qdrant/releases/*", check=False).stdout == ""
    mirror.files.faults.clear()
    assert small(mirror, host).json("up", "--yes")["verify"]["ok"]


def test_a_first_run_that_failed_can_be_taken_away(host: Host, mirror: Mirror, archive: str) -> None:
    """The whole box is asked for and a download fails: `down --purge` knows what there is already."""
    before = footprint.take(host)
    mirror.files.faults[archive] = Fault(flip=True)
    ownstack = mirror.ownstack(host)
    assert refusal(ownstack)[1]["code"] == "fetch-hash"
    assert "+ accounts: " in "\n".join(before.differences(footprint.take(host)))
    ownstack("down", "--purge", "--yes")
    assert before.differences(footprint.take(host)) == []


def test_a_download_cut_off_is_told_and_continued(host: Host, mirror: Mirror, archive: str) -> None:
    mirror.files.faults[archive] = Fault(cut_after=5_000_000)
    status, error = refusal(small(mirror, host))
    assert (status, error["code"]) == (1, "fetch-network")
    assert host.run("ls -d /opt/ownstack/qdrant/releases/*", check=False).stdout == ""
    mirror.files.faults.clear()
    seen = len(mirror.files.asked)
    assert small(mirror, host).json("up", "--yes")["verify"]["ok"]
    (again,) = [asked for asked in mirror.files.asked[seen:] if asked.path == archive]
    assert again.range.startswith("bytes=")
    assert host.output("find /opt/ownstack /var/lib/ownstack -name '*.part'") == ""


def test_an_unreachable_host_is_exit_4(network: Network, host: Host, mirror: Mirror) -> None:
    ownstack = small(mirror, host)
    host.uplink.execute("ip", "link", "set", "eth0", "down")
    status, error = refusal(ownstack)
    assert (status, error["code"]) == (4, "unreachable")
    assert "refusing" in error["message"]


def test_an_unknown_setting_is_named_before_anything(host: Host, mirror: Mirror) -> None:
    ownstack = small(mirror, host)
    ownstack.toml = ownstack.toml.replace("[models]", "[modles]")
    status, error = refusal(ownstack)
    assert (status, error["code"]) == (2, "config")
    assert "models" in error["message"] + error["hint"]
    assert Path(ownstack.settings).name in error["message"]
