"""A box that stands is safe from the tests: the part of the suite that acts on its own machine, run beside one.

First the quick ones that do real things as root, then a module of end-to-end tests that starts engines, pulls models
and ends processes on the machine itself. The others act on hosts and overlays of their own, which `test_hosts.py` looks
after.
"""

from __future__ import annotations

import re
import subprocess

import pytest

from ownstack.engine import carry
from tests.hosts import Host
from tests.hosts.kit import packed, processes

# real operations, runner steps and commands, as root, on the machine that they run on
PARTS = (
    *("tests/operations", "tests/plan/test_pyinfra_itself.py", "tests/unit/test_box_steps.py"),
    "tests/unit/test_releases.py",
    *("tests/unit/test_secrets.py", "tests/unit/test_journal.py", "tests/cli/test_commands.py"),
)
END_TO_END = "tests/e2e/test_ollama_engine.py"
# what the services themselves write while they run
ALIVE = r"-name '*-wal' -o -name '*-shm' -o -name '*.log' -o -path '*/wal/*'"


@pytest.fixture(scope="module")
def box(common: Host) -> Host:
    subprocess.run([*common.ssh(), "mkdir /root/kit && tar -x -C /root/kit"], input=packed(), check=True)
    return common


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


def passed(box: Host, command: str) -> int:
    """How many tests have passed beside the box; not one may fail."""
    run = box.run(f"cd /root/kit && {command} 2>&1", check=False)
    said = run.stdout[-3000:]
    assert run.returncode == 0, said
    found = re.search(r"(\d+) passed", said)
    assert found, said
    print(f"{found[0]} beside the box")
    return int(found[1])


def test_the_suite_beside_it_changes_nothing_of_it(box: Host) -> None:
    before = standing(box)
    assert before["processes"].count("ActiveState=active") == 4
    assert passed(box, f"./tests/run --quick {' '.join(PARTS)}") > 100
    assert standing(box) == before


@pytest.mark.slow  # until its time on two processors is known
def test_end_to_end_tests_beside_it_change_nothing_of_it(box: Host) -> None:
    """With what this machine's cache holds, so that nothing is built there."""
    before = standing(box)
    python = f"XDG_CACHE_HOME={carry.cache_root().parent} .venv.dev/bin/python -P -m pytest -q"
    assert passed(box, f"{python} {END_TO_END}") > 15
    assert standing(box) == before
