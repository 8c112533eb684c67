"""`ownstack config`: settings, where each came from, and changing one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .output import emit_json, note, say
from .site import read_settings
from .upgrade_self import describe, state


def shown(value: Any) -> str:
    """A value as TOML writes it; unset values are empty."""
    if value is None:
        return "(not set)"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {shown(item)}" for key, item in value.items()) + "}"
    return str(value)


def comment_of(line: str) -> str:
    """The comment at the end of `key = value`, with the blanks before it."""
    import tomllib

    for found in re.finditer(r"\s*#", line):
        try:
            tomllib.loads(line[: found.start()])
        except tomllib.TOMLDecodeError:
            continue  # this `#` stands in a text
        return line[found.start() :]
    return ""


def set_line(text: str, key: str, value: str) -> str:
    """The settings file with `key` set; comments and the other lines stay as they are."""
    *tables, name = key.split(".")
    table = ".".join(tables)
    lines = text.splitlines()
    start, end = 0, len(lines)
    headers = [
        (i, m.group(1).strip()) for i, line in enumerate(lines) if (m := re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line))
    ]
    if table:
        at = next((i for i, header in headers if header == table), None)
        if at is None:
            gap = [""] if lines and lines[-1].strip() else []
            return "\n".join([*lines, *gap, f"[{table}]", f"{name} = {value}"]) + "\n"
        start = at + 1
    end = next((i for i, _ in headers if i >= start), len(lines))
    pattern = re.compile(rf"\s*{re.escape(name)}\s*=")
    for index in range(start, end):
        if pattern.match(lines[index]):
            lines[index] = f"{name} = {value}{comment_of(lines[index])}"
            return "\n".join(lines) + "\n"
    if end < len(lines):  # a comment right above the next table belongs to that table
        while end > start and lines[end - 1].lstrip().startswith("#"):
            end -= 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    lines.insert(end, f"{name} = {value}")
    return "\n".join(lines) + "\n"


@click.group(invoke_without_command=True)
@click.option("--config", "config_file", default=None, help="Settings file (default: ownstack.toml).")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting for this run.")
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON envelope.")
@click.pass_context
def config(context: click.Context, config_file: str | None, sets: tuple[str, ...], origin: bool, as_json: bool) -> int:
    """Show all settings, or change one: `ownstack config set network.n8n internet`."""
    context.obj = config_file
    if context.invoked_subcommand is not None:
        return 0
    rows = list(read_settings(config_file, sets).flat())
    if as_json:
        emit_json("config", [{"key": key, "value": value, "origin": where} for key, value, where in rows])
        return 0
    width = max(len(key) for key, _, _ in rows)
    for key, value, where in rows:
        say(f"{key:<{width}}  {shown(value)}" + (f"   # {where}" if origin else ""))
    note(describe(state()))
    return 0


@config.command(name="set")
@click.argument("key")
@click.argument("value")
@click.pass_context
def set_(context: click.Context, key: str, value: str) -> int:
    """Set KEY to VALUE in the settings file. Checked first; a wrong value changes nothing."""
    from ..settings import load, parse_value

    parsed = parse_value(value)
    load({key: parsed}, context.obj)
    path = write(context.obj, {key: parsed})
    note(f"{key} = {shown(parsed)} in {path}; `ownstack up` applies it")
    return 0


def write(config_file: str | None, values: dict[str, Any]) -> Path:
    """Set keys in the settings file, which is checked before it takes the place of the old one. Gives its path."""
    from ..settings import config_path, load

    path = config_path(config_file)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for key, value in values.items():
        text = set_line(text, key, shown(value))
    put(path, text, lambda new: load({}, str(new)))
    return path


def put(path: Path, text: str, check: Callable[[Path], object] = lambda new: None) -> None:
    """Write a settings file whole, after a look at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    real = path.resolve()  # a link to the file stays one
    new = Path(f"{real}.new")
    with new.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        # after a power cut an empty file would mean defaults: models back in their old folder
        os.fsync(stream.fileno())
    try:
        check(new)
        if real.exists():
            new.chmod(real.stat().st_mode)
        new.replace(real)
    finally:
        new.unlink(missing_ok=True)
