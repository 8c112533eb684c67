"""A box that stands is safe from the tests: the part of the suite that acts on its own machine, run beside one.

The other end-to-end tests act on hosts and overlays of their own, which `test_hosts.py` looks after.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Provisioned
from tests.hosts import Host, Network
from tests.hosts.kit import CHECKOUT, processes

# real operations, runner steps and commands, as root, on the machine that they run on
PARTS = (
    *("tests/operations", "tests/plan", "tests/unit/test_box_steps.py", "tests/unit/test_releases.py"),
    *("tests/unit/test_secrets.py", "tests/unit/test_journal.py", "tests/cli/test_commands.py"),
)
# what the services themselves write while they run
ALIVE = r"-name '*-wal' -o -name '*-shm' -o -name '*.log' -o -path '*/wal/*'"


@pytest.fixture(scope="module")
def box(network: Network, debian12: Provisioned) -> Iterator[Host]:
    with debian12.clone(network, "stands") as host:
        yield host


def standing(box: Host) -> dict[str, str]:
    """Manifest, process ids, configuration and secrets by their hashes, and every file with its owner and mode."""
    models = "/var/lib/ownstack/models"
    return {
        "manifest": box.output("sha256sum /var/lib/ownstack/manifest.json"),
        "processes": processes(box),
        "configuration": box.output("find /etc/ownstack -type f -exec sha256sum {} + | sort"),
        "files": box.output(
            f"find /opt/ownstack /etc/ownstack /var/lib/ownstack \\( {ALIVE} \\) -prune "
            "-o -printf '%p %y %m %U:%G %l\\n' | sort"
        ),
        "models": box.output(f"find {models} -type f -printf '%p %s %T@\\n' | sort"),
        "accounts": box.output("getent passwd; getent group"),
        "units": box.output("systemctl list-unit-files --no-legend --plain 'ownstack*'"),
    }


def test_the_suite_beside_it_changes_nothing_of_it(box: Host) -> None:
    without = [f"--exclude={name}" for name in (".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis")]
    tar = subprocess.run(["tar", "-cz", *without, "-C", str(CHECKOUT), "."], capture_output=True, check=True)
    subprocess.run([*box.ssh(), "mkdir /root/kit && tar -xz -C /root/kit"], input=tar.stdout, check=True)
    before = standing(box)
    assert before["processes"].count("ActiveState=active") == 4
    run = box.run(f"cd /root/kit && ./tests/run --quick {' '.join(PARTS)} 2>&1", check=False)
    said = run.stdout[-3000:]
    assert run.returncode == 0, said
    passed = re.search(r"(\d+) passed", said)
    assert passed, said
    assert int(passed[1]) > 100, said
    print(f"{passed[0]} beside the box")
    assert standing(box) == before
