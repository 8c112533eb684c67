"""`ownstack start`, `stop`, `restart`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError
from .output import emit_json, note
from .site import open_site, read_settings, target_options


def chosen_services(plan: Any, names: tuple[str, ...]) -> list[tuple[Any, Any]]:
    """(role, service) pairs by name; all where none is named. Raises ConfigError for an unknown one."""
    import difflib

    from ..kit import activate

    activate()
    from roles import roles_of

    pairs = [(role, service) for role in roles_of(plan) for service in role.services(plan)]
    known = {service.name.replace("_", "-"): (role, service) for role, service in pairs}
    found = []
    for name in names:
        key = name.replace("_", "-")
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean `{near[0]}`?" if near else "services here: " + ", ".join(known)
            raise ConfigError(f"there is no service {name!r} on this box", hint=hint)
        found.append(known[key])
    return found or pairs


def make(action: str, summary: str) -> click.Command:
    def run(
        host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
        as_json: bool, verbose: int, services: tuple[str, ...],
    ) -> int:  # fmt: skip
        from ..engine.operations import service_list

        settings = read_settings(config_file, sets, host=host)
        with open_site(settings, sudo_password_file, doing=action) as site:
            plan = site.recorded_plan()
            done = []
            for role, service in chosen_services(plan, services):
                spec = {**service_list(plan, [service], role.files(plan)), "action": action}
                site.session.step("box.control", spec)
                done.append(service.name)
                if not as_json:
                    note(f"{action}: {service.name}")
        if as_json:
            emit_json(action, {"services": done})
        return 0

    run.__doc__ = summary
    command: Callable[..., Any] = click.argument("services", nargs=-1)(run)
    return click.command(name=action)(target_options(command))


start = make("start", "Start the box's services (all, or the named ones) and wait until they are ready.")
stop = make("stop", "Stop the box's services (all, or the named ones). They start again at the next boot.")
restart = make("restart", "Restart the box's services (all, or the named ones) and wait until they are ready.")
