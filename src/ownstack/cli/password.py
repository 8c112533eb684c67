"""`ownstack password`: where the first passwords are, and new ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import confirm, emit_json, say
from .site import Site, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..plan import Plan

# role -> (secret with the first password, setting with the sign-in name, step that makes a new one)
ACCOUNTS = {
    "open_webui": ("open_webui_admin_password", "admin_email", "open_webui.password_reset"),
    "n8n": ("n8n_owner_password", "owner_email", "n8n.password_reset"),
}


def _user(plan: Plan, role: str, setting: str, imported: dict[str, Any]) -> str:
    return str(imported.get(role, {}).get("owner") or plan.role(role).settings[setting])


def _record(site: Site, plan: Plan, imported: dict[str, Any]) -> None:
    """The owner of imported accounts has a password that was made here now."""
    from ..engine.apply import execute
    from ..kit import activate

    activate()
    from deploy import remember

    execute(site.session, remember, lambda event: None, plan=plan, values={"imported": imported})


@click.command()
@target_options
@click.option("--reset", is_flag=True, help="Make new passwords.")
@click.option("-y", "--yes", is_flag=True, help="Go on without being asked.")
@click.argument("service", type=click.Choice(["open-webui", "n8n"]), required=False)
def password(
    host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
    as_json: bool, verbose: int, reset: bool, yes: bool, service: str | None,
) -> int:  # fmt: skip
    """Show where the first passwords are kept, or make new ones with --reset. Never prints a password."""
    from .upgrade_run import end_first

    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file, doing="password --reset" if reset else "") as site:
        if reset:
            end_first(site)
        plan = site.recorded_plan()
        roles = [role for role in ACCOUNTS if plan.has(role) and service in (None, role.replace("_", "-"))]
        rows: list[dict[str, Any]] = []
        imported: dict[str, Any] = (site.state.manifest or {}).get("imported", {})
        if reset:
            confirm(f"Make new passwords for {', '.join(roles)}?", yes, as_json)
        for role in roles:
            secret, email, step = ACCOUNTS[role]
            if reset:
                from ..kit import activate

                activate()
                from roles import role as find

                site.session.step(step, find(role).tasks.reset_spec(plan))
                if role in imported:
                    imported[role]["reset"] = True
                    _record(site, plan, imported)
            rows.append(
                {
                    "service": role, "user": _user(plan, role, email, imported),
                    "file": f"{plan.layout.secrets}/{secret}", "reset": reset,
                    "imported": role in imported and not imported[role].get("reset"),
                }
            )  # fmt: skip
    if as_json:
        emit_json("password", {"accounts": rows})
        return 0
    where = "" if plan.host.target == "local" else f"ssh {plan.host.target} "
    sudo = "sudo " if plan.system else ""
    for row in rows:
        if row["imported"]:
            say(f"{row['service']}: its accounts were imported: sign in as you did there")
            continue
        say(
            f"{row['service']}: sign in as {row['user']}; {'new' if reset else 'first'} password: "
            f"{where}{sudo}cat {row['file']}"
        )
    if not reset:
        say("A password that you changed yourself is known to you alone; `ownstack password --reset` makes a new one.")
    return 0
