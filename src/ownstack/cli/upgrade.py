"""`ownstack upgrade`: services to the versions of this ownstack's lock, one after the other, each with a way back."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RunError
from .again import current
from .output import confirm, emit_json, note, say, size
from .progress import Progress
from .site import Site, open_site, read_settings, target_options
from .upgrade_self import with_self

if TYPE_CHECKING:
    from ..choosing.artifacts import Wanted
    from ..plan import Plan
    from ..upgrading import Move, Upgrade

MAJOR = {"major": "a major step", "minor": "a minor step", "patch": "a small step", "packages": "other packages"}


def wanted(site: Site, plan: Plan) -> Wanted:
    """What the choice of versions depends on, for a box that stands."""
    from ..choosing.artifacts import Wanted
    from ..engine.preflight import ask_sources

    if site.sources is None:
        site.sources = ask_sources(site.session, site.data, site.settings)
    base = site.settings.base
    return Wanted(
        report=site.report, sources=site.sources, state=site.state, data=site.data, platform=plan.platform,
        engine=plan.engine, mirror=base.sources.mirror, local=base.host == "local",
        restricted=base.sources.restricted, allow_below_floor=base.sources.allow_below_floor,
    )  # fmt: skip


def present(site: Site) -> Plan:
    """The plan that serves, with today's mirror."""
    from ..upgrading import filled

    plan = filled(site.recorded_plan())
    if (site.state.manifest or {}).get("previous_plan"):
        raise RunError(
            "a change of models or hardware was cut off",
            hint="`ownstack up` ends it; then run again",
            code="unfinished",
        )
    return plan.model_copy(update={"mirror": site.settings.base.sources.mirror})


def gather(site: Site, plan: Plan, found: Upgrade) -> dict[str, Any]:
    """What `--check` says, as data."""
    from .upgrade_rehearse import REHEARSED

    floors = site.data.floors
    age = (datetime.date.today() - floors.checked).days
    components = []
    seen = {move.component for move in found.moves} | {item.component for item in found.held}
    for part in plan.roles:
        for item in part.artifacts:
            floor, why = floors.of(item.name)
            if item.name in seen:
                below = floors.below(item.name, item.version)
                components.append(
                    {"component": item.name, "version": item.version, "floor": floor, "why": why, "below": below}
                )
    changes = [{**move.as_dict(), "rehearsal": move.step == "major" and move.role in REHEARSED} for move in found.moves]
    pins = {"checked": floors.checked.isoformat(), "age_days": age, "old": age > floors.warn_after_days}
    return {
        "pins": pins, "components": components, "changes": changes, "held": [item.as_dict() for item in found.held],
        "changed": len(changes),
    }  # fmt: skip


def change_line(move: Move) -> str:
    parts = [f"{move.component} {move.old.version} to {move.new.version}", MAJOR[move.step]]
    if move.via:
        parts.append(f"by way of {', '.join(item.version for item in move.via)}")
    parts.append(f"{size(move.download_bytes)} to fetch" if move.download_bytes else f"from {move.new.source}")
    return f"  {move.role:<12} {', '.join(parts)}"


def show(data: dict[str, Any], found: Upgrade) -> None:
    pins = data["pins"]
    late = "; look for a newer ownstack" if pins["old"] else ""
    say(f"The pins of this ownstack were checked on {pins['checked']}, {pins['age_days']} days ago{late}")
    say()
    for row in data["components"]:
        floor = f"floor {row['floor']}" if row["floor"] else "no floor"
        below = f"  BELOW ITS SECURITY FLOOR ({row['why']})" if row["below"] else ""
        say(f"  {row['component']:<16} {row['version']:<14} {floor}{below}")
    say()
    for move in found.moves:
        say(change_line(move))
    for item in found.held:
        if item.refused:
            say(f"  {item.role:<12} {item.component} {item.version} stays: {item.why}")
    say("Nothing is newer." if not found.moves else "`ownstack upgrade` carries it out, with a way back.")


