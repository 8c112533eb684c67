"""The command line: one module a command, imported when it is used."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable

import click

from .. import __version__
from ..errors import OwnstackError

# command -> module below this package
COMMANDS = {
    "init": "init",
    "detect": "detect",
    "fit": "fit",
    "bench": "bench",
    "plan": "plan",
    "up": "up",
    "verify": "verify",
    "status": "status",
    "open": "open",
    "logs": "logs",
    "start": "control",
    "stop": "control",
    "restart": "control",
    "models": "models",
    "disk": "disk",
    "config": "config",
    "password": "password",
    "backup": "backup",
    "restore": "restore",
    "import": "importing",
    "upgrade": "upgrade",
    "rollback": "rollback",
    "down": "down",
    "completion": "completion",
}

# what comes to the same when it is run a second time: it goes on by itself when its connection has broken
GOING_ON = frozenset(("up", "upgrade"))

EPILOG = """Exit codes: 0 all as planned, 1 a run or a check failed, 2 wrong usage or settings, 3 nothing fits or the
host is not supported, 4 the host cannot be reached, 10 changes are pending (`plan --exit-code`), 130 interrupted."""


class Lazy(click.Group):
    """A group that imports a command's module only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        module = COMMANDS.get(name)
        if module is None:
            return None
        called = "import_" if name == "import" else name.replace("-", "_")
        found: click.Command = getattr(importlib.import_module(f".{module}", __package__), called)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, HELP[name]) for name in COMMANDS])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, 1)
            raise click.UsageError(
                f"there is no command {name!r}." + (f" Did you mean `{near[0]}`?" if near else ""), ctx
            )
        return super().resolve_command(ctx, args)


# kept here so that `ownstack --help` imports no command
HELP = {
    "init": "Write a settings file, asking what matters.",
    "detect": "Say what the machine is: CPU, memory, disks, GPUs.",
    "fit": "Say which models fit, how much they take, how fast they run.",
    "bench": "Measure the box's models and keep the result.",
    "plan": "Show what `up` would do, and why. Changes nothing.",
    "up": "Install and configure the box, then verify it.",
    "verify": "Check that the box is as planned.",
    "status": "Show what runs, where, and what is pending.",
    "open": "Open Open WebUI or n8n in the browser.",
    "logs": "Show the last log lines of services.",
    "start": "Start the box's services.",
    "stop": "Stop the box's services.",
    "restart": "Restart the box's services.",
    "models": "List the box's models.",
    "disk": "Show who holds what on the disk.",
    "config": "Show or change settings, and where each came from.",
    "password": "Show where the first passwords are, or make new ones.",
    "backup": "Make a backup while everything runs, or check one.",
    "restore": "Put a backup back, here or on a new machine.",
    "import": "Take over an Open WebUI or n8n that ran elsewhere.",
    "upgrade": "Bring services to newer versions, with a way back.",
    "rollback": "Go back to what a service was before its last upgrade.",
    "down": "Remove services and programs; data stays unless --purge.",
    "completion": "Print the completion script for a shell.",
}


@click.group(
    cls=Lazy, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="ownstack")
def cli() -> None:
    """A private AI box from one command: Ollama, Open WebUI, Qdrant and n8n, sized to the hardware and verified.

    `ownstack up` is the main one. Add `--host user@server` to work on another machine over SSH.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with the documented exit status."""
    gc.set_threshold(100_000)  # what is made stays until the end: looking for more to drop takes a tenth of the time
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; its exit status. Errors are told on stderr, or in the envelope with `--json`."""
    from .output import fail

    name = next((word for word in arguments if not word.startswith("-")), "")
    try:
        result = called(name, lambda: cli.main(arguments, prog_name="ownstack", standalone_mode=False))
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:  # `ownstack` alone is a question, not a mistake
        click.echo(error.format_message(), err=True)
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        told, status = as_told(name, error)
        if told is not error:
            told.__cause__ = error
        return fail(name, "--json" in arguments, told, status, verbose=level(arguments) > 1)


def called(name: str, command: Callable[[], object]) -> object:
    """What a command gives; of those that go on when a connection breaks, at its last attempt."""
    if name not in GOING_ON:
        return command()
    from .again import going_on

    return going_on(command)


def level(arguments: list[str]) -> int:
    """How often `-v` was said."""
    return sum(len(word) - 1 for word in arguments if word.strip("v") == "-") + arguments.count("--verbose")


def as_told(name: str, error: BaseException) -> tuple[OwnstackError, int]:
    """An exception as people and programs are told it, and the exit status."""
    if isinstance(error, OwnstackError):
        return error, error.exit_code
    if isinstance(error, click.ClickException):
        known = name in COMMANDS
        hint = f"`ownstack {name} --help` lists the options" if known else "`ownstack --help` lists the commands"
        return OwnstackError(error.format_message(), hint=hint, code="usage"), 2
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return OwnstackError("interrupted", hint="run the same command again: it goes on", code="interrupted"), 130
    if isinstance(error, OSError):  # a file that was named cannot be read or written
        words = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return OwnstackError(words, hint="name a file that can be read and written", code="file"), 2
    words = f"{type(error).__name__}: {error}"
    return OwnstackError(words, hint="this is a fault of ownstack; with `-vv` it says more", code="internal"), 1
