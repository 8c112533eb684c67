"""A second instance of the box's services as a specification for `runner/scratch.py`. Pure.

It is the box's own plan with other folders and other ports, rendered by the very templates that the box has: the same
programs, accounts and walls.
"""

from __future__ import annotations

from typing import Any

from ..kit import activate
from ..plan import Plan
from . import units

# those that have data of their own; the engine serves both
NAMES = ("qdrant", "open_webui", "n8n")


def root(plan: Plan, name: str) -> str:
    return f"{plan.layout.var}/scratch/{name}"


def other_ports(plan: Plan) -> dict[str, dict[str, int]]:
    """For each port of the plan another one that it does not use, below those that the kernel gives away by itself."""
    taken = {port for role in plan.roles for port in role.ports.values()}
    found: dict[str, dict[str, int]] = {}
    for role in plan.roles:
        found[role.name] = {}
        for key, port in role.ports.items():
            other = 20000 + port % 10000
            while other in taken:
                other += 1
            taken.add(other)
            found[role.name][key] = other
    return found


def second(plan: Plan, name: str, programs: bool = False) -> Plan:
    """The plan of the second instance. `programs`: its programs are links below its own folder."""
    place = root(plan, name)
    layout = plan.layout.model_copy(
        update={"etc": f"{place}/etc", "var": f"{place}/var", "opt": f"{place}/opt" if programs else plan.layout.opt}
    )
    ports = other_ports(plan)
    roles = tuple(
        role.model_copy(update={"network": "closed", "ports": ports[role.name] if role.name in NAMES else role.ports})
        for role in plan.roles
    )
    return plan.model_copy(update={"layout": layout, "roles": roles, "folders": ()})


def spec(plan: Plan, name: str, programs: dict[str, str] | None = None) -> dict[str, Any]:
    """The specification. `name`: what it is for; `programs`: component -> release, where they differ from the box's."""
    activate()
    from roles import role as find

    other = second(plan, name, bool(programs))
    files, services, folders = [], [], []
    for part in NAMES:
        if not plan.has(part):
            continue
        role = find(part)
        wanted = role.files(other)
        files += [file.model_dump(include={"path", "content", "mode", "owner", "group"}) for file in wanted]
        folders.append(other.layout.config(part))
        for service in role.services(other):
            services.append(
                {
                    "name": service.name,
                    "unit": f"{plan.layout.prefix}-{name}-{service.name.replace('_', '-')}",
                    "text": units.unit_files(other, service)[0].content,
                    "ready": units.ready_url(service),
                    "timeout": service.start_timeout_s,
                    "folder": service.state_directory,
                    "like": plan.layout.data(service.name),
                    "hidden": [plan.layout.secrets, plan.layout.data(service.name)],
                    "ports": list(service.ports),
                    "memory_bytes": role.memory_bytes,
                }
            )
    return {
        "root": root(plan, name), "mark": f"{units.run_dir(plan)}/{name}.json", "etc": other.layout.etc,
        "secrets_dir": other.layout.secrets, "folders": folders,
        "files": files, "services": services, "opt": plan.layout.opt, "programs": programs or {},
        "manager": plan.manager, "runner": units.runner_python(plan),
    }  # fmt: skip
