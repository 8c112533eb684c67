"""What encrypts a backup: a passphrase from a file or a terminal, or keys of age."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..engine.session import Session

LEAST = 12  # letters of a passphrase: what is guessed without a limit of tries has to be long


def key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--identity",
            type=click.Path(path_type=Path),
            default=None,
            help="File with the age identity (secret key) that opens a backup.",
        ),
        click.option(
            "--passphrase-file",
            type=click.Path(path_type=Path),
            default=None,
            help="Read the backup's passphrase from FILE, `-` for stdin.",
        ),
    ):
        command = option(command)
    return command


def read_passphrase(file: Path) -> str:
    text = sys.stdin.readline() if str(file) == "-" else file.read_text()
    word = text.rstrip("\n")
    if not word:
        raise ConfigError(f"{file} holds no passphrase", hint="write one line into it")
    return word


def new_passphrase(file: Path | None, recipients: tuple[str, ...], as_json: bool) -> str:
    """The passphrase for a new backup; empty where recipients take its place. Refuses to go on without either."""
    if recipients:
        if file is not None:
            raise ConfigError("a passphrase and a recipient were named", hint="name one of the two")
        return ""
    if file is not None:
        word = read_passphrase(file)
    elif as_json or not sys.stdin.isatty():
        raise ConfigError(
            "a backup holds keys and passwords, and is never written in the clear",
            hint="name a passphrase (`--passphrase-file FILE`) or an age recipient (`--recipient age1...`)",
            code="no-passphrase",
        )
    else:
        word = click.prompt("Passphrase for the backup", hide_input=True, confirmation_prompt=True, err=True)
    if len(word) < LEAST:
        raise ConfigError(f"the passphrase is shorter than {LEAST} letters", hint="take some words in a row")
    return word


@contextlib.contextmanager
def on_target(session: Session, word: str = "", identity: Path | None = None) -> Iterator[dict[str, str]]:
    """Passphrase or identity as a private file on the target, for the specification of a step."""
    if identity is not None:
        with session.private(identity.read_text()) as path:
            yield {"identity_file": path}
    elif word:
        with session.private(word + "\n") as path:
            yield {"passphrase_file": path}
    else:
        yield {}