@click.command()
@target_options
@click.argument("services", metavar="[SERVICE]...", nargs=-1)
@click.option("-y", "--yes", is_flag=True, help="Go on without being asked.")
@click.option("--check", is_flag=True, help="Only say how old the versions are and what would change.")
@click.option(
    "--rehearse/--no-rehearse",
    "rehearsed",
    default=None,
    help="Try the new version on a copy of the data first; by default for major steps, where memory allows.",
)
@click.option("--mirror", default=None, help="URL or folder that replaces the network.")
@click.option(
    "--patience",
    type=click.IntRange(10, 86400),
    default=1800,
    show_default=True,
    metavar="SECONDS",
    help="How long a new version may change its data before it is put back.",
)
@with_self
def upgrade(
    host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
    as_json: bool, verbose: int, services: tuple[str, ...], yes: bool, check: bool,
    rehearsed: bool | None, mirror: str | None, patience: int,
) -> int:  # fmt: skip
    """Bring services to the versions of this ownstack: all of them, or those that are named.

    One after the other: the new version is fetched beside the old one, the service stops, its data is copied and the
    copy opened, the new version starts and has to pass what `verify` looks at, with nothing lost. Where anything of
    that fails, program and data are put back together. `ownstack rollback` goes back later.
    """
    from .. import upgrading
    from . import edited, upgrade_run

    began = time.monotonic()
    settings = read_settings(config_file, sets, host=host, mirror=mirror)
    doing = "" if check else "upgrade"
    with (
        open_site(settings, sudo_password_file, doing=doing) as site,
        Progress(quiet=as_json, verbose=verbose > 0) as progress,
    ):
        if not check:
            upgrade_run.end_first(site, progress)
        plan = present(site)
        names = tuple(upgrading.role_named(plan, word) for word in services)
        found = upgrading.find(plan, wanted(site, plan), names)
        data = gather(site, plan, found)
        if check:
            return _checked(data, found, as_json)
        if names:
            upgrading.refused(found)
        if found.moves:
            end = upgrading.stages(plan, found.moves)[-1]
            data["edited"] = rows = edited.look(site, end)
            if not as_json:
                for line in [*map(change_line, found.moves), *edited.lines(rows)]:
                    note(line)
            confirm(f"Upgrade this on {plan.host.hostname}?", yes, as_json)
        data["done"] = carry_out(site, plan, found, progress, patience, rehearsed)
    data["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        emit_json("upgrade", data)
        return 0
    for item in found.held:
        if item.refused:
            note(f"{item.component} {item.version} stays: {item.why}")
    for row in data["done"]:
        say(done_line(row))
    say("`ownstack rollback` goes back, program and data together." if data["done"] else "Nothing is newer: 0 changes.")
    return 0


def _checked(data: dict[str, Any], found: Upgrade, as_json: bool) -> int:
    if as_json:
        emit_json("upgrade", data)
    else:
        show(data, found)
    return 0


def done_line(row: dict[str, Any]) -> str:
    from .upgrade_run import words

    return (
        f"{row['service']}: {words(row)}; {len(row['checks'])} checks, nothing lost, stood still for "
        f"{row['down_seconds']} s; the data of before ({size(row['bytes'])}) is in {row['snapshot']}"
    )


def carry_out(
    site: Site, plan: Plan, found: Upgrade, listen: Any, patience_s: int, rehearsed: bool | None
) -> list[dict[str, Any]]:
    """Each service in turn: what one has reached stays, also where a later one is put back."""
    from ..upgrading import stages
    from .upgrade_rehearse import REHEARSED, rehearse, wished
    from .upgrade_run import Change, carry_out_all, new_id

    changes, attempt = [], new_id()
    run = current().once("upgrade", lambda: attempt)
    for role in found.roles:
        path = stages(plan, found.of(role))
        change = Change(site, role, plan, path, listen, patience_s, run=run, attempt=attempt)
        changes.append(change)
        plan = change.plan
    try:
        for change in changes:
            change.stage()
            major = any(move.step == "major" for move in found.of(change.role))
            if rehearsed and change.role not in REHEARSED:
                note(f"{change.role} has nothing to rehearse: Open WebUI and n8n have, which change their databases")
            if wished(change, rehearsed, major):
                change.rehearsed = rehearse(change, bool(rehearsed))
    finally:
        if changes and site.session.alive:
            changes[-1].unstage()
    return carry_out_all(changes)
