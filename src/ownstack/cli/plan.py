"""`ownstack plan`: what `up` would do, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import emit_json, say
from .show import plan_lines, section
from .site import Site, model_options, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..hardware.report import HardwareReport
    from ..plan import Plan


@click.command()
@target_options
@click.option("--mirror", default=None, help="URL or folder that replaces the network.")
@click.option("--cpu-only", is_flag=True, help="Plan without the GPU, knowingly.")
@click.option(
    "--from", "from_report", type=click.Path(path_type=Path), default=None, help="Take the hardware from a saved probe."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Write the plan to FILE for `up --plan FILE`."
)
@click.option(
    "--what-if", "cards", default="", metavar="GPU", help='As if it had another card: "RTX 5090", "2x RTX 3090", none.'
)
@model_options
@click.option("--exit-code", is_flag=True, help="Exit with 10 when changes are pending.")
def plan(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
    mirror: str | None,
    cpu_only: bool,
    from_report: Path | None,
    out: Path | None,
    cards: str,
    keep_models: bool,
    refit: bool,
    pins: tuple[str, ...],
    exit_code: bool,
) -> int:
    """Show what `up` would do: services, models, sources, needs, and why. Changes nothing."""
    from ..engine.apply import preview
    from ..kit import activate
    from ..transition import lines as transition_lines
    from . import edited
    from .reprovision import transaction

    settings = read_settings(
        config_file, sets, pins=pins, host=host, mirror=mirror, cpu_only=cpu_only, keep_models=keep_models, refit=refit
    )
    with open_site(settings, sudo_password_file, from_report) as site:
        if cards:
            site.report = supposed(site, cards)
        made = site.plan()
        hardware = hardware_changes(site, made)
        move = transaction(site, made)
        rows = edited.look(site, made)
        changes = []
        if not cards:  # nothing of what is not there can be looked at
            activate()
            from deploy import apply

            result = preview(site.session, apply, plan=made)
            changes = [op.name for op in result.operations if op.changed]
    if out is not None:
        out.write_text(made.model_dump_json(indent=1) + "\n")
    if as_json:
        data: dict[str, Any] = {"plan": made.model_dump(mode="json"), "changes": changes, "changed": len(changes)}
        data["hardware_changes"] = hardware
        data["edited"] = rows
        data["change"] = move.change.as_dict() if move else None
        emit_json("plan", data)
    else:
        for line in plan_lines(made, None if cards else changes):
            say(line)
        for line in ["", *transition_lines(move.change)] if move else []:
            say(line)
        title = "The hardware would have changed" if cards else "The hardware has changed"
        for line in [*section(title, hardware), *edited.lines(rows)]:
            say(line)
    return 10 if exit_code and changes else 0


def supposed(site: Site, cards: str) -> HardwareReport:
    """The machine as if it had other cards."""
    from ..hardware.whatif import with_cards
    from .fit import gpu_words

    if cards.strip().lower() == "none":
        return with_cards(site.report, None)
    count, name = gpu_words(cards, "--what-if")
    return with_cards(site.report, site.data.fit.cards.find(name), count)


def hardware_changes(site: Site, made: Plan) -> list[str]:
    """What changed in the hardware since the box was made, and what that means for its models: one line, or none."""
    from ..hardware.change import describe_change, models_changed

    if not site.state.stands:
        return []
    old = site.recorded_plan()
    changes = "; ".join(describe_change(old.hardware, site.report))
    text = models_changed((m.tag for m in old.models), (m.tag for m in made.models))
    return [": ".join(filter(None, [changes, text]))] if changes else []
