"""`ownstack rollback`: a service back to what it was before its last upgrade, program and data together."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RunError
from .output import confirm, emit_json, note, say, size
from .progress import Progress
from .site import Site, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..plan import Plan
    from .upgrade_run import Change

# which models there are, and which of them the kit pulled: of today's plan, whatever version serves them
MODELS = ("manifests", "models.json")


def held(site: Site, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """`snapshots` of a box and what is `replaced`, oldest first; none where it is older than snapshots are."""
    try:
        found = site.session.step("snapshots.held", {"var": plan.layout.var})
    except RunError:
        found = {}
    return {name: found.get(name, []) for name in ("snapshots", "replaced")}


def told(row: dict[str, Any]) -> str:
    """One line on a snapshot."""
    from .upgrade_run import words

    made = datetime.datetime.fromtimestamp(row["created"])
    return f"{row['role']} as of {made:%Y-%m-%d %H:%M}, before {words(row)}: {size(row['bytes'])}, {row['folder']}"


def told_replaced(row: dict[str, Any]) -> str:
    """One line on what lies aside."""
    made = datetime.datetime.fromtimestamp(row["created"])
    what = "way back" if row["kind"] == "rollback" else row["kind"]
    where = ", ".join(row["paths"])
    whose = "the box" if row["kind"] == "restore" else row["role"]
    return f"{whose}, replaced {made:%Y-%m-%d %H:%M} when its {what} was put back: {size(row['bytes'])}, {where}"


def public(row: dict[str, Any]) -> dict[str, Any]:
    """A snapshot for programs: without the parts of the plan."""
    return {
        key: row[key] for key in ("id", "run", "kind", "role", "created", "from", "to", "bytes", "folder", "counts")
    }


def chosen(site: Site, plan: Plan, service: str) -> list[dict[str, Any]]:
    """The snapshots of the last upgrade, the last service first; one of them where it is named.

    Services that were left out since have no way back. Raises RunError where there is none.
    """
    from ..upgrading import role_named

    wanted = role_named(plan, service) if service else ""
    found = [row for row in held(site, plan)["snapshots"] if not wanted or row["role"] == wanted]
    rows = [row for row in found if plan.has(row["role"])]
    if not rows:
        what = f" of {wanted}" if wanted else ""
        gone = ", ".join(dict.fromkeys(row["role"] for row in found))
        if gone:
            raise RunError(
                f"{gone} was left out of the box since, and only of that there is a snapshot",
                hint="put it into `roles` again and run `ownstack up`, then go back",
                code="no-snapshot",
            )
        raise RunError(
            f"there is no snapshot{what} to go back to",
            hint="`ownstack upgrade` takes one each time; `ownstack restore` puts a backup back",
            code="no-snapshot",
        )
    return [row for row in reversed(rows) if row["run"] == rows[-1]["run"]]


def way_back(site: Site, plan: Plan, row: dict[str, Any], listen: Any, patience_s: int, run: str) -> Change:
    """The change that leads back. Qdrant's data stays where another Qdrant has opened it meanwhile, and so do models:
    those pulled since would be gone, and those removed since be named without their files.

    Documents whose vectors were of an earlier embedding model, or of before an import, are indexed anew.
    """
    from ..plan import ChosenArtifact, RolePlan
    from ..upgrading import with_artifacts
    from .upgrade_run import Change

    parts = [RolePlan.model_validate(part) for part in row["plan"]["roles"]]
    before: dict[str, ChosenArtifact] = {item.name: item for part in parts for item in part.artifacts}
    moved = [before[name] for name in row["from"] if name in before]
    now = {item.name: item.version for part in plan.roles for item in part.artifacts}
    other = row["role"] != "qdrant" and "qdrant" in before and now.get("qdrant") != before["qdrant"].version
    documents = plan.has("open_webui") and row["role"] in ("open_webui", "qdrant")
    indexed = row["plan"].get("vectors", "") if documents and not other else ""
    leave = ("qdrant",) if other else MODELS if row["role"] == "ollama" else ()
    return Change(
        site, row["role"], plan, (with_artifacts(plan, moved),), listen, patience_s, kind="rollback", put=row["id"],
        leave=leave, vectors=indexed, expected=without_runs(row["counts"]), run=run,
    )  # fmt: skip


def without_runs(counts: dict[str, Any]) -> dict[str, Any]:
    """Counts without n8n's finished runs, which it prunes by itself when they are old."""
    tables = {
        name: {what: number for what, number in rows.items() if what != "runs"}
        for name, rows in counts.get("tables", {}).items()
    }
    return {**counts, "tables": tables}


