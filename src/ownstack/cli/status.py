"""`ownstack status`: what runs, where, and what is pending."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OwnstackError, RunError
from .output import emit_json, say, size, style
from .rollback import held, public, told, told_replaced
from .show import NETWORK
from .site import Site, open_site, read_settings, target_options
from .upgrade_self import describe as describe_data
from .upgrade_self import state as data_state

if TYPE_CHECKING:
    from ..plan import Plan


def gather(site: Site) -> dict[str, Any]:
    """Everything that `status` knows, as data."""
    plan = site.recorded_plan()
    from ..engine import units
    from ..kit import activate
    from ..upgrading import newer

    activate()
    from roles import roles_of

    services = []
    for role in roles_of(plan):
        for service in role.services(plan):
            now = site.state.services.get(service.name, {})
            services.append(
                {
                    "name": service.name, "running": bool(now.get("active")), "state": now.get("state", "unknown"),
                    "enabled": bool(now.get("enabled")), "pid": now.get("pid", 0), "ports": list(service.ports),
                    "network": service.network, "unit": plan.layout.unit(service.name),
                    "missing": [] if now.get("active") else missing(site, [*service.writable, *service.readable]),
                }
            )  # fmt: skip
    floors, copies = site.data.floors, held(site, plan)
    age = (datetime.date.today() - floors.checked).days
    return {
        "host": plan.host.hostname,
        "kit_version": plan.kit_version,
        "profile": plan.profile,
        "services": services,
        "models": [model.model_dump(mode="json") for model in plan.models],
        "work": site.state.work,
        "data": data_state(),
        "holder": site.state.holder,
        "cut_off": site.state.unfinished if site.state.unfinished and not site.state.holder else None,
        "edited": list(site.state.edited),
        "recovered": list(site.state.recovered),
        "versions": {a.name: a.version for role in plan.roles for a in role.artifacts},
        "below_floor": [f"{a.name} {a.version}" for role in plan.roles for a in role.artifacts if a.below_floor],
        "pins_checked": floors.checked.isoformat(),
        "pins_age_days": age,
        "pins_old": age > floors.warn_after_days,
        "hardware_changes": hardware_changes(site, plan),
        "gpu_watch": gpu_watch(site, plan),
        "drifted": drifted(site, plan),
        "maintenance": maintenance(site, plan),
        "adopted": {"unit": plan.adopted.unit, "version": plan.adopted.version} if plan.adopted else None,
        "backup": {
            **backup_state(site, plan),
            "every": plan.backup.every if plan.backup else "never",
            "unit": plan.layout.unit("backup"),
            "look": f"{units.systemctl(plan)} status {plan.layout.unit('backup')}",
        },
        "upgrades": newer(plan, site.data),
        "snapshots": [public(row) for row in copies["snapshots"]],
        "replaced": copies["replaced"],
        "absent_protections": list(plan.absent_protections),
    }


def missing(site: Site, paths: list[str]) -> list[str]:
    """Folders of a service that are not there: it does not start without them."""
    try:
        return list(site.session.step("box.missing", {"paths": paths})["missing"]) if paths else []
    except RunError:  # the box's runner is older than this question
        return []


def hardware_changes(site: Site, plan: Plan) -> list[str]:
    """What changed in the hardware, and how many models that would change. A plan is made only where something did."""
    from ..hardware.change import describe_change
    from .plan import hardware_changes as with_models

    changes = describe_change(plan.hardware, site.report)
    if not changes:
        return []
    try:
        return with_models(site, site.plan())
    except OwnstackError:  # a plan cannot be made, for instance since the card cannot be read: `plan` says why
        return changes


def gpu_watch(site: Site, plan: Plan) -> dict[str, Any]:
    """What the watch over the graphics card saw last; empty where there is none."""
    from roles.ollama import watch

    if not watch.wanted(plan):
        return {}
    return site.session.step("gpu.state", {"state": watch.state_file(plan)})


def drifted(site: Site, plan: Plan) -> list[str]:
    """Keys of Open WebUI that the kit owns and somebody changed; none where it cannot be asked (`verify` says why)."""
    if not plan.has("open_webui") or not site.state.services.get("open_webui", {}).get("active"):
        return []
    from roles.open_webui import configure_spec

    try:
        data = site.session.step("open_webui.drift", configure_spec(plan))
    except RunError:
        return []
    return [str(item["key"]) for item in data["drift"]]


def backup_state(site: Site, plan: Plan) -> dict[str, Any]:
    """The last backup; empty where none was made, or where the box is older than backups are."""
    from ..engine.backups import state_file

    try:
        return site.session.step("backup.state", {"state": state_file(plan)})
    except RunError:
        return {}


def maintenance(site: Site, plan: Plan) -> dict[str, Any]:
    """What the last maintenance of n8n's database did; empty where there was none, or where there is no n8n."""
    if not plan.has("n8n"):
        return {}
    from roles.n8n import maintain

    try:
        return site.session.step("n8n.maintained", {"state": maintain.state_file(plan)})
    except RunError:  # a box that is older than this
        return {}


