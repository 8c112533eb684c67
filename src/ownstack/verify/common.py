"""Checks that are alike for all services."""

from __future__ import annotations

from collections.abc import Callable

from ..engine import units
from ..engine.preflight import state_spec
from ..plan import Plan, Service
from .check import Check, Context, Outcome

# systemd tries again every two seconds
FOLDER_GONE = "mount or make it, and the service starts by itself; or take it out of [folders] and run `ownstack up`"


def services(plan: Plan) -> list[tuple[str, Service]]:
    from roles import roles_of

    return [(role.name, service) for role in roles_of(plan) for service in role.services(plan)]


def _status(context: Context) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = context.step("box.state", **state_spec(context.plan.layout))["services"]
    return found


def _runs(service: Service) -> Callable[[Context], Outcome]:
    def run(context: Context) -> Outcome:
        now = _status(context).get(service.name, {})
        measured = f"{now.get('state', 'not known')}, {'enabled' if now.get('enabled') else 'not enabled'}"
        if now.get("active") and now.get("enabled"):
            return Outcome.ok(measured, pid=now.get("pid"), restarts=now.get("restarts"))
        gone = context.step("box.missing", paths=[*service.writable, *service.readable])["missing"]
        if gone and not now.get("active"):
            return Outcome.failed(f"{measured}: {' and '.join(gone)} is not there", FOLDER_GONE, missing=gone)
        return Outcome.failed(measured, pid=now.get("pid"), restarts=now.get("restarts"))

    return run


def listens(ports: tuple[int, ...]) -> Callable[[Context], Outcome]:
    """What holds these ports can be reached from this machine only."""

    def run(context: Context) -> Outcome:
        found = context.step("box.ports")["listening"]
        mine = [item for item in found if item["port"] in ports]
        missing = [port for port in ports if port not in {item["port"] for item in mine}]
        open_to = sorted({item["address"] for item in mine if item["address"] not in ("127.0.0.1", "::1")})
        if open_to:
            return Outcome.failed(f"listens on {', '.join(open_to)}: others on the network can reach it")
        if missing:
            return Outcome.failed(f"nothing listens on {', '.join(map(str, missing))}")
        return Outcome.ok(f"listens on 127.0.0.1 only: {', '.join(map(str, ports))}", ports=list(ports))

    return run


def nothing_else(context: Context) -> Outcome:
    """No other port is held open to the network by one of the box's accounts."""
    plan = context.plan
    if not plan.system:
        return Outcome.skipped("all services run under the user's own account: its other programs cannot be told apart")
    planned = {port for _, service in services(plan) for port in service.ports}
    mine = {int(context.host.user(plan.account(service.name)).uid) for _, service in services(plan)}
    found = context.step("box.ports")["listening"]
    open_to = [
        f"{item['address']}:{item['port']}"
        for item in found
        if item["uid"] in mine and item["address"] not in ("127.0.0.1", "::1")
    ]
    extra = sorted({item["port"] for item in found if item["uid"] in mine} - planned)
    if open_to:
        return Outcome.failed(f"the box's services listen openly on {', '.join(open_to)}")
    return Outcome.ok(f"{len(planned)} planned ports, {len(extra)} more of their children on loopback", extra=extra)


def secret_modes(context: Context) -> Outcome:
    folder = context.plan.layout.secrets
    names = [secret.name for secret in context.plan.secrets]
    wrong = []
    if context.host.file(folder).mode != 0o700:
        wrong.append(f"{folder} is {context.host.file(folder).mode:04o}")
    for name in names:
        file = context.host.file(f"{folder}/{name}")
        if not file.exists:
            wrong.append(f"{name} is missing")
        elif file.mode != 0o600:
            wrong.append(f"{name} is {file.mode:04o}")
    if wrong:
        return Outcome.failed("; ".join(wrong))
    return Outcome.ok(f"{len(names)} secrets, all 0600 in a folder 0700", count=len(names))


def configuration(context: Context) -> Outcome:
    """What runs was started with the planned configuration."""
    status = _status(context)
    from roles import roles_of

    stale = []
    for role in roles_of(context.plan):
        for service in role.services(context.plan):
            wanted = units.fingerprint(context.plan, service, role.files(context.plan))
            if status.get(service.name, {}).get("recorded") != wanted:
                stale.append(service.name)
    if stale:
        return Outcome.failed(f"{', '.join(stale)} runs with other configuration than planned")
    return Outcome.ok(f"{len(status)} services run with the planned configuration")


