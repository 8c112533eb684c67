"""`pyinfra inventory/local.py deploy.py`: the same plan, made inside pyinfra's own run."""

from __future__ import annotations

import logging
from typing import Any

from pyinfra.context import ctx_host, ctx_state

from ..choosing import choose
from ..data import load_data
from ..errors import ConfigError
from ..hardware.collect import collect
from ..hardware.interpret import interpret
from ..plan import Plan
from ..settings import load
from . import carry
from .preflight import ask_sources, read_existing, read_state
from .session import Session, Target


class _Within(Session):
    """A Session over the host that pyinfra is working on already."""

    def __init__(self) -> None:
        # the objects themselves: pyinfra's `state` and `host` only stand for them, and never for one another
        state, host = ctx_state.get(), ctx_host.get()  # type: ignore[no-untyped-call]
        self.target = Target(name=host.name)
        self.on_event = lambda event: None
        self.layout_runner = ""
        self._sudo = bool(state.config.SUDO)
        self.askpass = ""
        self.state, self.host, self.config = state, host, state.config


def plan_for_current_host() -> Plan:
    """Detect, ask sources, read the box's state, choose. Settings come from ownstack.toml and the environment."""
    session: Any = _Within()
    settings = load({"host": "local" if session.host.name == "@local" else session.host.name})
    data = load_data(settings.wanted_roles(), fit="models" in settings.wanted_roles())
    report = interpret(collect(session), settings.base.hardware.overrides())
    if report.host.uid != 0 and not session._sudo:
        raise ConfigError("this inventory has neither root nor sudo", hint="run pyinfra with `--sudo`")
    layout = settings.layout(report.host.home, 0)
    box = read_state(session, layout)
    ollama = settings.role("ollama")
    if ollama.use != "own":
        box = box.model_copy(update=read_existing(session, ollama.url))
    plan = choose(report, settings, data, ask_sources(session, data, settings), box)
    carry.configure(logging.getLogger("pyinfra").info, plan.mirror)  # what is fetched here comes from the mirror too
    return plan