def describe_maintenance(data: dict[str, Any]) -> str:
    """One line on the last maintenance; empty where there was none yet."""
    if not data.get("time"):
        return ""
    when = f"{datetime.datetime.fromtimestamp(data['time']):%Y-%m-%d %H:%M}"
    if data["did"] == "vacuumed":
        return f"n8n's database was made smaller {when}: {size(data['before'])}, now {size(data['bytes'])}"
    why = f" ({data['why']})" if data.get("why") else ""
    return f"n8n's database, last maintenance {when}: {data['did']}{why}"


# after so many days without a word of one it was killed, or something keeps the timer's unit from starting
OVERDUE_DAYS = {"day": 2, "week": 9}


def describe_overdue(data: dict[str, Any]) -> str:
    """One line where the timer should have made a backup and neither one nor a failure was noted; empty else."""
    times = [one["time"] for one in (data.get("last"), data.get("failed")) if one]
    tried = max((*times, data.get("scheduled", 0)))
    days = OVERDUE_DAYS.get(data.get("every", ""), 0)
    if not tried or not days or datetime.datetime.now().timestamp() - tried < days * 86400:
        return ""
    return (
        f"nothing was heard of a backup since {day(tried)}, though one is due every {data['every']}: "
        f"`{data['look']}` shows why (a disk that is not there, say)"
    )


def describe_backup(data: dict[str, Any]) -> str:
    """One line on the last backup, with its age."""
    last, failed = data.get("last"), data.get("failed")
    if failed:
        tried = datetime.datetime.fromtimestamp(failed["time"])
        word = "was put off" if failed.get("postponed") else "failed"
        return f"the backup of {tried:%Y-%m-%d %H:%M} {word}: {failed['message']}" + (
            f"; the last good one: {last['file']}" if last else ""
        )
    if not last and data.get("every", "never") != "never":
        return f"no backup was made yet; the first of every {data['every']} is yet to come"
    if not last:
        return "no backup was made yet: `ownstack backup --to FOLDER`"
    made = datetime.datetime.fromtimestamp(last["time"])
    days = (datetime.datetime.now() - made).days
    age = "today" if days < 1 else f"{days} days ago" if days > 1 else "1 day ago"
    return f"last backup: {made:%Y-%m-%d %H:%M} ({age}), {last['file']}, {size(last['bytes'])}"


def describe_drill(data: dict[str, Any]) -> str:
    """One line on whether a backup was ever tried, and what came of it."""
    from .backup import when

    drill, good = data.get("drill"), data.get("restorable")
    lines = []
    if drill and not drill["ok"]:
        word = "failed" if drill["tried"] else "could not be made"
        lines.append(f"the restore drill of {day(drill['time'])} {word}: {drill['message']}")
    if good:
        lines.append(f"restorable: the backup of {when(good['created'])}, tried on {day(good['time'])}")
    return "; ".join(lines) or "no backup was ever tried: `ownstack backup --drill`"


def day(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d}"


def describe_gpu_watch(data: dict[str, Any]) -> list[str]:
    from roles.ollama.watch import told

    if not data:
        return []
    lines = [] if data.get("ok", True) else [f"the graphics card: {data.get('what', '')}"]
    return lines + [f"the graphics card, {told(event)}" for event in data.get("events", [])[-3:]]


def show_services(data: dict[str, Any]) -> None:
    from ..verify.common import FOLDER_GONE

    for service in data["services"]:
        word = style("running", "green") if service["running"] else style(service["state"], "red")
        ports = ", ".join(f"127.0.0.1:{port}" for port in service["ports"])
        say(f"  {service['name']:<12} {word:<10} {ports:<18} {NETWORK[service['network']]}")
        for path in service["missing"]:
            say(f"  {'':<12} {path} is not there: {FOLDER_GONE}")
    if data["adopted"]:
        say(f"  {'ollama':<12} adopted: {data['adopted']['unit']}, {data['adopted']['version']}")


