"""Rendering of a Service for a process manager. Roles know none of them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ..errors import ConfigError
from ..plan import ConfigFile, Plan, Service
from .render import environment, render

HOMES = ("/home/", "/root/", "/run/user/")  # a unit sees nothing there but what is bound into it


def systemctl(plan: Plan) -> str:
    """The program as somebody calls it who looks at units of this box."""
    return "systemctl --user" if plan.manager == "systemd-user" else "systemctl"


def _plain(value: object) -> str:
    """`%` starts a specifier, a line break would start another setting."""
    text = str(value)
    if any(ord(char) < 32 for char in text):
        raise ConfigError(f"a value with a line break or control character cannot stand in a unit: {text!r}")
    return text.replace("%", "%%")


def unit_text(value: object) -> str:
    """The value of a setting that takes the whole line."""
    text = _plain(value)
    if text.endswith("\\"):  # the line would go on in the next one
        raise ConfigError(f"a value with a backslash at its end cannot stand in a unit: {text!r}")
    return text


def unit_word(value: object) -> str:
    """A quoted word of a setting that takes several: `Environment=`, or a list of paths."""
    return '"' + _plain(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def exec_word(value: object) -> str:
    """A quoted word of `ExecStart=`, where `$` starts a variable."""
    return unit_word(value).replace("$", "$$")


def unit_filters() -> None:
    """Let templates quote for unit files."""
    environment().filters.update(unit=unit_text, unitword=unit_word, execword=exec_word)


def log_dir(plan: Plan) -> str:
    return f"{plan.layout.var}/log"


def run_dir(plan: Plan) -> str:
    return f"{plan.layout.var}/run"


def active_dir(plan: Plan) -> str:
    return f"{plan.layout.var}/active"


def runner_python(plan: Plan) -> str:
    """The wrapper that starts the runner with the Python chosen for it."""
    return f"{plan.layout.current('base')}/runner"


def supervisor(plan: Plan) -> dict[str, str]:
    return {
        "bin": f"{plan.layout.current('supervisor')}/bin",
        "config": f"{plan.layout.etc}/supervisor/supervisord.conf",
    }


def process(plan: Plan) -> dict[str, Any]:
    """What the runner needs to talk to the process manager."""
    return {"manager": plan.manager, "supervisor": supervisor(plan)}


def description(plan: Plan, service: Service) -> str:
    """The file that tells `runner exec` how to become the service."""
    return f"{plan.layout.etc}/services/{service.name}.json"


def unit_files(plan: Plan, service: Service) -> list[ConfigFile]:
    """The files that make the process manager know the service."""
    unit_filters()
    unit = plan.layout.unit(service.name)
    if plan.manager == "supervisord":
        return [
            ConfigFile(path=description(plan, service), content=_description(plan, service), mode="0600"),
            ConfigFile(
                path=f"{plan.layout.etc}/supervisor/conf.d/{unit}.conf",
                content=render(
                    "service/program.conf.j2",
                    unit=unit,
                    service=service,
                    runner=runner_python(plan),
                    description=description(plan, service),
                    log=log_dir(plan),
                ),
            ),
        ]
    bound = [path for path in (*service.writable, *service.readable) if path.startswith(HOMES)]
    text = render(
        "service/systemd.service.j2",
        service=service,
        account=plan.account(service.name),
        user_mode=plan.manager == "systemd-user",
        bound=bound,
        secrets=plan.layout.secrets,
    )
    return [ConfigFile(path=f"{plan.layout.units}/{unit}.service", content=text)]


def _description(plan: Plan, service: Service) -> str:
    about = {
        "command": list(service.command),
        "environment": {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **dict(service.environment)},
        "environment_files": list(service.environment_files),
        "user": plan.account(service.name) or "root",
        "groups": list(service.groups),
        "working_directory": service.working_directory,
        "umask": service.umask,
        "requires": list(service.requires),
    }
    return json.dumps(about, indent=1) + "\n"


def supervisor_files(plan: Plan) -> list[ConfigFile]:
    text = render("service/supervisord.conf.j2", etc=plan.layout.etc, run=run_dir(plan), log=log_dir(plan))
    return [ConfigFile(path=supervisor(plan)["config"], content=text)]


def fingerprint(plan: Plan, service: Service, files: list[ConfigFile]) -> str:
    """A hash of all that a running service has read at its start; a difference means a restart."""
    parts = [file.path + "\0" + file.content for file in [*unit_files(plan, service), *files]]
    parts += [
        f"{a.name}={a.version}={a.sha256}" for role in plan.roles if role.name == service.name for a in role.artifacts
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def ready_url(service: Service) -> str:
    return f"http://127.0.0.1:{service.ports[0]}{service.ready_path}"


def service_spec(plan: Plan, service: Service, files: list[ConfigFile]) -> dict[str, Any]:
    """One entry of the runner's `services` lists."""
    return {
        "name": service.name,
        "unit": plan.layout.unit(service.name),
        "fingerprint": fingerprint(plan, service, files),
        "ready": ready_url(service),
        "timeout": service.start_timeout_s,
    }
