"""`ownstack models`: what the plan says and what is there."""

from __future__ import annotations

from pathlib import Path

import click

from .output import emit_json, say, size
from .site import open_site, read_settings, target_options


@click.command()
@target_options
def models(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
) -> int:
    """List the box's models: the planned ones, and those added by hand."""
    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file) as site:
        plan = site.recorded_plan()
        there = site.session.step("ollama.list", {"url": plan.engine_url})["models"]
        work = site.state.work
    planned = {model.tag: model for model in plan.models}
    rows = []
    for item in there:
        name = item["name"].removesuffix(":latest") if item["name"] not in planned else item["name"]
        choice = planned.get(item["name"]) or planned.get(name)
        rows.append(
            {
                "name": item["name"],
                "use": choice.use if choice else "yours",
                "size": item["size"],
                "digest": item.get("digest", ""),
            }
        )
    names = {row["name"].removesuffix(":latest") for row in rows}
    missing = [tag for tag in planned if tag.removesuffix(":latest") not in names]
    if as_json:
        emit_json("models", {"models": rows, "missing": missing, "work": work})
        return 0
    for row in rows:
        say(f"  {row['name']:<32} {row['use']:<12} {size(row['size'])}")
    for tag in missing:
        say(f"  {tag:<32} {planned[tag].use:<12} not there yet")
    return 0
