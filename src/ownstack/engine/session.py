"""One connection to one host: a pyinfra State, shell scripts, files, and runner steps."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import secrets
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.config import Config
from pyinfra.api.connect import disconnect_all
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.output import set_echo
from pyinfra.api.state import State
from pyinfra.context import ctx_host, ctx_state

from ..errors import ConnectionLostError, RunError, UnreachableError
from .inventory import connector_for, inventory_of
from .lean import SSHException

if TYPE_CHECKING:
    from ..plan import Layout
    from .hold import Hold

OnEvent = Callable[[dict[str, Any]], None]
MARK = "__ownstack_rc="
MOST_BEGUN = 64 << 20  # bytes that are written to see whether a host takes a file
# a folder of its own in $d, for the login user alone; what a run that was killed left there goes a day later
FOLDER = r"""[ -w "$d" ] || d=/tmp
find "$d" -maxdepth 1 -type d -name 'ownstack-private.??????????' -user "$(id -u)" -mmin +1440 -exec rm -rf {} + \
    2>/dev/null
umask 077; mktemp -d "$d/ownstack-private.XXXXXXXXXX"
"""
IN_MEMORY = "d=${XDG_RUNTIME_DIR:-/dev/shm}; "
ON_DISK = "d=/var/tmp; "
# pyinfra would carry a sudo password in the command line; ours is read from a file by this askpass,
# and pyinfra is given a word without meaning.
PLACEHOLDER = "see-askpass"
# steps that only look; all others stand in the journal of a run that changes something
READING = frozenset(
    (
        "backup.find", "backup.state", "backup.verify", "box.disk", "box.logs", "box.memory", "box.missing",
        "box.ports", "box.state",
        "files.differences", "gpu.settled", "gpu.state", "ollama.leftovers", "ollama.list", "open_webui.again",
        "open_webui.drift",
        "open_webui.sign_in", "qdrant.of", "snapshots.held",
    )
)  # fmt: skip
# steps that keep a change or put back what was there: a journal that cannot be written, on a full disk say, keeps
# nobody from it
ENDING = frozenset(("restore.finish", "restore.revert", "snapshots.commit", "snapshots.revert"))


@dataclass(frozen=True)
class Target:
    """Where to work: this machine, or `user@host` over SSH."""

    name: str = "local"
    hostname: str = ""
    user: str = ""
    port: int | None = None
    ssh_config: str = ""

    @property
    def local(self) -> bool:
        return self.name == "local"

    def __str__(self) -> str:
        """As messages name it."""
        return "this machine" if self.local else self.name

    @classmethod
    def parse(cls, text: str, ssh_config: str = "") -> Target:
        """`user@server`, `server`, `server:2222` or `local`."""
        if text in ("", "local"):
            return cls()
        user, _, rest = text.rpartition("@")
        hostname, colon, port = rest.rpartition(":")
        if colon and port.isdigit() and ":" not in hostname:
            return cls(name=text, hostname=hostname, user=user, port=int(port), ssh_config=ssh_config)
        return cls(name=text, hostname=rest, user=user, ssh_config=ssh_config)


def _worth_saying(record: logging.LogRecord) -> bool:
    """Of pyinfra's own lines: what is no error is passed on, unless it says nothing; errors we tell ourselves."""
    return record.levelno < logging.ERROR and not record.getMessage().startswith("Failed to load host keys")


logging.getLogger("pyinfra").addFilter(_worth_saying)


