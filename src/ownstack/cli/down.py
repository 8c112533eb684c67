"""`ownstack down`: how to get out again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RunError
from .output import confirm, emit_json, note, say
from .progress import Progress
from .rollback import held
from .site import Site, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..plan import Plan


def what_goes(
    plan: Plan, purge: bool, packages: list[str], pulled: list[str] | None = None, aside: list[str] | None = None
) -> tuple[list[str], list[str]]:
    """What is removed and what stays, in words."""
    from ..kit import activate

    activate()
    from roles.ollama import models_dir

    layout = plan.layout
    away = models_dir(plan) if plan.has("ollama") else ""
    moved = [f"models in {away}: the folder is yours"] if away and not away.startswith(f"{layout.var}/") else []
    goes = [f"services and units {layout.prefix}-*", f"programs in {layout.opt}"]
    kept = [f"data and models in {layout.var}", f"configuration and secrets in {layout.etc}"]
    if aside:
        kept.append(f"data that was kept aside: {', '.join(aside)}")
    if plan.system:
        kept.append(f"the accounts {layout.prefix}-* that own them")
    if plan.adopted is not None:
        ours = " and ".join(filter(None, [plan.adopted.variables, plan.adopted.dropin]))
        goes.append(f"{ours}: {plan.adopted.unit} runs again as it did before")
        if pulled:
            kept.append(f"models that this box pulled into {plan.adopted.unit}: {', '.join(pulled)}")
    if packages:
        kept.append(f"system packages that were added: {', '.join(packages)}")
    if not purge:
        return goes, [*kept, *moved]
    stays = [*moved, f"backups in {layout.var}-backups, where there are any"]
    if plan.engine_existing:
        stays.append("the Ollama that was there, and its models")
    return goes + kept, stays


def pulled_into_adopted(site: Site, plan: Plan) -> list[str]:
    """Models that the box pulled into an engine that it adopted; none where the engine does not answer."""
    if plan.adopted is None:
        return []
    from ..kit import activate

    activate()
    from roles.models import record

    try:
        found = site.session.step("ollama.leftovers", {"url": plan.engine_url, "record": record(plan), "keep": []})
    except RunError:
        return []
    return [row["model"] for row in found["models"]]


def elsewhere(plan: Plan, rows: list[dict[str, Any]]) -> list[str]:
    """What ways back have kept aside on another disk than the box's own data."""
    return [path for row in rows for path in row["paths"] if not path.startswith(f"{plan.layout.var}/")]


@click.command()
@target_options
@click.option("-y", "--yes", is_flag=True, help="Go on without being asked.")
@click.option("--purge", is_flag=True, help="Remove data, models, configuration, secrets and accounts too.")
def down(
    host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
    as_json: bool, verbose: int, yes: bool, purge: bool,
) -> int:  # fmt: skip
    """Stop and remove services and programs. Data, models, configuration and secrets stay, unless --purge."""
    from ..engine.apply import execute
    from ..kit import activate

    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file, doing="down") as site:
        plan = site.recorded_plan()
        packages = list((site.state.manifest or {}).get("packages_added", []))
        aside = elsewhere(plan, held(site, plan)["replaced"])
        goes, stays = what_goes(plan, purge, packages, pulled_into_adopted(site, plan), aside)
        if not as_json:
            for title, lines in (("Will be removed", goes), ("Stays", stays)):
                if lines:
                    note(title)
                    for line in lines:
                        note(f"  {line}")
        confirm(
            "Remove this?" if not purge else "Remove all of this? Chats, notes and workflows are lost.", yes, as_json
        )
        activate()
        from deploy import remove

        with Progress(quiet=as_json, verbose=verbose > 0) as progress:
            result = execute(site.session, remove, progress, plan=plan, purge=purge, packages=packages)
    if as_json:
        emit_json("down", {"removed": goes, "kept": stays, "changed": result.changed})
    else:
        for line in (line for operation in result.operations for line in operation.said):
            note(line)
        left = (
            "nothing of the box is left but what stays, as named above"
            if purge
            else "`ownstack up` puts the programs back"
        )
        say(f"Removed: {left}.")
    return 0
