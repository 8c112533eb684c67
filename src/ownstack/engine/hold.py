"""Who works on a box holds it: one at a time, as long as the connection stands. What is done is journalled first.

A program on the target holds a lock (`flock`) and appends lines to the box's journal. Its standard input is a channel
of the connection: when that ends, the program ends, and the lock with it. When nothing is heard for `SILENCE_S` it ends
too, so that a laptop that fell asleep holds nothing either.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import socket
import subprocess
import threading
import time
from importlib import resources
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.connectors.util import make_unix_command_for_host

from ..errors import ConnectionLostError, HeldError, OwnstackError, RunError, UnreachableError

if TYPE_CHECKING:
    from ..plan import Layout
    from .session import Session

BEAT_S = 10.0
SILENCE_S = 40
ANSWER_S = 60.0
# the journal is cut to its newer half when it has grown to this, in bytes
MOST, KEPT = 400_000, 200_000

# $1 prefix, $2 journal, $3 who, $4 seconds of silence, $5 and $6 bytes of the journal, $7 runner/hold.py, which does
# the same faster. Without Python a shell does it, which starts three programs a line.
SCRIPT = r"""
if command -v python3 >/dev/null 2>&1; then exec python3 -I -c "$7" "$1" "$2" "$3" "$4" "$5" "$6"; fi
umask 022
if [ "$(id -u)" = 0 ]; then f=/run/$1.lock
elif [ -w "/run/user/$(id -u)" ]; then f=/run/user/$(id -u)/$1.lock
else f=/tmp/$1-$(id -u).lock; fi
command -v flock >/dev/null 2>&1 || { echo "missing flock"; exit; }
[ ! -L "$f" ] && ( : >> "$f" ) 2>/dev/null || { echo "missing $f"; exit; }
exec 9>>"$f"
i=0
until flock -n 9; do
  i=$((i + 1))
  [ $i -lt 30 ] || { printf 'busy '; head -n 1 "$f"; exit; }
  sleep 0.1
done
printf '%s since %s\n' "$3" "$(date '+%Y-%m-%d %H:%M')" > "$f"
j=$2
if [ -f "$j" ] && [ "$(wc -c < "$j")" -gt "$5" ]; then
  tail -c "$6" "$j" > "$j.part" && mv "$j.part" "$j"
fi 2>/dev/null
echo held
while line=$(timeout "$4" head -n 1 9>&-); do
  case $line in
    "") break ;;
    beat) echo ok; continue ;;
    "b "*) [ -d "${j%/*}" ] || mkdir -p "${j%/*}" ;;
    *) [ -d "${j%/*}" ] || { echo ok; continue; } ;;
  esac 9>&- 2>/dev/null
  if e=$({ printf '%s\n' "${line#? }" >> "$j" && { sync -d "$j" 2>/dev/null || sync; }; } 2>&1 9>&-); then echo ok
  else echo "no $e"; fi