def lost(site: Site, plan: Plan, row: dict[str, Any], change: Change) -> list[str]:
    """What was made since the snapshot, in words. Of models today's have to be there afterwards.

    A service that does not answer cannot be counted, and is no hindrance: it may be why somebody goes back.
    """
    from ..engine.upgrades import count_spec
    from ..upgrading import since

    made = datetime.datetime.fromtimestamp(row["created"], datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.000")
    try:
        now = site.session.step("snapshots.counts", count_spec(plan, row["role"], made))
    except RunError as error:
        change.expected = {**(change.expected or {}), "models": {}}
        return [f"what {row['role']} holds more cannot be counted ({error.message})"]
    if "qdrant" in change.leave:
        now = {**now, "vectors": {}}
    change.expected = {**(change.expected or {}), "models": now.get("models", {})}
    return since(without_runs(row["counts"]), {**now, "models": {}})


@click.command()
@target_options
@click.argument("service", required=False, default="")
@click.option("-y", "--yes", is_flag=True, help="Go on without being asked.")
@click.option("--discard", is_flag=True, help="Remove the snapshots instead, and what lies aside.")
@click.option(
    "--patience",
    type=click.IntRange(10, 86400),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="How long the earlier version may take to start before today's is put back.",
)
def rollback(
    host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
    as_json: bool, verbose: int, service: str, yes: bool, discard: bool, patience: int,
) -> int:  # fmt: skip
    """Go back to what a service was before its last upgrade: program and data together.

    What was made since is named first. Today's data is copied before anything changes, and stays on the disk.
    """
    from ..engine.apply import execute
    from ..kit import activate
    from . import upgrade_run
    from .upgrade import present

    began = time.monotonic()
    settings = read_settings(config_file, sets, host=host)
    with (
        open_site(settings, sudo_password_file, doing="rollback") as site,
        Progress(quiet=as_json, verbose=verbose > 0) as progress,
    ):
        upgrade_run.end_first(site, progress)
        plan = present(site)
        if discard:
            data = _discard(site, plan, service, yes, as_json)
        else:
            rows = chosen(site, plan, service)
            activate()
            import deploy

            execute(site.session, deploy.runner, progress, plan=plan)
            changes = ways_back(site, plan, rows, progress, patience)
            gone = [line for row, change in zip(rows, changes, strict=True) for line in lost(site, plan, row, change)]
            if not as_json:
                tell(rows, changes, gone)
            confirm(f"Go back on {plan.host.hostname}?", yes, as_json)
            done = upgrade_run.carry_out_all(changes)
            data = {"to": [public(row) for row in rows], "lost": gone, "done": done}
    data["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        emit_json("rollback", data)
        return 0
    if discard:
        aside = f", and {len(data['replaced'])} that lay aside" if data["replaced"] else ""
        say(f"Removed {len(data['removed'])} snapshots{aside}.")
        return 0
    for one in done:
        say(f"{one['service']}: {upgrade_run.words(one)}; {len(one['checks'])} checks; until now: {one['snapshot']}")
    say("`ownstack rollback` again goes back to what was there until now.")
    return 0


def ways_back(site: Site, plan: Plan, rows: list[dict[str, Any]], listen: Any, patience_s: int) -> list[Change]:
    """One way after the other, each from where the one before it ends."""
    from .upgrade_run import new_id

    changes, run = [], new_id()
    for row in rows:
        change = way_back(site, plan, row, listen, patience_s, run)
        changes.append(change)
        plan = change.plan
    return changes


def tell(rows: list[dict[str, Any]], changes: list[Change], gone: list[str]) -> None:
    for row in rows:
        note(told(row))
    note(f"lost by going back: {', '.join(gone) or 'nothing that can be counted'}; a copy of today stays")
    if any("qdrant" in change.leave for change in changes):
        note("Qdrant's data stays as it is: another version has opened it since")
    if any("manifests" in change.leave for change in changes):
        note("models stay as they are")


def _discard(site: Site, plan: Plan, service: str, yes: bool, as_json: bool) -> dict[str, Any]:
    from ..engine.upgrades import place
    from ..upgrading import role_named

    # what a restore has put in the place of the data is of no one service
    wanted = role_named(plan, service) if service not in ("", "restore") else service
    there = held(site, plan)
    rows, gone = ([row for row in there[name] if not wanted or row["role"] == wanted] for name in there)
    if not as_json:
        for line in [*map(told, rows), *map(told_replaced, gone)]:
            note(line)
    if rows or gone:
        confirm("Remove these? There is no way back to them then.", yes, as_json)
        ids = dict.fromkeys(row["id"] for row in (*rows, *gone))
        site.session.step("snapshots.drop", {**place(plan), "ids": list(ids)})
    return {"removed": [public(row) for row in rows], "replaced": gone}