class Session:
    """A connected host. Use as a context manager; nothing of pyinfra's stays set afterwards."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.on_event: OnEvent = lambda event: None
        self.layout_runner = ""
        self.held: Hold | None = None
        self._sudo = False
        self.askpass = ""  # the folder with sudo's password on the target
        data: dict[str, Any] = {}
        if not target.local:
            data = {"ssh_hostname": target.hostname}
            if target.user:
                data["ssh_user"] = target.user
            if target.port:
                data["ssh_port"] = target.port
            if target.ssh_config:
                data["ssh_config_file"] = target.ssh_config
        self._data = data
        name = "@local" if target.local else target.hostname
        inventory = inventory_of(connector_for(target.local), name, data)
        self.config = Config(CONNECT_TIMEOUT=10)  # type: ignore[no-untyped-call]
        self.state = State(inventory, self.config)
        self.host = next(iter(inventory))

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect, or raise UnreachableError (exit code 4)."""
        set_echo(self._echo)
        reason = ""
        try:
            with ctx_state.use(self.state):
                self.host.connect(raise_exceptions=True)
                self.state.activate_host(self.host)
        except (ConnectError, PyinfraError, OSError) as error:
            reason = str(error)
        if not self.host.connected:
            raise UnreachableError(
                f"cannot reach {self.target.name}: {reason or 'no connection'}",
                hint=f"try `ssh {self.target.name}` by hand; keys and ~/.ssh/config are used as ssh uses them",
            )

    @property
    def alive(self) -> bool:
        """Whether the connection still stands, as far as this end knows."""
        client = getattr(self.host.connector, "client", None)
        if self.target.local or client is None:
            return True
        transport = client.get_transport()
        return bool(transport and transport.is_active())

    def reset(self) -> None:
        """A fresh State over the same connection, for another deploy."""
        connector, data = self.host.connector, self.host.connector_data
        name = self.host.name
        self.state = State(inventory_of(type(connector), name, self._data), self.config)
        self.host = next(iter(self.state.inventory))
        self.host.connector, self.host.connector_data = connector, data
        connector.state, connector.host = self.state, self.host
        self.host.connected = True
        self.state.activate_host(self.host)

    def hold(self, layout: Layout, what: str) -> None:
        """Hold the box until this session ends; `what` is the command. Raises RunError when somebody else does."""
        from .hold import Hold

        self.held = Hold(self, layout, what)

    def note(self, event: str, step: str, **more: Any) -> None:
        """A line into the box's journal, where this session holds the box.

        Raises RunError where it cannot be written; not in the way of an error of a step, nor of the end of a change or
        of a run, in which all is done.
        """
        if self.held is not None:
            try:
                self.held.note(event, step, **more)
            except RunError:
                if event not in ("failed", "done") and step not in ENDING:
                    raise

    def close(self) -> None:
        if self.held is not None:
            self.held.close()
        with contextlib.suppress(Exception):
            if self.askpass:
                self.command(StringCommand("rm", "-rf", QuoteString(self.askpass)), root=False)
            disconnect_all(self.state)
        ctx_state.reset()
        ctx_host.reset()

    # -- becoming root ---------------------------------------------------------------------------

    def use_sudo(self, password: str | None = None) -> None:
        """Run what needs root through sudo from now on. The password stays in a file 0600 on the target."""
        self._sudo = True
        self.config.SUDO = True
        if password is None:
            return
        self.askpass = self._private_folder()
        # sudo asks an askpass program three times: while `once` is there, only the first is answered
        d = shlex.quote(self.askpass)
        guard = f"if [ -e {d}/once ]; then mv {d}/once {d}/never; elif [ -e {d}/never ]; then exit 1; fi"
        script = f"#!/bin/sh\n{guard}\ncat {d}/word\n"
        self._put_plain((password + "\n").encode(), f"{self.askpass}/word", "600")
        self._put_plain(script.encode(), f"{self.askpass}/ask", "700")
        self.config.SUDO_PASSWORD = PLACEHOLDER
        # both keys under which pyinfra looks for an askpass program it made before
        folder = self.host.get_temp_dir_config()
        for key in ("sudo_askpass_path", f"sudo_askpass_path__{folder}"):
            self.host.connector_data[key] = f"{self.askpass}/ask"

    def _private_folder(self) -> str:
        """A new folder on the target that only the login user and root can enter; in memory where that can be had.

        One that a killed run left a day ago goes.
        """
        rc, out, err = self.shell(IN_MEMORY + FOLDER, root=False)
        if rc != 0:
            raise RunError(f"no private folder on {self.target}: {err.strip()}", hint="free space in /tmp")
        return out.strip().splitlines()[-1]

    @contextlib.contextmanager
    def private(self, text: str) -> Iterator[str]:
        """The path of a file on the target with a secret in it, gone afterwards."""
        folder = self._private_folder()
        try:
            self._put_plain(text.encode(), f"{folder}/word", "600")
            yield f"{folder}/word"
        finally:
            self.command(StringCommand("rm", "-rf", QuoteString(folder)), root=False)

    def sudo_works(self) -> bool:
        """Try the password once; a wrong one does not count towards a lock-out of three."""
        once, ask, never = (QuoteString(f"{self.askpass}/{name}") for name in ("once", "ask", "never"))
        self.command(StringCommand(": >", once), root=False)
        tried = StringCommand("SUDO_ASKPASS=", ask, " LC_ALL=C sudo -A -k true; rc=$?; rm -f ", never, "; (exit $rc)",
                              _separator="")  # fmt: skip
        rc, _, _ = self.command(tried, root=False)
        return rc == 0

    def _put_plain(self, data: bytes, path: str, mode: str) -> None:
        with self._sending():
            self.host.put_file(io.BytesIO(data), path, _sudo=False)
        self.command(StringCommand("chmod", mode, QuoteString(path)), root=False)

    # -- doing things ----------------------------------------------------------------------------

    def rights(self) -> dict[str, Any]:
        """pyinfra's arguments for a command that changes the box."""
        return self._arguments(None)

    def _arguments(self, root: bool | None) -> dict[str, Any]:
        use = self._sudo if root is None else (root and self._sudo)
        if not use:
            return {"_sudo": False}
        return {"_sudo": True, "_sudo_password": self.config.SUDO_PASSWORD}

    def shell(self, script: str, timeout: int = 60, root: bool | None = None) -> tuple[int, str, str]:
        """Run a script of our own; its exit status and outputs. `root=False` runs it as the login user.

        The script must be constant text: values belong into `command`.
        """
        return self.command(StringCommand(script), timeout=timeout, root=root)

    def command(
        self, command: StringCommand, timeout: int | None = 60, root: bool | None = None, print_output: bool = False
    ) -> tuple[int, str, str]:
        """Run a command built with pyinfra's quoting types."""
        marked = StringCommand("(", command, "\n)", f"; printf '\\n{MARK}%s\\n' \"$?\"")
        try:
            with ctx_state.use(self.state), ctx_host.use(self.host):
                _, output = self.host.run_shell_command(
                    marked, print_output=print_output, _timeout=timeout, **self._arguments(root)
                )
        except TimeoutError:
            return 124, "", f"no end after {timeout} s"
        except (OSError, EOFError, ConnectError) as error:
            raise self.lost(str(error)) from error
        except SSHException as error:
            if not self.alive:
                raise self.lost(str(error)) from error
            raise UnreachableError(
                f"{self.target} opens no further channel: {error}",
                hint="run again; MaxSessions in its sshd_config has to be at least 3 (10 is the default)",
            ) from error
        lines = output.stdout_lines
        for index in range(len(lines) - 1, -1, -1):
            if lines[index].startswith(MARK):
                rc = int(lines[index][len(MARK) :])
                text = "\n".join(lines[:index])
                return rc, text[:-1] if text.endswith("\n") else text, output.stderr
        if not self.alive:
            raise self.lost("it ended in the middle of a command")
        return 255, output.stdout, output.stderr

    def lost(self, why: str, hint: str = "run again") -> UnreachableError:
        """The error of a connection that broke. One to this machine does not come back by itself."""
        kind = UnreachableError if self.target.local else ConnectionLostError
        return kind(f"the connection to {self.target} broke{f': {why}' if why else ''}", hint=hint)

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        """Files go over a channel that has errors of its own for a connection that breaks."""
        try:
            yield
        except (OSError, EOFError, PyinfraError, SSHException) as error:
            if self.alive:
                raise
            raise self.lost(str(error)) from error

    @contextlib.contextmanager
    def _way(self) -> Iterator[dict[str, str]]:
        """pyinfra's argument for where the login user lays a file that root then takes: in a folder that nobody else
        may enter, because pyinfra lays it readable for all. On a disk, where there is one: it may be large.
        """
        if not self._sudo or self.target.local:
            yield {}
            return
        rc, out, err = self.shell(ON_DISK + FOLDER, root=False)
        if rc != 0:
            raise RunError(f"no private folder on {self.target}: {err.strip()}", hint="free space in /var/tmp")
        folder = out.strip().splitlines()[-1]
        try:
            yield {"remote_temp_filename": f"{folder}/file"}
        finally:
            with contextlib.suppress(UnreachableError):
                self.command(StringCommand("rm", "-rf", QuoteString(folder)), root=False)

    def put(self, data: bytes | Path, path: str, mode: str = "0644") -> None:
        """Write a file on the target as root, without a moment in which others may write it, or read it on its way."""
        temporary = f"{path}.{secrets.token_hex(4)}"
        source = str(data) if isinstance(data, Path) else io.BytesIO(data)
        with self._way() as way, ctx_state.use(self.state), ctx_host.use(self.host):
            try:
                with self._sending():
                    sent = self.host.put_file(source, temporary, **way, **self._arguments(None))
            except (OSError, PyinfraError) as error:
                why = self.refusal(temporary, data.stat().st_size if isinstance(data, Path) else len(data))
                raise RunError(f"cannot write {path} on {self.target}: {why or error}") from error
            if not sent:
                raise RunError(f"cannot write {path} on {self.target}")
        command = StringCommand(
            "chmod", mode, QuoteString(temporary), "&&", "mv", "-f", QuoteString(temporary), QuoteString(path)
        )
        rc, _, err = self.command(command)
        if rc != 0:
            raise RunError(f"cannot write {path} on {self.target}: {err.strip()}")

    def refusal(self, path: str, size: int, root: bool | None = None) -> str:
        """Why a file that was not taken cannot be written, in the host's own words; empty where it can.

        It is begun there once more, for SFTP says "Failure" and nothing else.
        """
        word = QuoteString(path)
        begun = StringCommand("head", "-c", str(min(size, MOST_BEGUN)), "/dev/zero >", word)
        rc, _, err = self.command(
            StringCommand("LC_ALL=C; export LC_ALL;", begun, "; rc=$?; rm -f", word, "; (exit $rc)"), root=root
        )
        return f"{path} cannot be written: {err.strip()}" if rc != 0 else ""

    # -- runner steps ----------------------------------------------------------------------------

    def step(
        self, name: str, spec: dict[str, Any], timeout: int | None = None, looking: bool = False
    ) -> dict[str, Any]:
        """Run a runner step and return its data. Raises RunError with the step's own message.

        In a run that holds the box the journal says when it begins and ends, unless it only looks.
        """
        command = step_command(self.layout_runner, name, spec)
        noted = not (looking or name in READING or spec.get("dry"))
        if noted:
            self.note("begin", name)
        with self.events():
            rc, out, err = self.command(command, timeout=timeout, print_output=True)
        try:
            result = read_result(name, rc, out, err)
        except RunError as error:
            if noted:
                self.note("failed", name, code=error.code)
            raise
        if noted:
            self.note("end", name, changed=bool(result["changed"]))
        return result["data"]  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def events(self) -> Iterator[None]:
        """Let progress events of commands that print them reach `on_event`."""
        before = self.state.print_output
        self.state.print_output = True
        try:
            yield
        finally:
            self.state.print_output = before

    def _echo(self, message: Any = None, **_: Any) -> None:
        text = str(message)
        start = text.find('{"event":')
        if start < 0:
            return
        with contextlib.suppress(ValueError):
            event = json.loads(text[start:])
            if event.get("event") == "progress":
                self.on_event(event)


def step_command(runner: str, name: str, spec: dict[str, Any]) -> StringCommand:
    """The command of a runner step. A specification never holds a secret, so it may be seen."""
    return StringCommand(
        QuoteString(runner), QuoteString(name), "--json", QuoteString(json.dumps(spec, sort_keys=True))
    )


def read_result(name: str, rc: int, out: str, err: str) -> dict[str, Any]:
    """The last event of a step. Raises RunError with the step's message and hint."""
    for line in reversed(out.splitlines()):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "result":
                return event
            if isinstance(event, dict) and event.get("event") == "error":
                raise RunError(event["message"], hint=event.get("hint", ""), code=event.get("code", "step-failed"))
    tail = "\n".join((err or out).splitlines()[-5:])
    raise RunError(f"the step {name} gave no answer (exit status {rc}): {tail}", hint="run the command again with -vv")
