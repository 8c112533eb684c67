"""The stages that are alike for every role."""

from __future__ import annotations

from typing import Any

from ownstack.plan import ConfigFile, Plan
from roles import Role, roles_of

from . import operations, units
from .operations import Directory


def written_files(plan: Plan) -> list[ConfigFile]:
    """All files that `up` writes beside programs: configuration, units, and what units are told."""
    from roles.base import recovery, schedule
    from roles.n8n import maintain
    from roles.ollama import adopt, watch

    found = [file for role in roles_of(plan) for file in role.files(plan)]
    found += [
        file for role in roles_of(plan) for service in role.services(plan) for file in units.unit_files(plan, service)
    ]
    found += adopt.files(plan)
    found += recovery.files(plan) if recovery.wanted(plan) else []
    found += schedule.files(plan, plan.backup) if plan.backup is not None else []
    found += maintain.files(plan) if plan.has("n8n") and maintain.wanted(plan) else []
    return found + (watch.files(plan) if plan.has("ollama") and watch.wanted(plan) else [])


def secret_spec(plan: Plan, files: list[ConfigFile]) -> dict[str, object]:
    """The specification of `secrets.fill`."""
    return {
        "secrets_dir": plan.layout.secrets,
        "record": plan.layout.written,
        "files": [
            {"path": f.path, "content": f.content, "mode": f.mode, "owner": f.owner, "group": f.group} for f in files
        ],
    }


def configure(plan: Plan, role: Role) -> None:
    """Folders, configuration and units of a role."""
    services = role.services(plan)
    files = role.files(plan)
    folders = [Directory(plan.layout.config(role.name))]
    for service in services:
        account = plan.account(service.name)
        folders.append(Directory(service.state_directory, "0700", account, account, deep=True))
    operations.directories(name=f"{role.title}: folders", wanted=folders)
    plain = [f for f in files if not f.secret]
    plain += [f for service in services for f in units.unit_files(plan, service)]
    operations.config_files(name=f"{role.title}: configuration", plan=plan, wanted=plain)
    secret = [f for f in files if f.secret]
    if secret:
        operations.step(
            name=f"{role.title}: configuration with secrets",
            plan=plan,
            step_name="secrets.fill",
            spec={
                **secret_spec(plan, secret),
                "services": [service.name for service in services],
                "active_dir": units.active_dir(plan),
            },
        )


def activate(plan: Plan, role: Role) -> None:
    """Start what does not run, restart what runs with other configuration, wait until it is ready."""
    services = role.services(plan)
    if services:
        operations.step(
            name=f"{role.title}: service",
            plan=plan,
            step_name="box.activate",
            spec=operations.service_list(plan, services, role.files(plan)),
        )


def remove(plan: Plan, role: Role, purge: bool) -> None:
    """Stop services and take programs away; with `purge` configuration and data too."""
    services = role.services(plan)
    if services:
        operations.step(
            name=f"{role.title}: stop",
            plan=plan,
            step_name="box.retire",
            spec={
                **operations.service_list(plan, services, []),
                "unit_files": [f.path for service in services for f in units.unit_files(plan, service)],
            },
        )
    paths = [f"{plan.layout.opt}/{artifact.name}" for artifact in plan.role(role.name).artifacts]
    paths.append(f"{plan.layout.opt}/{role.name}")
    if purge:
        paths += [plan.layout.config(role.name), *[service.state_directory for service in services]]
    operations.step(
        name=f"{role.title}: remove", plan=plan, step_name="artifacts.remove", spec={"paths": sorted(set(paths))}
    )


def retire(plan: Plan) -> None:
    """Take services and programs of roles away that were part of the box and are no longer.

    An engine that was adopted, and is no longer, is given back.
    """
    from roles.ollama import adopt

    whole = plan.model_copy(update={"roles": (*plan.roles, *plan.retired)})
    gone = {part.name for part in plan.retired}
    for role in reversed(roles_of(whole)):
        if role.name in gone:
            role.tasks.remove(whole, False)
    if "models" not in gone:  # that role gives it back when it goes
        adopt.retire(plan)


def downloads(plan: Plan) -> dict[str, Any]:
    """The specification of `fetch.many_outliving`: everything that the target fetches from vendors."""
    files = []
    for part in plan.roles:
        for artifact in part.artifacts:
            if artifact.way == "target" and artifact.kind == "file":
                release = plan.layout.release(artifact.name, artifact.version, artifact.digest)
                files.append(
                    {
                        "name": artifact.name,
                        "url": artifact.url,
                        "sha256": artifact.sha256,
                        "size": artifact.size_bytes,
                        "release": release,
                    }
                )
    return {
        "files": files,
        "work": f"{plan.layout.var}/work",
        "mirror": plan.mirror,
        "run_dir": units.run_dir(plan),
        "manager": plan.manager,
        "unit": plan.layout.unit("fetch"),
        "runner": units.runner_python(plan),
    }


def manifest_values(plan: Plan) -> dict[str, Any]:
    """What the box records of itself. Holds no secret and nothing that changes from run to run.

    The name by which the host was reached is the caller's: from the host itself it is another.
    """
    host = plan.host.model_copy(update={"target": ""})
    steady = plan.model_copy(
        update={"host": host, "state_hash": "", "retired": (), "given_back": None, "reasons": (), "warnings": ()}
    )
    services = [
        {
            **units.service_spec(plan, service, files),
            "role": role.name,
            "ports": list(service.ports),
            "network": service.network,
        }
        for role in roles_of(plan)
        for files in [role.files(plan)]
        for service in role.services(plan)
    ]
    return {
        "schema": 1,
        "kit_version": plan.kit_version,
        "plan": steady.model_dump(mode="json"),
        "plan_digest": steady.digest(),
        "hardware_fingerprint": plan.hardware_fingerprint,
        "process": units.process(plan),
        "services": services,
        "complete": False,
        "versions": {a.name: a.model_dump(mode="json") for part in plan.roles for a in part.artifacts},
    }
