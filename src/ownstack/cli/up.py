"""`ownstack up`: look, plan, ask, apply, verify, and say how to open it."""

from __future__ import annotations

import getpass
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from .again import current
from .output import UsageError, confirm, emit_json, note, say, style
from .progress import Progress
from .show import plan_lines
from .site import Site, model_options, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..plan import Plan


def reviewed(file: Path, site: Site) -> Plan:
    """The plan in FILE, if it was made for this host and for what is on it. Raises ConfigError otherwise."""
    from pydantic import ValidationError

    from ..plan import Plan

    run, name = current(), f"plan in {file}"
    try:
        plan = Plan.model_validate(json.loads(run.once(name, file.read_text)))
    except (OSError, ValueError, ValidationError) as error:
        raise ConfigError(f"{file} is not a plan: {error}", hint="`ownstack plan --out FILE` writes one") from error
    from .. import __version__

    again = "make a new one: `ownstack plan --out FILE`"
    if plan.kit_version != __version__:
        raise ConfigError(f"{file} was made by version {plan.kit_version}, this is {__version__}", hint=again)
    if plan.host.machine_id_hash != site.report.host.machine_id_hash:
        raise ConfigError(f"{file} was made for {plan.host.hostname}, this is {site.report.host.hostname}", hint=again)
    if plan.hardware_fingerprint != site.report.fingerprint():
        raise ConfigError(f"{file}: the hardware has changed since the plan was made", hint=again)
    # once it has begun it is this very plan that changes the box, up to where a connection breaks
    if plan.state_hash != site.state.digest() and name not in run.agreed:
        raise ConfigError(f"{file}: the box has changed since the plan was made", hint=again)
    run.agreed.add(name)
    return plan


@click.command()
@target_options
@click.option("-y", "--yes", is_flag=True, help="Go on without being asked.")
@click.option("--mirror", default=None, help="URL or folder that replaces the network.")
@click.option("--cpu-only", is_flag=True, help="Go on without the GPU, knowingly.")
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    default=None,
    help="Apply exactly the reviewed plan in FILE.",
)
@click.option("--from", "from_report", type=click.Path(path_type=Path), default=None, hidden=True)
@click.option("--no-verify", is_flag=True, help="Do not verify afterwards.")
@click.option("--overwrite", is_flag=True, help="Replace files of the box that were edited by hand; they stay beside.")
@click.option("--prune", is_flag=True, help="Remove models of earlier plans that this box pulled, after verifying.")
@model_options
def up(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
    yes: bool,
    mirror: str | None,
    cpu_only: bool,
    plan_file: Path | None,
    from_report: Path | None,
    no_verify: bool,
    overwrite: bool,
    prune: bool,
    keep_models: bool,
    refit: bool,
    pins: tuple[str, ...],
) -> int:
    """Install and configure the box as planned, then verify it.

    Run it again at any time: it changes only what differs.
    """
    from ..engine.apply import execute
    from ..kit import activate
    from ..transition import lines as transition_lines
    from ..verify.runner import VerifyReport
    from ..verify.runner import verify as run_verify
    from . import edited, reprovision
    from .report import failure, summary, tell

    agree(prune, no_verify)
    began = time.monotonic()
    settings = read_settings(
        config_file, sets, pins=pins, host=host, mirror=mirror, cpu_only=cpu_only, keep_models=keep_models, refit=refit
    )
    with open_site(settings, sudo_password_file, from_report, "up") as site:
        settle(site)
        plan = reviewed(plan_file, site) if plan_file is not None else site.plan()
        move = reprovision.transaction(site, plan)
        rows = edited.look(site, plan)
        if not as_json:
            change = transition_lines(move.change) if move else ()
            for line in [*plan_lines(plan), "", *change, *edited.lines(rows, overwrite)]:
                note(line)
            note("")
        # a card that is not there yet after a start of the machine, say, makes it another plan
        confirm(f"Install this on {site.report.host.hostname}?", yes, as_json, site.report.fingerprint())
        activate()
        from deploy import apply

        edited.give_up(site, plan, rows if overwrite else [])
        with Progress(quiet=as_json, verbose=verbose > 0) as progress:
            if move:
                move.bring(progress)
            look = reprovision.look(site, plan, move)
            result = reprovision.switch(move, lambda: execute(site.session, apply, progress, look, plan=plan))
        if not as_json:
            note(
                f"{result.changed} changed, {result.total - result.changed} as they were, "
                f"{time.monotonic() - began:.1f} s"
            )
            for line in (line for op in result.operations for line in op.said):
                note(line)
        report = VerifyReport(())
        if not no_verify:
            report = run_verify(plan, site.session, (lambda r: None) if as_json else tell)
        if move:
            move.end(report)
        leftovers = reprovision.tidy(site, plan, prune and reprovision.settled(report), move is not None, result.looked)
        if not as_json:
            reprovision.tell(leftovers)
    if as_json:
        data: dict[str, Any] = {
            "changed": result.changed,
            "operations": [
                {"name": op.name, "changed": op.changed, **({"said": op.said} if op.said else {})}
                for op in result.operations
            ],
            "verify": {"ok": report.ok, "checks": [r.as_dict() for r in report.results]},
            "change": move.change.as_dict() if move else None,
            "leftovers": leftovers,
            "edited": rows,
            "seconds": round(time.monotonic() - began, 1),
        }
        emit_json("up", data, failure(report))
    else:
        if not no_verify:
            say(summary(report))
        for line in how_to_open(plan):
            say(line)
    return 0 if report.ok else 1


def agree(prune: bool, no_verify: bool) -> None:
    """Raises UsageError for options that do not go together."""
    if prune and no_verify:
        raise UsageError(
            "--prune removes models only after the checks, and --no-verify leaves them out",
            hint="leave out one of the two",
        )


def settle(site: Site) -> None:
    """Say where an earlier run was cut off, and take back what must not go on."""
    from . import restore, upgrade_run

    if site.state.unfinished:
        from .status import describe_cut

        note(f"{describe_cut(site.state.unfinished)}: this run goes on from there")
    upgrade_run.end_first(site)
    restore.clear_second(site)


def how_to_open(plan: Plan) -> list[str]:
    """Addresses that work from where the user sits."""
    lines = [""]
    away = plan.host.target != "local"
    if plan.has("open_webui"):
        if away:
            lines.append(f"Open it:   ownstack open --host {plan.host.target}")
        else:
            lines.append(f"Open it:   http://127.0.0.1:{plan.role('open_webui').ports['port']}   (`ownstack open`)")
        lines.append(
            f"Sign in:   `ownstack password{' --host ' + plan.host.target if away else ''}` says where the password is"
        )
    if plan.has("n8n") and not away:
        lines.append(f"Automate:  http://127.0.0.1:{plan.role('n8n').ports['port']}   (`ownstack open n8n`)")
    server = os.environ.get("SSH_CONNECTION", "").split()
    if not away and len(server) == 4:  # who typed this sits at another machine: client, port, server, port
        ports = [plan.role(name).ports["port"] for name in ("open_webui", "n8n") if plan.has(name)]
        words = " ".join(f"-L {port}:127.0.0.1:{port}" for port in ports)
        if ports:
            lines.append(f"You are here over SSH: first run `ssh {words} {getpass.getuser()}@{server[2]}` at your desk")
    return [style(line, bold=True) if line.startswith("Open it") else line for line in lines]
