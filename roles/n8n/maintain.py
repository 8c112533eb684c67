"""The weekly maintenance of n8n's database: the specification, a timer and its unit."""

from __future__ import annotations

import json
from typing import Any

from ownstack.engine import backups, operations, units
from ownstack.engine.render import render
from ownstack.plan import ConfigFile, Plan
from roles import n8n

NAME = n8n.NAME


def state_file(plan: Plan) -> str:
    return f"{plan.layout.var}/n8n-maintain.json"


def wanted(plan: Plan) -> bool:
    return plan.manager != "supervisord"


def unit(plan: Plan) -> str:
    return f"{plan.layout.prefix}-maintain"


def spec(plan: Plan) -> dict[str, Any]:
    """What `n8n.maintain` is told."""
    (service,) = n8n.services(plan)
    return {
        **units.process(plan),
        "database": f"{plan.layout.data(NAME)}/.n8n/database.sqlite",
        "state": state_file(plan),
        "work": f"{plan.layout.var}/work",
        "lock": backups.common(plan)["lock"],
        "prefix": plan.layout.prefix,
        "service": units.service_spec(plan, service, []),
    }


def files(plan: Plan) -> list[ConfigFile]:
    units.unit_filters()
    path, name = f"{plan.layout.config(NAME)}/maintain.json", unit(plan)
    service = render(
        "service/maintain.service.j2",
        user_mode=plan.manager == "systemd-user",
        home=plan.layout.opt.startswith(("/home/", "/root/")),
        folder=plan.layout.var,
        spec=path,
        runner=units.runner_python(plan),
    )
    return [
        ConfigFile(path=path, content=json.dumps(spec(plan), indent=1, sort_keys=True) + "\n"),
        ConfigFile(path=f"{plan.layout.units}/{name}.service", content=service),
        ConfigFile(path=f"{plan.layout.units}/{name}.timer", content=render("service/maintain.timer.j2")),
    ]


def arm_spec(plan: Plan) -> dict[str, Any]:
    return {**units.process(plan), "units": [f"{unit(plan)}.timer"]}


def configure(plan: Plan) -> None:
    if wanted(plan):
        operations.config_files(name="n8n: maintenance", plan=plan, wanted=files(plan))


def activate(plan: Plan) -> None:
    if wanted(plan):
        operations.step(name="n8n: weekly maintenance", plan=plan, step_name="gpu.arm", spec=arm_spec(plan))


def remove(plan: Plan) -> None:
    if wanted(plan):
        told = {**arm_spec(plan), "files": [file.path for file in files(plan)]}
        operations.step(name="n8n: no more maintenance", plan=plan, step_name="gpu.disarm", spec=told)
