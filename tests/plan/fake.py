"""A host that only remembers: pyinfra's `@fake` connector behind the kit's own Session."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.api.config import Config
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.connectors.util import CommandOutput, OutputLine, make_unix_command_for_host

from ownstack.engine.session import MARK, Session, Target

# a part of the question for the state of paths
PATHS = "sha256sum -- "
Answer = Callable[[str], list[str] | None]


@dataclass
class Seen:
    """What reached the host: commands as the shell gets them, and files with their bytes."""

    commands: list[str] = field(default_factory=list)
    files: list[tuple[str, bytes]] = field(default_factory=list)
    without_sudo: list[str] = field(default_factory=list)

    def text(self) -> str:
        return "\n".join(self.commands) + "\n".join(data.decode("utf-8", "replace") for _, data in self.files)


def paths_of(command: str) -> list[str]:
    """The paths that `PathStates` asks for."""
    words = shlex.split(command)
    return words[words.index("sh", 2) + 1 :]


def steps_answered(command: str, changed: bool) -> list[str]:
    """The runner's answer to a step, or to the dry runs of many (`dry.steps`): the same for each."""
    event = {"event": "result", "changed": changed, "data": {}}
    if " dry.steps " not in command:
        return [json.dumps(event)]
    words = shlex.split(command)
    number = len(json.loads(words[words.index("dry.steps") + 2].rstrip(";"))["steps"])
    return [json.dumps({**event, "changed": False, "data": {"events": [event] * number}})]


def bare(command: str) -> list[str] | None:
    """The answers of a host on which nothing of a box is, and whose runner does all it is asked."""
    if PATHS in command:
        return ["none\t\t\t\t"] * len(paths_of(command))
    if "getent" in command:
        return ["user root", "group root:x:0:", "group render:x:100:"]
    if "/runner" in command and "--json" in command:
        return steps_answered(command, changed=True)
    return None


class FakeSession(Session):
    """A Session whose host is `@fake`; `seen` holds all that was asked of it."""

    def __init__(self, answer: Answer = bare) -> None:
        super().__init__(Target(name="fake", hostname="fake"))
        self._data = {"fake_delay": 0, "fake_delay_jitter": 0}
        inventory = Inventory(([("@fake/box", self._data)], {}))  # type: ignore[no-untyped-call]
        self.config = Config()  # type: ignore[no-untyped-call]
        self.state = State(inventory, self.config)
        self.host = next(iter(inventory))
        self.answer = answer
        self.seen = Seen()

    def connect(self) -> None:
        super().connect()
        connector: Any = self.host.connector
        connector.run_shell_command = self._run
        connector.put_file = self._put

    def _run(
        self, command: str | StringCommand, print_output: bool = False, print_input: bool = False, **given: Any
    ) -> Any:
        plain = StringCommand(command) if isinstance(command, str) else command
        kept = {key: value for key, value in given.items() if key not in ("_timeout", "_get_pty", "_stdin")}
        kept.pop("_success_exit_codes", None)
        made = make_unix_command_for_host(self.state, self.host, plain, **kept)
        self.seen.commands.append(made.get_raw_value())
        if not given.get("_sudo"):
            self.seen.without_sudo.append(plain.get_raw_value())
        text = plain.get_raw_value()
        lines = self.answer(text)
        if lines is None:
            lines = [f"{MARK}0"] if MARK in text else []
        elif MARK in text and not any(line.startswith(MARK) for line in lines):
            lines = [*lines, f"{MARK}0"]
        return True, CommandOutput([OutputLine("stdout", line) for line in lines])

    def _put(self, source: Any, path: str, *_: Any, **given: Any) -> bool:
        data: Any
        if isinstance(source, str):
            with open(source, "rb") as stream:
                data = stream.read()
        else:
            source.seek(0)
            data = source.read()
        self.seen.files.append((path, data.encode() if isinstance(data, str) else data))
        if not given.get("_sudo"):
            self.seen.without_sudo.append(f"put {path}")
        return True
