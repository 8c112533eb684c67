"""What people and programs see: data on stdout, everything else on stderr, one envelope for JSON."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from typing import Any

import click

from ..errors import OwnstackError


def envelope(command: str, data: Any = None, error: OwnstackError | None = None) -> dict[str, Any]:
    """`{"schema": "ownstack/<command>/1", "ok", "data", "error"}`, on failure too."""
    failed = None if error is None else {"code": error.code, "message": error.message, "hint": error.hint}
    return {"schema": f"ownstack/{command or 'ownstack'}/1", "ok": error is None, "data": data, "error": failed}


def emit_json(command: str, data: Any, error: OwnstackError | None = None) -> None:
    click.echo(json.dumps(envelope(command, data, error), indent=2, ensure_ascii=False))


def fail(command: str, as_json: bool, error: OwnstackError, status: int, verbose: bool = False) -> int:
    """Tell an error; returns the exit status."""
    if as_json:
        emit_json(command, getattr(error, "data", None), error)
    else:
        note(style("error", "red", bold=True) + f": {error.message}")
        if error.hint:
            note("")
            note(style("hint", "cyan", bold=True) + f": {error.hint}")
    if verbose:
        traceback.print_exception(error)
    return status


@functools.cache
def colour() -> bool:
    return not os.environ.get("NO_COLOR") and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def style(text: str, fg: str = "", bold: bool = False) -> str:
    return click.style(text, fg=fg or None, bold=bold) if colour() else text


def note(text: str) -> None:
    """A line for people."""
    click.echo(text, err=True)


def say(text: str = "") -> None:
    """A line of the result."""
    click.echo(text)


def size(value: float | None) -> str:
    """Bytes for people: MiB below one GiB, else GiB."""
    if value is None:
        return "?"
    return f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.1f} GiB"


def confirm(question: str, yes: bool, as_json: bool = False, about: str = "") -> None:
    """Ask before a change. Without a terminal and without `--yes`: exit code 2, never a hanging prompt.

    A run that had to connect again does not ask a second time, unless `about` is another.
    """
    from .again import current

    if yes or question + about in current().agreed:
        return
    if as_json or not sys.stdin.isatty():
        raise UsageError("this asks before it changes anything, and there is no terminal to ask on")
    if not click.confirm(question, default=False, err=True):
        raise click.Abort
    current().agreed.add(question + about)


class UsageError(OwnstackError):
    """Wrong usage: exit code 2."""

    code = "usage"
    exit_code = 2

    def __init__(self, message: str, hint: str = "add `--yes` to go on without being asked") -> None:
        super().__init__(message, hint=hint)
