"""`ownstack verify`: is the box as planned?"""

from __future__ import annotations

from pathlib import Path

import click

from .output import emit_json, say
from .site import open_site, read_settings, target_options


@click.command()
@target_options
def verify(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
) -> int:
    """Check that the box is as planned. Exit code 1 when a check fails or is amber. Leaves nothing behind."""
    from ..verify.runner import verify as run_verify
    from .report import failure, summary, tell

    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file) as site:
        report = run_verify(site.recorded_plan(), site.session, (lambda result: None) if as_json else tell)
    if as_json:
        checks = [result.as_dict() for result in report.results]
        emit_json("verify", {"ok": report.ok, "checks": checks}, failure(report))
    else:
        say(summary(report))
    return 0 if report.ok else 1
