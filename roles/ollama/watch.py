"""The watch over the graphics card: what it is told, its units, and what `verify` reads of it."""

from __future__ import annotations

import json
from typing import Any

from ownstack.engine import operations, units
from ownstack.engine.render import render
from ownstack.plan import ConfigFile, Plan
from ownstack.verify.check import Check, Context, Outcome

NAME = "ollama"
EVERY_MINUTES = 10


def wanted(plan: Plan) -> bool:
    """Only where the box's own engine uses a GPU."""
    return plan.engine != "cpu" and not plan.engine_existing


def state_file(plan: Plan) -> str:
    return f"{plan.layout.var}/gpu-watch/state.json"


def unit(plan: Plan) -> str:
    return f"{plan.layout.prefix}-gpu-watch"


def spec(plan: Plan) -> dict[str, Any]:
    """What `gpu.watch` is told."""
    model = plan.model("chat") or plan.model("bootstrap")
    speed = model.predicted_tps if model is not None else None
    return {
        **units.process(plan),
        "url": plan.engine_url,
        "unit": plan.layout.unit(NAME),
        "backend": plan.engine,
        "model": model.tag if model is not None else "",
        "planned_tps": speed[0] if speed else None,
        "cards": max(1, len(plan.gpu_names)),
        "state": state_file(plan),
        "every_s": EVERY_MINUTES * 60,
    }


def files(plan: Plan) -> list[ConfigFile]:
    """The specification, and the units (or the program) that run it."""
    told = f"{plan.layout.config(NAME)}/gpu-watch.json"
    found = [ConfigFile(path=told, content=json.dumps(spec(plan), indent=1, sort_keys=True) + "\n")]
    values = {"runner": units.runner_python(plan), "spec": told}
    name = unit(plan)
    if plan.manager == "supervisord":
        path = f"{plan.layout.etc}/supervisor/conf.d/{name}.conf"
        log = units.log_dir(plan)
        return [
            *found,
            ConfigFile(path=path, content=render("service/gpu-watch.conf.j2", unit=name, log=log, **values)),
        ]
    units.unit_filters()
    service = render(
        "service/gpu-watch.service.j2",
        engine=plan.layout.unit(NAME),
        user_mode=plan.manager == "systemd-user",
        home=plan.layout.opt.startswith(("/home/", "/root/")),
        folder=plan.layout.var,
        **values,
    )
    found.append(ConfigFile(path=f"{plan.layout.units}/{name}.service", content=service))
    timer = render("service/gpu-watch.timer.j2", minutes=EVERY_MINUTES)
    found.append(ConfigFile(path=f"{plan.layout.units}/{name}.timer", content=timer))
    if plan.manager == "systemd":  # a user's manager has no suspend.target: the timer has to do
        resume = render("service/gpu-watch-resume.service.j2", watch=f"{name}.service")
        found.append(ConfigFile(path=f"{plan.layout.units}/{name}-resume.service", content=resume))
    return found


def arm_spec(plan: Plan) -> dict[str, Any]:
    name = unit(plan)
    resume = [f"{name}-resume.service"] if plan.manager == "systemd" else []
    return {**units.process(plan), "program": name, "units": [f"{name}.timer", *resume]}


def configure(plan: Plan) -> None:
    if wanted(plan):
        operations.config_files(name="Ollama: GPU watch", plan=plan, wanted=files(plan))
    else:  # there may be one of a time when the box used its card
        remove(plan)


def activate(plan: Plan) -> None:
    if wanted(plan):
        operations.step(name="Ollama: GPU watch runs", plan=plan, step_name="gpu.arm", spec=arm_spec(plan))


def remove(plan: Plan) -> None:
    told = {**arm_spec(plan), "files": [file.path for file in files(plan)]}
    operations.step(name="Ollama: GPU watch stops", plan=plan, step_name="gpu.disarm", spec=told)


def watched(context: Context) -> Outcome:
    """The card was there at the last look; what happened since is told with its time."""
    data = context.step("gpu.state", state=state_file(context.plan))
    if not data:
        start = f"`{units.systemctl(context.plan)} start {unit(context.plan)}`, or "
        now = "" if context.plan.manager == "supervisord" else start
        return Outcome.amber("the watch has not looked yet", f"{now}wait {EVERY_MINUTES} minutes")
    events = data.get("events", [])
    last = f"; {len(events)} events, the last: {told(events[-1])}" if events else ""
    measured = f"{data.get('what', '')}{last}"
    values = {
        "tps": data.get("tps"),
        "planned_tps": data.get("planned_tps"),
        "events": len(events),
        "code": data.get("code", ""),
    }
    return (Outcome.ok if data.get("ok") else Outcome.failed)(measured, **values)


def told(event: dict[str, Any]) -> str:
    """An event in words, with the time of the machine that shows it."""
    import datetime

    when = datetime.datetime.fromtimestamp(event.get("time", 0)).strftime("%Y-%m-%d %H:%M")
    tried = ", ".join(f"{r['remedy']}: {r['outcome']}" for r in event.get("remedies", []))
    return f"{when} {event.get('what', '')}" + (f" ({tried})" if tried else "")


def checks(plan: Plan) -> list[Check]:
    if not wanted(plan):
        return []
    hint = "reboot; if the card stays away look at `ownstack detect`"
    return [Check("ollama-gpu-watch", "The graphics card is looked after and there", watched, hint, NAME)]
