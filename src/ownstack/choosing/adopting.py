"""An Ollama that was there before the box and becomes its engine: one drop-in of ours, and nothing else. Pure."""

from __future__ import annotations

import posixpath
import urllib.parse
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..hardware.report import HardwareReport
from ..plan import Adopted, Layout, ModelChoice, ProcessManager
from ..settings import Settings
from ..state import BoxState
from .existing import LOOPBACK

DROPIN = "ownstack.conf"
AS_IT_IS = '`[ollama] use = "existing"` takes it as it is'
USER_UNITS = "/systemd/user/"


def recorded(state: BoxState) -> Adopted | None:
    """What the box has adopted so far."""
    held = ((state.manifest or {}).get("plan") or {}).get("adopted")
    return Adopted.model_validate(held) if held else None


def adopted(
    report: HardwareReport,
    settings: Settings,
    state: BoxState,
    manager: ProcessManager,
    layout: Layout,
    models: tuple[ModelChoice, ...],
) -> Adopted | None:
    """The unit that is adopted and what it is told; None where the settings want none.

    Raises UnsupportedError or ConfigError where it cannot be adopted, with what to do instead.
    """
    ollama = settings.role("ollama")
    if ollama.use != "adopt":
        return None
    parts = urllib.parse.urlsplit(ollama.url)
    if parts.hostname not in LOOPBACK:
        raise ConfigError(
            f"the Ollama at {ollama.url} is on another machine and cannot be adopted", hint=AS_IT_IS, code="adopt-away"
        )
    path = _unit(report, state, manager)
    user = USER_UNITS in path
    if user != (manager == "systemd-user"):
        whose = "a service of one user" if user else "a service of the system"
        scope = "user" if user else "system"
        raise ConfigError(
            f"{path} is {whose}, and this box is not",
            hint=f'`scope = "{scope}"` fits it; or {AS_IT_IS}',
            code="adopt-scope",
        )
    folder = posixpath.dirname(path) if user else "/etc/systemd/system"
    unit = posixpath.basename(path)
    return Adopted(
        unit=unit,
        path=path,
        dropin=f"{folder}/{unit}.d/{DROPIN}",
        variables=layout.adopted,
        version=state.existing_ollama,
        environment=tuple(environment(ollama, parts.port or 11434, models).items()),
    )


def _unit(report: HardwareReport, state: BoxState, manager: ProcessManager) -> str:
    before = recorded(state)
    found = report.ollama.unit if report.ollama is not None else ""
    path = found or (before.path if before else "")
    if manager == "supervisord" or not path or "snap." in path:
        why = "process 1 is not systemd" if manager == "supervisord" else "no service named ollama is on this machine"
        why = "a snap cannot be adopted" if "snap." in path else why
        raise UnsupportedError(f"there is no Ollama that could be adopted: {why}", hint=AS_IT_IS, code="adopt-no-unit")
    return path


def environment(ollama: Any, port: int, models: tuple[ModelChoice, ...]) -> dict[str, str]:
    """What the box sets. Where its models lie, and all else of it, stays as its owner has it."""
    lead = next((m for m in models if m.use == "chat"), None)
    kv_type = lead.kv_type if lead else "f16"
    found = {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_KEEP_ALIVE": ollama.keep_alive,
        "OLLAMA_KV_CACHE_TYPE": kv_type,
        "OLLAMA_NUM_PARALLEL": str(lead.parallel if lead else 1),
        "OLLAMA_MAX_LOADED_MODELS": str(ollama.max_loaded_models or max(2, len(models))),
    }
    context = ollama.context or (lead.context if lead else 0)
    if context:
        found["OLLAMA_CONTEXT_LENGTH"] = str(context)
    if ollama.flash_attention != "auto" or kv_type != "f16":
        found["OLLAMA_FLASH_ATTENTION"] = "0" if ollama.flash_attention == "off" else "1"
    return {**found, **ollama.extra_env}


def words(now: Adopted | None, before: Adopted | None) -> tuple[list[str], list[str]]:
    """Reasons and warnings of a plan."""
    if now is None:
        if before is None:
            return [], []
        return [], [f"{before.unit} is given back: {before.dropin} goes and it is restarted as it was"]
    reasons = [f"adopted: {now.unit}, Ollama {now.version}; its models and its own settings stay where they are"]
    told = {"dropin", "variables", "environment"}
    if before is not None and before.model_dump(include=told) == now.model_dump(include=told):
        return reasons, []
    names = ", ".join(name for name, _ in now.environment)
    return reasons, [
        f"{now.unit} gets a drop-in, {now.dropin}, that names {now.variables} ({names}), and is restarted once",
        f"{now.unit} then listens on this machine only",
        "files of your own stay, and other variables in them count; what they say of these counts again after `down`",
    ]
