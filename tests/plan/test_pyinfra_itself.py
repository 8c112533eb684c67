"""`pyinfra inventory/local.py deploy.py` works in the checkout, with pyinfra's own command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ownstack.engine import carry, plain
from ownstack.hardware.facts import load as load_probe
from ownstack.state import BoxState
from tests.plan.fake import FakeSession
from tests.unit import machines

ROOT = Path(__file__).parents[2]


def test_a_dry_run_shows_the_operations_and_changes_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: the inventory works without sudo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = tmp_path / "box"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OWNSTACK_")},
        "OWNSTACK_ROLES": '["qdrant"]',
        "OWNSTACK_ROOT": str(root),
        "OWNSTACK_PREFIX": "drytest",
        "OWNSTACK_QDRANT__PORT": str(port),
        "OWNSTACK_HARDWARE__CPU_ONLY": "true",
        # a mirror is not asked whether it answers: the run is quick on every network
        "OWNSTACK_SOURCES__MIRROR": str(tmp_path / "mirror"),
        "PYINFRA_PROGRESS": "off",
    }
    done = subprocess.run(
        [str(Path(sys.executable).with_name("pyinfra")), "inventory/local.py", "deploy.py", "--dry"],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for name in (
        "Base: accounts",
        "Base: runner",
        "Qdrant: program",
        "Qdrant: service",
        "Base: record that it is done",
    ):
        assert name in said
    assert not root.exists()


def test_what_is_fetched_here_comes_from_the_mirror_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`up` says so before it carries a plan out; here nobody else does."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("OWNSTACK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OWNSTACK_SOURCES__MIRROR", "/mnt/mirror")
    monkeypatch.setattr(plain, "collect", lambda session: load_probe(machines.PROBES / "bare-server.json"))
    monkeypatch.setattr(plain, "read_state", lambda session, layout: BoxState())
    carry.configure(lambda text: None, "")
    with FakeSession() as session:
        session.use_sudo()
        session.host.name = "server"
        monkeypatch.setattr(plain, "_Within", lambda: session)
        made = plain.plan_for_current_host()
    assert made.mirror == "/mnt/mirror"
    assert carry.mirror_of() == "/mnt/mirror"
    carry.configure(lambda text: None, "")
