"""Write docs/reference and README's table of machines from the code. `--check` compares only."""

from __future__ import annotations

import difflib
import importlib
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ownstack import kit
from tools import hardware_docs

ROOT = Path(__file__).parents[1]
NOTE = "<!-- Written by tools/reference-docs from the code. Change the code, not this file. -->\n\n"


def commands() -> str:
    """Every command with its options, from the command line itself."""
    from ownstack.cli import COMMANDS, EPILOG, HELP, cli

    parts = ["# Commands\n", " ".join((cli.help or "").split()), f"\n{' '.join(EPILOG.split())}\n"]
    context = click.Context(cli, info_name="ownstack")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is None:
            raise click.ClickException(f"the command {name} has no module")
        parts.append("\n".join(_command(command, f"ownstack {name}", context, HELP[name])))
    return "\n".join(parts)


def _command(command: click.Command, title: str, parent: click.Context, summary: str) -> Iterator[str]:
    context = click.Context(command, info_name=title.rsplit(" ", 1)[1], parent=parent)
    pieces = " ".join(command.collect_usage_pieces(context))
    text = "\n\n".join(" ".join(part.split()) for part in (command.help or summary).split("\n\n"))
    yield f"## `{title}`\n"
    yield f"{text}\n"
    yield f"    {title} {pieces}\n".rstrip(" ")
    named = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    options = [row for row in (option.get_help_record(context) for option in named) if row]
    if options:
        yield "| option | meaning |\n| --- | --- |"
        for option, meaning in options:
            yield f"| `{_cell(option)}` | {_cell(meaning)} |"
        yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _command(inner, f"{title} {name}", context, inner.get_short_help_str())


def settings() -> str:
    """Every key of ownstack.toml with its type, default and meaning."""
    from ownstack.settings import Base, role_models

    parts = [
        "# Settings\n",
        "Layers, the later ones win: defaults, `ownstack.toml`, the environment, flags. In the environment the key",
        "`ollama.port` is `OWNSTACK_OLLAMA__PORT`; as a flag it is `--set ollama.port=11500`.",
        "`ownstack config --origin` shows every value and where it came from.\n",
    ]
    tables: list[tuple[str, str, type[BaseModel]]] = [("", "The box", Base)]
    for name, model in role_models().items():
        about = (importlib.import_module(model.__module__).__doc__ or "").strip().splitlines()
        tables.append((f"{name}.", about[0].removeprefix("Settings of ").rstrip(".") if about else name, model))
    for prefix, title, model in tables:
        rows = list(_fields(model, prefix))
        if rows:
            parts.append(
                f"## {title[:1].upper()}{title[1:]}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |"
            )
            parts += [f"| `{key}` | {kind} | {default} | {meaning} |" for key, kind, default, meaning in rows]
            parts.append("")
    return "\n".join(parts)


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, f"{prefix}{name}.")
            continue
        value = field.get_default(call_default_factory=True)
        default = "required" if value is PydanticUndefined else f"`{_toml(value)}`" if value is not None else ""
        yield f"{prefix}{name}", _cell(_type(inner)), _cell(default), _cell(field.description or "")
        values = get_args(inner)
        if get_origin(inner) is dict and isinstance(values[1], type) and issubclass(values[1], BaseModel):
            yield from _fields(values[1], f"{prefix}{name}.NAME.")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)


