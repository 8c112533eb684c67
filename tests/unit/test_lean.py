"""pyinfra without what a run does not use is still pyinfra, whatever is imported before or after it."""

from __future__ import annotations

import subprocess
import sys

import pytest


def said(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.split()


LOADED = "\nimport sys; print(*{'paramiko', 'invoke.tasks', 'asyncio', 'unittest.mock'} & set(sys.modules))"


def test_a_local_session_needs_neither_paramiko_nor_asyncio() -> None:
    code = (
        "from ownstack.engine.session import Session, Target\n"
        "with Session(Target()) as session:\n print(session.shell('echo here')[1])\n session.reset()\n"
        " print(session.shell('echo again')[1])"
    )
    assert said(code + LOADED) == ["here", "again"]


def test_over_ssh_it_is_the_real_paramiko() -> None:
    """All that pyinfra's core, its connector and ours take for paramiko's error is one class."""
    code = (
        "from ownstack.engine import lean, session\n"
        "s = session.Session(session.Target.parse('me@127.0.0.1:1'))\n"
        "import paramiko, pyinfra.api.facts as facts, pyinfra.api.operations as operations\n"
        "import pyinfra.connectors.ssh as ssh, pyinfra.api.util as util\n"
        "found = {m.SSHException for m in (paramiko, paramiko.ssh_exception, facts, operations, ssh, util, session)}\n"
        "print(len(found), lean.SSHException in found)\n"
        "print(issubclass(paramiko.AuthenticationException, lean.SSHException), paramiko.config.invoke.__name__)"
    )
    assert said(code) == ["1", "True", "True", "FakeInvoke"]


@pytest.mark.parametrize("first", ["paramiko", "pyinfra.api", "unittest.mock", "asyncio"])
def test_what_was_imported_before_stays(first: str) -> None:
    code = (
        f"import sys, {first}\nbefore = sys.modules[{first!r}]\nfrom ownstack.engine import lean\nimport paramiko\n"
        f"print(sys.modules[{first!r}] is before, paramiko.SSHException is lean.SSHException)"
    )
    assert said(code) == ["True", "True"]


def test_what_is_imported_later_is_real() -> None:
    code = (
        "import ownstack.engine.session\nimport unittest.mock, paramiko\n"
        "print(unittest.mock.MagicMock.__name__, paramiko.PKey.__module__)"
    )
    assert said(code) == ["MagicMock", "paramiko.pkey"]


def test_a_session_has_its_own_connector_and_pyinfra_keeps_all() -> None:
    code = (
        "from ownstack.engine.session import Session, Target\nfrom pyinfra.api.inventory import Inventory\n"
        "for target in (Target(), Target.parse('me@box')):\n"
        " s = Session(target); print(s.host.name, type(s.host.connector).__name__)\n"
        " s.reset(); print(s.host.name, type(s.host.connector).__name__)\n"
        "print(next(iter(Inventory((['@docker/image'], {})))).connector_cls.__name__)"
    )
    local, far = ["@local", "LocalConnector"], ["box", "SSHConnector"]
    assert said(code) == [*local, *local, *far, *far, "DockerConnector"]
