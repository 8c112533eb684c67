"""`ownstack logs`."""

from __future__ import annotations

from pathlib import Path

import click

from .control import chosen_services
from .output import emit_json, say
from .site import open_site, read_settings, target_options


@click.command()
@target_options
@click.option("-n", "--lines", default=50, show_default=True, help="How many lines.")
@click.argument("services", nargs=-1)
def logs(
    host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
    as_json: bool, verbose: int, lines: int, services: tuple[str, ...],
) -> int:  # fmt: skip
    """Show the last log lines of services (all, or the named ones)."""
    from ..engine import units

    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file) as site:
        plan = site.recorded_plan()
        names = [plan.layout.unit(service.name) for _, service in chosen_services(plan, services)]
        spec = {"manager": plan.manager, "units": names, "lines": lines, "log_dir": units.log_dir(plan)}
        text = site.session.step("box.logs", spec)["text"]
    if as_json:
        emit_json("logs", {"lines": text.splitlines()})
    else:
        say(text.rstrip())
    return 0
