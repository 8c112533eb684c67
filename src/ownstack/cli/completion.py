"""`ownstack completion SHELL`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .output import say


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script, to be sourced: `eval "$(ownstack completion bash)"`."""
    from . import cli

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"no completion for {shell}")
    say(found(cli, {}, "ownstack", "_OWNSTACK_COMPLETE").source())
    return 0
