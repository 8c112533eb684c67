"""After a power cut: a unit that finishes or takes back at boot what was half-done."""

from __future__ import annotations

import json
from typing import Any

from ownstack.engine import backups, operations, units, upgrades
from ownstack.engine.render import render
from ownstack.plan import ConfigFile, Plan


def wanted(plan: Plan) -> bool:
    """Where there is no systemd nothing runs at boot: the next `up` does the same."""
    return plan.manager != "supervisord"


def told_path(plan: Plan) -> str:
    return f"{plan.layout.etc}/recover.json"


def unit(plan: Plan) -> str:
    return f"{plan.layout.prefix}-recover"


def spec(plan: Plan) -> dict[str, Any]:
    """What `recover.at_start` is told."""
    return {
        "journal": f"{plan.layout.var}/journal.jsonl",
        "prefix": plan.layout.prefix,
        "restore": backups.restore_spec(plan, "", {}),
        "upgrade": upgrades.place(plan),
    }


def _elsewhere(plan: Plan) -> list[str]:
    """Where what is put back may lie outside of the box's own folders: the engine's store on another disk."""
    from roles.ollama import models_dir

    store = models_dir(plan)
    mine = plan.has("ollama") and not plan.engine_existing and not store.startswith(f"{plan.layout.var}/")
    return [store] if mine else []


def files(plan: Plan) -> list[ConfigFile]:
    from roles import roles_of

    units.unit_filters()
    elsewhere = _elsewhere(plan)
    service = render(
        "service/recover.service.j2",
        user_mode=plan.manager == "systemd-user",
        home=any(place.startswith(("/home/", "/root/")) for place in (plan.layout.opt, *elsewhere)),
        services=[plan.layout.unit(one.name) for role in roles_of(plan) for one in role.services(plan)],
        folder=plan.layout.var,
        # `-`: a disk that is away must not keep the rest from being put in order
        writable=[plan.layout.var, plan.layout.etc, plan.layout.opt, plan.layout.units, *[f"-{p}" for p in elsewhere]],
        spec=told_path(plan),
        runner=units.runner_python(plan),
    )
    text = json.dumps(spec(plan), indent=1, sort_keys=True) + "\n"
    return [
        ConfigFile(path=told_path(plan), content=text),
        ConfigFile(path=f"{plan.layout.units}/{unit(plan)}.service", content=service),
    ]


def arm_spec(plan: Plan) -> dict[str, Any]:
    return {**units.process(plan), "unit": f"{unit(plan)}.service"}


def activate(plan: Plan) -> None:
    if wanted(plan):
        operations.step(name="Base: recovery at boot", plan=plan, step_name="recover.arm", spec=arm_spec(plan))


def remove(plan: Plan) -> None:
    told = {**units.process(plan), "units": [f"{unit(plan)}.service"], "files": [file.path for file in files(plan)]}
    operations.step(name="Base: no more recovery at boot", plan=plan, step_name="backup.disarm", spec=told)