def edited(context: Context) -> Outcome:
    """Files of ours that somebody edited: they count, and what is planned may not be what is there."""
    found = context.step("box.state", **state_spec(context.plan.layout)).get("edited", [])
    if found:
        hint = "ours lies beside as `.ownstack-new`, where it differs; `ownstack up --overwrite` takes ours"
        return Outcome.amber(f"edited by hand: {', '.join(found)}", hint, files=list(found))
    return Outcome.ok("configuration and units are as they were written", files=[])


def protections(context: Context) -> Outcome:
    """The walls around each service as systemd has them now; elsewhere what the plan says is missing."""
    plan = context.plan
    if plan.absent_protections:
        return Outcome.ok(f"as planned for this host: {'; '.join(plan.absent_protections)}", absent=True)
    wanted = {f"{plan.layout.unit(service.name)}.service": service for _, service in services(plan)}
    if not wanted:
        return Outcome.ok("there is no service to protect", absent=False)
    command = "systemctl show -p Id -p User -p ProtectSystem -p IPAddressDeny -- " + " ".join(["%s"] * len(wanted))
    weak = []
    for block in context.host.run(command, *wanted).stdout.strip().split("\n\n"):
        now = dict(line.partition("=")[::2] for line in block.splitlines())
        service = wanted.pop(now["Id"])
        if now.get("User") != plan.account(service.name):
            weak.append(f"{service.name} runs as {now.get('User') or 'root'}")
        if now.get("ProtectSystem") != "strict":
            weak.append(f"{service.name} may write to the system")
        if service.network != "internet" and not now.get("IPAddressDeny"):
            weak.append(f"{service.name} may reach every network")
    if weak:
        hint = "`systemctl cat` shows which file of `systemctl edit` says so"
        return Outcome.amber(f"somebody weakened units: {'; '.join(weak)}", hint, absent=False)
    return Outcome.ok("each service has an account, a sandbox and a network policy of its own", absent=False)


def recovery(context: Context) -> Outcome:
    """The unit that puts the box in order after a power cut is there and starts at boot."""
    from roles.base import recovery as unit

    if not unit.wanted(context.plan):
        return Outcome.ok("as planned for this host: nothing runs at boot, `ownstack up` does it", absent=True)
    if context.step("recover.arm", **unit.arm_spec(context.plan), dry=True).get("armed"):
        return Outcome.ok("what a power cut leaves half-done is put in order at the next boot")
    return Outcome.failed(f"{unit.unit(context.plan)} is not enabled")


def below_floor(context: Context) -> Outcome:
    low = [f"{a.name} {a.version}" for role in context.plan.roles for a in role.artifacts if a.below_floor]
    if low:
        return Outcome.ok(f"as planned for this network, below the security floor: {', '.join(low)}", below=low)
    return Outcome.ok("no program is below its security floor", below=[])


def checks(plan: Plan) -> list[Check]:
    again = "run `ownstack up`: it puts back what is planned"
    found: list[Check] = []
    for role, service in services(plan):
        slug = service.name.replace("_", "-")
        found.append(
            Check(
                f"{slug}-runs",
                f"{service.name} runs and starts by itself",
                _runs(service),
                f"`ownstack logs {role}` shows why",
                role,
            )
        )
        found.append(
            Check(f"{slug}-loopback", f"{service.name} listens on loopback only", listens(service.ports), again, role)
        )
    found.append(Check("no-open-ports", "no other port is open to the network", nothing_else, again, "base"))
    found.append(Check("secret-modes", "secrets can be read by root only", secret_modes, again, "base"))
    found.append(Check("configuration", "services run with the planned configuration", configuration, again, "base"))
    found.append(Check("edited", "no file of the box was edited by hand", edited, again, "base"))
    found.append(Check("protections", "services are walled off from the system", protections, again, "base"))
    found.append(Check("recovery", "after a power cut the box puts itself in order", recovery, again, "base"))
    found.append(Check("floors", "versions against security floors", below_floor, "`ownstack plan` says why", "base"))
    return found
