"""testinfra on pyinfra's own connection: no second login, no second way to become root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyinfra.api.command import StringCommand
from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

if TYPE_CHECKING:
    from ..engine.session import Session


class PyinfraBackend(BaseBackend):
    """Runs testinfra's commands through a Session."""

    NAME = "pyinfra"

    def __init__(self, session: Session, *args: Any, **kwargs: Any) -> None:
        self.session = session
        super().__init__(session.target.name, *args, **kwargs)

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        # testinfra has quoted the values that it put into `command`
        text = self.get_command(command, *args)
        rc, out, err = self.session.command(StringCommand(text), timeout=120)
        return self.result(rc, self.encode(text), out.encode(), err.encode())


def testinfra_host(session: Session) -> Host:
    backend = PyinfraBackend(session)
    host = Host(backend)
    backend.set_host(host)
    return host
