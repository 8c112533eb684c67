"""`ownstack init`: a settings file with what matters, the rest as comments."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import ConfigError
from .config import shown
from .output import emit_json, note

USES = ("chat", "code", "rag", "reasoning", "vision")

TEMPLATE = """# Settings of your box. What is not set here has a default: `ownstack config --origin` lists all.

# where the box is: "local", or "user@server" over SSH
host = {host}

# what it is mostly for: chat, code, rag, reasoning, vision
use = {use}

# leave something out: roles = ["qdrant", "ollama", "models", "open_webui"]

[network]
# how far each service reaches: closed (this machine only), lan, internet.
# Closed, n8n reaches no mailbox and no web service.
n8n = {n8n}
"""


@click.command()
@click.option("--config", "config_file", default="ownstack.toml", show_default=True, help="The file to write.")
@click.option("--host", default=None, help="Where the box is.")
@click.option("--use", type=click.Choice(USES), default=None, help="What it is mostly for.")
@click.option(
    "--n8n-network", type=click.Choice(["closed", "lan", "internet"]), default=None, help="How far n8n may reach."
)
@click.option("-y", "--yes", is_flag=True, help="Take defaults without being asked.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON envelope.")
def init(
    config_file: str, host: str | None, use: str | None, n8n_network: str | None, yes: bool, force: bool, as_json: bool
) -> int:
    """Write a settings file, asking what matters."""
    from ..settings import load

    path = Path(config_file)
    if path.exists() and not force:
        raise ConfigError(f"{path} exists", hint="edit it, or add `--force` to write it anew")
    ask = not (yes or as_json) and sys.stdin.isatty()
    if not ask and not yes and None in (host, use, n8n_network):
        raise ConfigError("there is no terminal to ask on", hint="add `--yes`, or name --host, --use and --n8n-network")
    host = host or (
        click.prompt("Where is the box (local, or user@server)", default="local", err=True) if ask else "local"
    )
    use = use or (
        click.prompt("What is it mostly for", type=click.Choice(USES), default="chat", err=True) if ask else "chat"
    )
    if n8n_network is None:
        n8n_network = "closed"
        if ask and click.confirm(
            "May n8n reach the internet (mail, web services)? Closed, nothing leaves the machine",
            default=False,
            err=True,
        ):
            n8n_network = "internet"
    load({"host": host, "use": use, "network.n8n": n8n_network})
    path.write_text(TEMPLATE.format(host=shown(host), use=shown(use), n8n=shown(n8n_network)), encoding="utf-8")
    if as_json:
        emit_json("init", {"file": str(path)})
    else:
        note(f"wrote {path}; `ownstack plan` shows what it means")
    return 0
