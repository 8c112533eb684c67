"""`ownstack models`: what the plan says and what is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, RunError, UnreachableError
from .models_registry import outdated, pull
from .output import confirm, emit_json, note, say, size
from .progress import Progress
from .site import Site, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..plan import Plan

LEFT = "models_left"  # in the manifest: the folder that the models are moved from


@click.group(invoke_without_command=True)
@target_options
@click.pass_context
def models(
    context: click.Context,
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
) -> int:
    """List the box's models: the planned ones, and those added by hand."""
    if context.invoked_subcommand is not None:
        return 0
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


models.add_command(outdated)
models.add_command(pull)


@models.command()
@target_options
@click.option("-y", "--yes", is_flag=True, help="Go on without being asked.")
@click.argument("path")
def move(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
    yes: bool,
    path: str,
) -> int:
    """Move the models to the folder PATH, on another disk for instance.

    Copied and compared with their hashes while the engine serves, then switched and verified; only then are the old
    files deleted. What fails before leaves the box as it was. One that was cut off is finished by the same command.
    """
    from . import upgrade_run

    if not path.startswith("/") or "/../" in f"{path}/":
        raise ConfigError(f"{path} is not an absolute path of the box", hint="for example /mnt/large/models")
    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file, doing="models move") as site:
        upgrade_run.end_first(site)
        old = site.recorded_plan()
        spec = move_spec(old, path, (site.state.manifest or {}).get(LEFT, ""))
        found = site.session.step("ollama.move", {**spec, "dry": True})
        if not as_json:
            note(f"from {spec['from']}: {size(found['held'])}, of it to copy: {size(found['bytes'])}")
            note(f"to {path}: {size(found['free'])} free")
        confirm("Move the models there?", yes, as_json)
        with Progress(quiet=as_json, verbose=verbose > 0) as progress:
            site.session.on_event = progress
            site.session.step("ollama.move", spec)
    file = switch(config_file, sets, host, sudo_password_file, old, path)
    with open_site(read_settings(config_file, sets, host=host), sudo_password_file, doing="models move") as site:
        # what came while the first copy was made; the new store serves by now, and what is newer in it stays
        later = {**spec, "later": True}
        site.session.step("ollama.move", later)
        freed = site.session.step("ollama.move_drop", later)
        left(site, old, None)
    if as_json:
        emit_json("models-move", {**spec, "moved": found["held"], "freed": freed["bytes"], "settings": str(file)})
        return 0
    say(f"the models are in {path}, {size(freed['bytes'])} are free again in {spec['from']}; noted in {file}")
    return 0


def left(site: Site, plan: Plan, folder: str | None) -> None:
    """Note from where the models are moved, until that is free again."""
    from ..engine.apply import execute
    from ..kit import activate

    activate()
    from deploy import remember

    execute(site.session, remember, lambda event: None, plan=plan, values={LEFT: folder})


def move_spec(plan: Plan, path: str, before: str = "") -> dict[str, Any]:
    """The specification of `ollama.move` and `.move_drop`. Raises RunError where the store is not ours to move.

    before: the folder that a move left which was cut off. Where the box has its models in `path` already, it is the one
    to be emptied.
    """
    from ..engine import units
    from ..kit import activate

    if plan.engine_existing or not plan.has("ollama"):
        raise RunError(
            "the models belong to an Ollama that ownstack did not install",
            hint="move them as its documentation says",
            code="engine-existing",
        )
    activate()
    from roles.ollama import NAME, models_dir

    account, now = plan.account(NAME), models_dir(plan)
    later = bool(before) and os.path.normpath(now) == os.path.normpath(path) != os.path.normpath(before)
    return {
        "from": before if later else now,
        "later": later,
        "to": path,
        "owner": account,
        "group": account,
        "run_dir": units.run_dir(plan),
        "bound": path.startswith(units.HOMES),
    }


def switch(
    config_file: str | None, sets: tuple[str, ...], host: str | None, password: Path | None, old: Plan, path: str
) -> Path:
    """Note the folder in the settings file, apply it and verify; on failure both are put back. Gives the file's path.

    Raises RunError with the reason when it was put back.
    """
    from ..settings import config_path
    from .config import put

    file = config_path(config_file)
    before = file.read_text(encoding="utf-8") if file.exists() else None
    note_folder(config_file, path)
    try:
        with open_site(read_settings(config_file, sets, host=host), password, doing="models move") as site:
            _apply(site, site.plan(), old)
    except BaseException:
        if before is None:
            file.unlink()
        else:
            put(file, before)
        raise
    return file


def note_folder(config_file: str | None, path: str) -> None:
    """Bind the folder in the settings file as the engine's store."""
    from .config import write

    folder = {"path": path, "service": "ollama", "write": True}
    try:
        write(config_file, {f"folders.models.{key}": value for key, value in folder.items()})
    except ConfigError:  # it stands there in one line
        write(config_file, {"folders.models": folder})


def _apply(site: Site, plan: Plan, old: Plan) -> None:
    """Carry the plan out and verify it. Raises RunError, with the old plan carried out again, where that fails."""
    from ..engine.apply import execute
    from ..kit import activate
    from ..verify.runner import verify

    activate()
    from deploy import apply
    from roles.ollama import models_dir

    before = models_dir(old)
    if before != models_dir(plan):
        left(site, old, before)
    try:
        execute(site.session, apply, lambda event: None, plan=plan)
        report = verify(plan, site.session, lambda result: None)
        # others tell of something that the move has nothing to do with
        failed = [r for r in report.results if r.outcome.status == "failed" and r.check.role in ("ollama", "models")]
        why = "; ".join(f"{r.check.id}: {r.outcome.measured}" for r in failed)
    except UnreachableError:
        raise  # nobody is there to put anything back
    except RunError as error:
        why = error.message
    if not why:
        return
    execute(site.session, apply, lambda event: None, plan=old)
    if before != models_dir(plan):
        left(site, old, None)
    copied = f"; what was copied lies in {models_dir(plan)}" if before != models_dir(plan) else ""
    raise RunError(
        f"the models were not moved: {why}",
        hint=f"the box serves from {before}, as before, and nothing was deleted{copied}",
        code="move-reverted",
    )
