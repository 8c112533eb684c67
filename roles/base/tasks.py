"""What has to be there before any role: accounts, folders, the runner, secrets, Python and uv."""

from __future__ import annotations

from typing import Any

from ownstack.engine import operations, units
from ownstack.engine.operations import Account, Directory
from ownstack.engine.role_tasks import downloads, manifest_values, retire
from ownstack.kit import data_path
from ownstack.plan import Plan, SecretRef
from roles import ORDER, roles_of
from roles.base import NAME, ROLE, files, recovery, schedule


def bring_runner(plan: Plan) -> None:
    """The runner, which all steps need: to install, and to remove when programs were taken away before."""
    if not plan.system:
        operations.note_the_way(name="Base: folders that are yours", plan=plan, seen={})
    operations.directories(name="Base: folders", wanted=_folders(plan))
    part = plan.role(NAME)
    runner_python = str(part.settings["runner_python"])
    if runner_python.startswith(plan.layout.opt):
        operations.bootstrap_python(name="Base: Python", plan=plan, artifact=part.artifact("python"))
    operations.runner(name="Base: runner", plan=plan, python=runner_python)


def bring_age(plan: Plan) -> None:
    """What encrypts the secrets of a backup, where the plan has it."""
    for artifact in plan.role(NAME).artifacts:
        if artifact.name == "age":
            operations.release(name="Base: age", plan=plan, artifact=artifact)


def install(plan: Plan) -> None:
    if plan.system:
        operations.accounts(name="Base: accounts", wanted=_accounts(plan))
    bring_runner(plan)
    retire(plan)  # while the record still names them
    # before anything is fetched, which is what fails most: `down` takes away what has a record
    operations.step(
        name="Base: record the plan",
        plan=plan,
        step_name="box.write_manifest",
        spec={"path": plan.layout.manifest, "values": manifest_values(plan)},
    )
    part = plan.role(NAME)
    packages = part.settings.get("packages", [])
    if packages and plan.system:
        operations.packages(name="Base: system packages", plan=plan, wanted=packages)
    contents = {role.name: [file.content for file in role.files(plan)] for role in roles_of(plan)}
    operations.step(
        name="Base: secrets",
        plan=plan,
        step_name="secrets.ensure",
        spec={
            "secrets_dir": plan.layout.secrets,
            "secrets": [
                {**secret.model_dump(), "services": _users(plan, secret, contents), "opens": _opens(plan, secret)}
                for secret in plan.secrets
            ],
            "active_dir": units.active_dir(plan),
        },
    )
    programs(plan)
    if plan.manager == "supervisord":
        lock = data_path("roles/base/supervisor.lock").read_text()
        operations.python_env(name="Base: supervisord", plan=plan, component="supervisor", lock=lock)


def programs(plan: Plan) -> None:
    """Fetch what the target fetches itself, and make the base's own releases."""
    spec = downloads(plan)
    if spec["files"]:
        operations.step(name="Base: downloads", plan=plan, step_name="fetch.many_outliving", spec=spec)
    for artifact in plan.role(NAME).artifacts:
        if artifact.kind != "host":
            operations.release(name=f"Base: {artifact.name}", plan=plan, artifact=artifact)


def _users(plan: Plan, secret: SecretRef, contents: dict[str, list[str]]) -> list[str]:
    """Services that read the secret at their start, from a file of their role (role -> contents of its files)."""
    return [
        service.name
        for role in roles_of(plan)
        if any(secret.mark in content for content in contents[role.name])
        for service in role.services(plan)
    ]


def _opens(plan: Plan, secret: SecretRef) -> dict[str, Any]:
    """What only this secret opens, as paths."""
    for role in roles_of(plan):
        if role.sealed is not None and role.sealed.secret == secret.name:
            folder, sealed = plan.layout.data(role.name), role.sealed
            held = [f"{folder}/{sealed.held_in[0]}", sealed.held_in[1]]
            return {"data": [f"{folder}/{name}" for name in sealed.data], "held_in": held, "code": sealed.code}
    return {}


def _accounts(plan: Plan) -> list[Account]:
    found = []
    for role in roles_of(plan):
        for service in role.services(plan):
            found.append(Account(plan.account(service.name), service.state_directory, service.groups))
        for extra in role.accounts(plan):
            found.append(Account(extra.name, extra.home, extra.groups))
    return found


def _ever(plan: Plan) -> list[Account]:
    """Accounts of this box, those of roles that were left out later too."""
    return [Account(plan.layout.user(name), "") for name in (*ORDER[1:], "pull")]


def _folders(plan: Plan) -> list[Directory]:
    layout = plan.layout
    return [
        Directory(layout.opt),
        Directory(layout.etc),
        Directory(layout.secrets, "0700"),
        Directory(f"{layout.etc}/services", "0700"),
        Directory(f"{layout.etc}/supervisor/conf.d"),
        Directory(layout.var),
        Directory(f"{layout.var}/work", "0700"),
        Directory(units.run_dir(plan)),
        Directory(units.active_dir(plan)),
        Directory(units.log_dir(plan), "0750"),
        Directory(f"{layout.opt}/base/releases"),
        *([Directory(layout.units, shared=True)] if plan.manager == "systemd-user" else []),
    ]


def configure(plan: Plan) -> None:
    wanted = [*files(plan), *(recovery.files(plan) if recovery.wanted(plan) else [])]
    operations.config_files(name="Base: configuration", plan=plan, wanted=wanted)
    schedule.configure(plan)


def activate(plan: Plan) -> None:
    """What of the base runs by itself: recovery at boot, and backups where they were asked for."""
    recovery.activate(plan)
    schedule.activate(plan)


def remove(plan: Plan, purge: bool, packages: list[str]) -> None:
    schedule.remove(plan)
    if recovery.wanted(plan):
        recovery.remove(plan)
    if plan.manager == "supervisord":
        operations.step(
            name="Base: end supervisord", plan=plan, step_name="box.shutdown", spec=dict(units.process(plan))
        )
    if purge:  # what lies on another disk does not go with the box's folders
        operations.step(
            name="Base: data kept aside", plan=plan, step_name="snapshots.forget", spec={"var": plan.layout.var}
        )
    accounts = _ever(plan) if purge and plan.system else []
    operations.farewell(name=f"{ROLE.title}: remove", plan=plan, purge=purge, accounts=accounts, packages=packages)