done
: > "$f"
"""


class Channel(Protocol):
    """A program on the target with its standard input and output."""

    def send(self, line: str) -> None:
        """Raises OSError when it has ended."""

    def answer(self) -> str:
        """The next line; empty when it has ended. Raises OSError (also when nothing came for `ANSWER_S`)."""

    def close(self) -> None: ...

    def give_up(self) -> None:
        """Nobody answers there any more: whatever else waits on the same connection is to know it too."""


class OverSSH:
    def __init__(self, client: Any, command: str) -> None:
        self.channel = client.get_transport().open_session(timeout=30)
        self.channel.settimeout(ANSWER_S)
        self.channel.exec_command(command)
        self.lines = self.channel.makefile("r")

    def send(self, line: str) -> None:
        self.channel.sendall(f"{line}\n".encode())

    def answer(self) -> str:
        return str(self.lines.readline()).strip()

    def close(self) -> None:
        self.channel.close()

    def give_up(self) -> None:
        self.channel.get_transport().close()


class Here:
    def __init__(self, command: str) -> None:
        # a session of its own: Ctrl-C means this program, which may have something to put back before it lets go
        self.process = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.input = cast(IO[bytes], self.process.stdin)
        self.output = cast(IO[bytes], self.process.stdout)

    def send(self, line: str) -> None:
        self.input.write(f"{line}\n".encode())
        self.input.flush()

    def answer(self) -> str:
        return self.output.readline().decode().strip()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.input.close()
        self.process.wait(5)

    def give_up(self) -> None:
        """On this machine nothing else ends with it."""


class Hold:
    """The lock on a box, and its journal. `what`: the command, as it is typed.

    `lacks`: what the machine has not that both take (flock where there is no Python, or a file that can be written).
    """

    def __init__(self, session: Session, layout: Layout, what: str) -> None:
        self.where, self.what, self.journal = str(session.target), what, f"{layout.var}/journal.jsonl"
        self.plan = ""  # digest of the plan that is carried out
        self.strict = what != "down"  # nobody is kept from taking a box away by a full disk
        self.ended = threading.Event()
        self.turn = threading.Lock()
        who = f"`ownstack {what}` by {getpass.getuser()}@{socket.gethostname()}"
        program = resources.files("ownstack.runner").joinpath("hold.py").read_text(encoding="utf-8")
        words = (layout.prefix, self.journal, who, str(SILENCE_S), str(MOST), str(KEPT), program)
        script = StringCommand("sh", "-c", QuoteString(SCRIPT), "sh", *[QuoteString(word) for word in words])
        self.channel = self._open(session, script)
        said = self._answer()
        if said.startswith("busy"):
            self.close()
            holder = said.removeprefix("busy").strip() or "somebody"
            raise HeldError(
                f"another run works on this box: {holder}",
                hint="wait until it is done; a run that has died holds nothing",
            )
        self.held = said == "held"
        self.lacks = said.removeprefix("missing").strip() if said.startswith("missing") else ""
        if not self.held and not said.startswith("missing"):
            raise UnreachableError(f"{self.where} gave no answer to the lock: {said or 'it ended'}", hint="run again")
        if self.held:
            threading.Thread(target=self._beat, daemon=True).start()
        else:
            self.close()

    def _open(self, session: Session, script: StringCommand) -> Channel:
        made = make_unix_command_for_host(session.state, session.host, script, **session.rights())
        command = made.get_raw_value()
        client = getattr(session.host.connector, "client", None)
        try:
            return Here(command) if session.target.local or client is None else OverSSH(client, command)
        except Exception as error:  # paramiko has its own: a server that allows one channel alone, say
            raise UnreachableError(
                f"{self.where} allows no second channel beside this one: {error}",
                hint="set MaxSessions in its sshd_config to 10, the default",
            ) from error

    def _answer(self) -> str:
        try:
            return self.channel.answer()
        except (OSError, EOFError):
            return ""

    def _say(self, line: str) -> str:
        with self.turn:
            try:
                self.channel.send(line)
                return self.channel.answer()
            except (OSError, EOFError, ValueError):
                return ""

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_S):
            if not self._say("beat"):
                if not self.ended.is_set():
                    self.channel.give_up()
                return

    def note(self, event: str, step: str, **more: Any) -> None:
        """A line into the journal, on the disk before this returns. Raises OwnstackError when it is not."""
        if not self.held:
            return
        about = {"time": int(time.time()), "run": self.what, "event": event, "step": step, "plan": self.plan, **more}
        said = self._say(f"{'b' if event == 'begin' else 'e'} {json.dumps(about)}")
        if said == "ok" or not self.strict:
            return
        raise self._refused(said.removeprefix("no").strip() if said else "")

    def _refused(self, why: str) -> OwnstackError:
        if not why:
            return ConnectionLostError(
                f"this run no longer holds the box on {self.where}: the connection was cut or slept too long",
                hint="run the same command again: it goes on where it stopped",
            )
        return RunError(
            f"{self.journal} cannot be written: {why}",
            hint="free space or make it writable, then run again: it goes on where it stopped",
            code="disk-full" if "No space" in why else "journal",
        )

    def close(self) -> None:
        self.ended.set()
        with contextlib.suppress(Exception):
            self.channel.close()