def _type(kind: Any) -> str:
    """A type in a reader's words."""
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{_toml(value)}`" for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in inside if part is not type(None))
    if origin in (tuple, list):
        return f"list of {_type(inside[0])}"
    if origin is dict:
        return "table"
    return names.get(kind, "text" if kind is Any else getattr(kind, "__name__", str(kind)))


def artefacts() -> str:
    """Every download and build, with its source, and whether it ever ran."""
    ran = tomllib.loads((ROOT / "tools/ran.toml").read_text())
    floors = tomllib.loads((ROOT / "roles/floors.toml").read_text())
    parts = [
        "# Artefacts\n",
        "Every program that the kit installs, in order of preference. A file is installed only when its sha256 is the",
        "pinned one. *Seen in*: in how many independent places the hash was read. *Ran*: the day on which this row",
        "was last installed and run in the project's own tests; rows that say *never* went through the same fetch and",
        "unpack code with a made-up archive of the vendor's layout.\n",
        f"Pins and advisories were checked on {floors['checked']}.\n",
        "| component | lowest accepted version | why |\n| --- | --- | --- |",
        *(
            f"| {name} | {version} | {_cell(floors['why'].get(name, ''))} |"
            for name, version in floors["floor"].items()
        ),
        "",
    ]
    for path in sorted(ROOT.glob("roles/*/artifacts.toml")):
        role = path.parent.name
        for artifact in tomllib.loads(path.read_text()).get("artifact", []):
            parts.append(f"## {artifact['name']}\n\n{_cell(artifact['use'])} (role {role}).\n")
            parts.append("| variant | version | platform | source | licence | hash | seen in | ran |")
            parts.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
            for variant in artifact["variant"]:
                day = ran.get(role, {}).get(artifact["name"], {}).get(variant["id"], "never")
                parts.append(_artefact(variant, str(day)))
            parts.append("")
    return "\n".join(parts)


def _artefact(variant: dict[str, Any], day: str) -> str:
    source = variant["source"]
    if variant.get("url"):
        source = f"[{source}]({variant['url']})"
    elif "package" in variant:
        source = f"{source}: {variant['package']['name']}"
    elif variant["kind"] == "build":
        source = f"{source}, built"
    digest = f"`{variant['sha256'][:12]}...`" if variant.get("sha256") else variant.get("lock", "")
    if variant.get("inputs"):
        digest = "locked inputs"
    cells = [
        variant["id"], variant["version"], variant["platform"], source, variant.get("licence", ""), digest,
        str(variant.get("witnesses", "")), day,
    ]  # fmt: skip
    return "| " + " | ".join(map(_cell, cells)) + " |"


def profiles() -> str:
    """The hardware profiles: which machine each is for, and its policy."""
    parts = [
        "# Hardware profiles\n",
        "Match rules and policy of each machine class; models are chosen by arithmetic. What the chooser takes on a",
        'machine of each class, all of its memory free, for `use = "chat"` (ask `ownstack fit` for any other):\n',
        *classes(),
        "",
    ]
    for path in sorted((ROOT / "hardware_profiles").glob("*.toml")):
        parts.append(f"## {path.stem}\n\n| key | value |\n| --- | --- |")
        table = tomllib.loads(path.read_text())
        parts += [f"| `{key}` | {_cell(value)} |" for key, value in _flat(table)]
        parts.append("")
    return "\n".join(parts)


# a machine of every class: card (empty: none) and GiB of RAM
MACHINES = (
    ("", 4), ("", 8), ("", 16), ("", 64), ("GTX 1650", 16), ("RTX 3050 Laptop GPU", 16), ("GTX 1660 Ti", 16),
    ("RTX 4060", 32), ("RTX 4070", 32), ("RTX 4080", 32), ("RTX 4090", 64), ("RTX 5090", 64),
    ("RTX 6000 Ada Generation", 128), ("RTX PRO 6000 Blackwell Workstation Edition", 256), ("GB10", 128),
)  # fmt: skip


def classes(short: bool = False) -> Iterator[str]:
    """A table of what the chooser takes on a machine of each class."""
    from ownstack.cli.fit import Asked, declared_machine
    from ownstack.fitting.choose import Wishes, choose_on, load_data

    data = load_data()
    heads = ("machine", "class", "chat model", "context", "tokens/s", "embedding model")
    kept = [0, 2, 3, 4] if short else list(range(len(heads)))
    yield "| " + " | ".join(heads[i] for i in kept) + " |"
    yield "| " + " | ".join("---" for _ in kept) + " |"
    for card, ram in MACHINES:
        machine = declared_machine(Asked("", card, "" if card else "0", f"{ram}GiB", None), data)
        chosen = choose_on(data, machine, Wishes())
        speed = chosen.chat.speed.decode
        place = "" if chosen.chat.estimate.whole or not card else ", partly in RAM"
        cells = (
            f"{card or 'no GPU'}, {ram} GB of RAM", f"`{chosen.profile.name}`", f"{chosen.chat.entry.tag}{place}",
            f"{chosen.chat.settings.context}", f"{speed.low:.0f} to {speed.high:.0f}", chosen.embedding.entry.tag,
        )  # fmt: skip
        yield "| " + " | ".join(cells[i] for i in kept) + " |"


def readme(before: str) -> str:
    """README.md with its table of machines asked of the chooser anew."""
    head, _, rest = before.partition("<!-- machines: written by tools/reference-docs -->\n")
    _, _, tail = rest.partition("<!-- end of machines -->\n")
    marks = ("<!-- machines: written by tools/reference-docs -->\n", "<!-- end of machines -->\n")
    return head + marks[0] + "\n".join(classes(short=True)) + "\n" + marks[1] + tail


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _toml(value)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "artefacts": artefacts,
    "profiles": profiles,
    "hardware": hardware_docs.page,
}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; show what is out of date and exit with 1.")
def main(check: bool) -> None:
    """Write docs/reference from the code."""
    kit.activate()
    stale = False
    pages = {ROOT / "docs/reference" / f"{name}.md": NOTE + page().rstrip() + "\n" for name, page in PAGES.items()}
    pages[ROOT / "README.md"] = readme((ROOT / "README.md").read_text())
    for path, after in pages.items():
        before = path.read_text() if path.exists() else ""
        if before == after:
            continue
        stale = True
        if check:
            lines = difflib.unified_diff(
                before.splitlines(), after.splitlines(), str(path), "from the code", n=1, lineterm=""
            )
            click.echo("\n".join(lines))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(after)
            click.echo(f"wrote {path.relative_to(ROOT)}", err=True)
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