def show(data: dict[str, Any]) -> None:
    say(f"Box on {data['host']}, profile {data['profile']}, made by ownstack {data['kit_version']}")
    say(f"  {describe_data(data['data'])}")
    say()
    show_services(data)
    say()
    for model in data["models"]:
        say(f"  {model['use']:<12} {model['tag']}")
    for line in going_on(data["work"]):
        say(f"  {line}")
    for line in describe_runs(data):
        say(f"\n  {line}")
    say()
    backup = data["backup"]
    about = (describe_backup(backup), describe_overdue(backup), describe_drill(backup))
    for line in filter(None, (*about, describe_maintenance(data["maintenance"]))):
        say(f"  {line}")
    for row in data["snapshots"]:
        say(f"  way back (`ownstack rollback {row['role']}`): {told(row)}")
    for row in data["replaced"]:
        say(f"  kept aside (`ownstack rollback --discard {row['role']}` removes it): {told_replaced(row)}")
    for line in describe_versions(data):
        say(f"\n  {line}")
    for line in data["hardware_changes"]:
        say(f"\n  changed since the box was made: {line}; `ownstack plan` shows what that means")
    if data["drifted"]:
        say(f"\n  changed in Open WebUI: {', '.join(data['drifted'])}; `ownstack up` puts them back,")
        say("  `[open_webui] user_owned = [...]` makes them yours")
    for line in (*describe_gpu_watch(data["gpu_watch"]), *data["absent_protections"]):
        say(f"\n  {line}")


def describe_versions(data: dict[str, Any]) -> list[str]:
    """What is too old, what is newer, and how old the pins themselves are."""
    found = []
    if data["below_floor"]:
        found.append(f"below the security floor: {', '.join(data['below_floor'])}")
    if data["upgrades"]:
        found.append(f"upgrade available: {', '.join(data['upgrades'])}; `ownstack upgrade --check` says more")
    if data["pins_old"]:
        found.append(f"the pins were checked {data['pins_age_days']} days ago: look for a newer ownstack")
    return found


def moment(event: dict[str, Any]) -> str:
    return f"{datetime.datetime.fromtimestamp(event.get('time', 0)):%Y-%m-%d %H:%M}"


def describe_cut(event: dict[str, Any]) -> str:
    """The step of the journal in which a run was cut off."""
    return f"`ownstack {event.get('run', 'up')}` was cut off at {moment(event)} in the step {event['step']!r}"


def describe_runs(data: dict[str, Any]) -> list[str]:
    """Who works on the box, where a run was cut off, and what was put in order after a start of the machine."""
    lines = [f"being worked on: {data['holder']}"] if data["holder"] else []
    if data["cut_off"]:
        lines.append(f"{describe_cut(data['cut_off'])}; run it again: it goes on")
    if data["edited"]:
        lines.append(f"edited by hand: {', '.join(data['edited'])}; `ownstack plan` shows the difference")
    told = "{}, after a start of the machine: {}"
    return lines + [told.format(moment(event), event.get("what", event["step"])) for event in data["recovered"]]


def going_on(works: dict[str, Any]) -> list[str]:
    """What is not at its end."""
    own = ("restore", "upgrade")
    lines = [describe_work(name, w) for name, w in works.items() if name not in own and w.get("status") != "done"]
    if works.get("upgrade", {}).get("status") in ("taking", "taken", "passed"):
        lines.append(f"an upgrade of {works['upgrade'].get('role')} is going on or was cut off: `ownstack up` ends it")
    restore = works.get("restore", {})
    if restore.get("status") in ("swapping", "swapped"):
        what = "an import" if restore.get("import") else "a restore"
        lines.append(f"{what} was cut off: `ownstack up` puts back what was there")
    return lines


def describe_work(name: str, work: dict[str, Any]) -> str:
    """One line about something that goes on in the background."""
    done, total = work.get("done"), work.get("total")
    parts = [f"{name}: {work.get('status', 'going on')}"]
    if done and total:
        parts.append(f"{size(done)} of {size(total)}")
        rate = work.get("rate")
        if rate:
            parts.append(f"{size(rate)}/s, {int((total - done) / rate / 60) + 1} min left")
    if work.get("error"):
        parts.append(str(work["error"].get("message", "")))
    return ", ".join(parts)


@click.command()
@target_options
def status(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
) -> int:
    """Show what runs, where, how far each service may reach, and what is pending."""
    settings = read_settings(config_file, sets, host=host)
    with open_site(settings, sudo_password_file) as site:
        data = gather(site)
    stopped = [
        service["name"] + "".join(f" ({path} is not there)" for path in service["missing"])
        for service in data["services"]
        if not service["running"]
    ]
    hint = "`ownstack start` starts them, `ownstack logs` shows why they ended"
    if any(service["missing"] for service in data["services"]):
        from ..verify.common import FOLDER_GONE

        hint = FOLDER_GONE
    error = RunError(f"not running: {', '.join(stopped)}", hint=hint, code="not-running") if stopped else None
    if as_json:
        emit_json("status", data, error)
    else:
        show(data)
    return error.exit_code if error else 0
