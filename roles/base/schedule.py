"""Backups that make themselves: the specification, a timer and its unit."""

from __future__ import annotations

import json
from typing import Any

from ownstack.engine import backups, operations, units
from ownstack.engine.render import render
from ownstack.plan import ConfigFile, Plan, Schedule


def told_path(plan: Plan) -> str:
    return f"{plan.layout.etc}/backup.json"


def spec(plan: Plan, wanted: Schedule) -> dict[str, Any]:
    """What `backup.scheduled` is told. The passphrase stays a secret of the box, and is in no backup."""
    keys: dict[str, Any] = {"recipients": list(wanted.recipients)}
    if not wanted.recipients:
        keys = {"passphrase_file": f"{plan.layout.secrets}/{backups.PASSPHRASE}"}
    made = backups.make_spec(plan, wanted.settings, wanted.to, wanted.keep, wanted.with_models, keys)
    return {
        **made,
        "elsewhere": wanted.elsewhere,
        "drill": backups.drill_spec(plan) if wanted.drill else None,
        "prefix": plan.layout.prefix,
        "run_dir": units.run_dir(plan),
    }


def unit(plan: Plan) -> str:
    return f"{plan.layout.prefix}-backup"


def files(plan: Plan, wanted: Schedule) -> list[ConfigFile]:
    units.unit_filters()
    path, name = told_path(plan), unit(plan)
    text = json.dumps(spec(plan, wanted), indent=1, sort_keys=True) + "\n"
    service = render(
        "service/backup.service.j2",
        user_mode=plan.manager == "systemd-user",
        home=any(place.startswith(("/home/", "/root/")) for place in (plan.layout.opt, wanted.to)),
        folder=plan.layout.var,
        to=wanted.to,
        drill=wanted.drill,
        spec=path,
        runner=units.runner_python(plan),
    )
    timer = render("service/backup.timer.j2", every=wanted.every)
    return [
        ConfigFile(path=path, content=text, mode="0600"),
        ConfigFile(path=f"{plan.layout.units}/{name}.service", content=service),
        ConfigFile(path=f"{plan.layout.units}/{name}.timer", content=timer),
    ]


def arm_spec(plan: Plan) -> dict[str, Any]:
    return {**units.process(plan), "units": [f"{unit(plan)}.timer"]}


def configure(plan: Plan) -> None:
    if plan.backup is not None:
        operations.config_files(name="Base: backups", plan=plan, wanted=files(plan, plan.backup))


def activate(plan: Plan) -> None:
    if plan.backup is not None:
        operations.step(name="Base: backups by themselves", plan=plan, step_name="backup.arm", spec=arm_spec(plan))


def remove(plan: Plan) -> None:
    if plan.backup is not None:
        told = {**arm_spec(plan), "files": [file.path for file in files(plan, plan.backup)]}
        told["units"].append(f"{unit(plan)}.service")  # one that waits for its turn
        operations.step(name="Base: no more backups by themselves", plan=plan, step_name="backup.disarm", spec=told)
