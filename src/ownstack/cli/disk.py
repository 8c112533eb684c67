"""`ownstack disk`: who holds what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import RunError
from ..plan import Plan
from .output import emit_json, say, size
from .site import Site, open_site, read_settings, target_options

SNAPSHOTS = "snapshots"


@click.command()
@target_options
def disk(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
) -> int:
    """Show who holds what on the disk: programs, older versions of them, data, models, and what is free."""
    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file) as site:
        plan = site.recorded_plan()
        used = site.session.step("box.disk", {"folders": folders(plan)})
        there, silent = models_there(site, plan)
    planned = {model.tag.removesuffix(":latest"): model.use for model in plan.models}
    models = [
        {"name": one["name"], "bytes": one["size"], "use": planned.get(one["name"].removesuffix(":latest"), "yours")}
        for one in there
    ]
    if as_json:
        emit_json("disk", {**used, "models": models, "without_models": silent})
        return 0
    for kind in ("programs", "data", "configuration", "yours"):
        show(kind, [row for row in used["folders"] if row["kind"] == kind])
    if models:
        say("the models one by one (parts that several share are counted with each)")
        for one in sorted(models, key=lambda one: -one["bytes"]):
            say(f"  {one['name']:<34} {size(one['bytes']):>10}  {one['use']}")
    if silent:
        say(f"the models one by one are not told: {silent}")
    if any(row["name"] == SNAPSHOTS and row["bytes"] for row in used["folders"]):
        say("snapshots are the way back from upgrades; `ownstack rollback --discard` removes them")
    for one in used["disks"]:
        say(f"free on {one['mount']}: {size(one['free'])} of {size(one['total'])}")
    return 0


def models_there(site: Site, plan: Plan) -> tuple[list[dict[str, Any]], str]:
    """The models, and why they are not told: an engine may be down just because its disk is full."""
    if not plan.has("models"):
        return [], ""
    try:
        return site.session.step("ollama.list", {"url": plan.engine_url})["models"], ""
    except RunError as error:
        return [], error.message


def folders(plan: Plan) -> list[dict[str, str]]:
    """What a box has on the disk, each folder once; the folders of the owner that are bound into it come last."""
    from ..engine import backups

    layout, found = plan.layout, []
    for artifact in dict.fromkeys(a.name for role in plan.roles for a in role.artifacts):
        found.append({"name": artifact, "path": f"{layout.opt}/{artifact}", "kind": "programs"})
    found.append({"name": "base", "path": f"{layout.opt}/base", "kind": "programs"})
    for role in plan.roles:
        if role.name != "base":
            found.append({"name": role.name, "path": layout.data(role.name), "kind": "data"})
    found.append({"name": SNAPSHOTS, "path": layout.data("snapshots"), "kind": "data"})
    for name, part in (("working files", "work"), ("of a restore", "restore"), ("second instances", "scratch")):
        found.append({"name": name, "path": layout.data(part), "kind": "data"})
    for path in (backups.folder(plan), *((plan.backup.to,) if plan.backup else ())):
        found.append({"name": "backups", "path": path, "kind": "data"})
    found.append({"name": "configuration", "path": layout.etc, "kind": "configuration"})
    found += [{"name": name, "path": path, "kind": "yours"} for name, path, _ in plan.folders]
    return list({row["path"]: row for row in reversed(found)}.values())[::-1]


def show(kind: str, rows: list[dict[str, Any]]) -> None:
    """One line a folder, the largest first."""
    if not rows:
        return
    say(f"{kind}: {size(sum(row['bytes'] for row in rows))}")
    for row in sorted(rows, key=lambda row: -row["bytes"]):
        notes = [f"of it older versions {size(row['older_bytes'])}"] if row["older_bytes"] else []
        notes += [f"{row['unread']} folders could not be read"] if row["unread"] else []
        say(
            "  " + "  ".join([f"{row['name']:<20}", f"{size(row['bytes']):>10}", f"{row['path']:<40}", *notes]).rstrip()
        )
