"""What every command that works on a box needs: settings, a connection, and the five inputs of `choose`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..errors import ConfigError, RunError
from .again import current
from .output import note

if TYPE_CHECKING:
    from ..data import Data
    from ..engine.session import Session
    from ..hardware.report import HardwareReport
    from ..plan import Plan
    from ..settings import Settings
    from ..state import BoxState, SourceReport

# flag -> settings key
SETTING_FLAGS = {
    "host": "host",
    "mirror": "sources.mirror",
    "cpu_only": "hardware.cpu_only",
    "use": "use",
    "keep_models": "models.keep",
    "refit": "models.refit",
}
UNHELD = "nobody else is kept from working on this box meanwhile, and no journal is kept: {} is missing or unusable"
PINS = ("chat", "embedding", "code", "vision")


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that works on a box."""
    for option in reversed(
        [
            click.option("--host", default=None, help="user@server over SSH; this machine when left out."),
            click.option("--config", "config_file", default=None, help="Settings file (default: ownstack.toml)."),
            click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting for this run."),
            click.option(
                "--sudo-password-file",
                type=click.Path(path_type=Path),
                default=None,
                help="Read sudo's password from FILE, `-` for stdin.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON envelope."),
            click.option("-v", "--verbose", count=True, help="Say each operation of a run; -vv: tracebacks too."),
        ]
    ):
        command = option(command)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a person decides on the models of a standing box."""
    for option in reversed(
        [
            click.option("--keep-models", is_flag=True, help="Keep the models, whatever the hardware has become."),
            click.option("--refit", is_flag=True, help="Choose the models anew, also on the same hardware."),
            click.option(
                "--pin", "pins", multiple=True, metavar="USE=MODEL", help="A model for chat, embedding, code or vision."
            ),
        ]
    ):
        command = option(command)
    return command


def read_settings(
    config_file: str | None,
    sets: tuple[str, ...],
    pins: tuple[str, ...] = (),
    below: dict[str, Any] | None = None,
    **flags: Any,
) -> Settings:
    """Settings of all layers; `--set` and flags win, `below` (of a backup) gives way to all."""
    from ..settings import load, parse_value

    chosen: dict[str, Any] = {}
    for text in pins:
        use, equals, tag = text.partition("=")
        if not (equals and tag and use.strip() in PINS):
            raise ConfigError(f"--pin {text}: not USE=MODEL", hint=f"USE is one of {', '.join(PINS)}: chat=qwen3:14b")
        chosen[f"models.{use.strip()}"] = tag.strip()
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: not KEY=VALUE", hint="for example `--set qdrant.port=6400`")
        chosen[key.strip()] = parse_value(value)
    for flag, value in flags.items():
        if value not in (None, False, ""):
            chosen[SETTING_FLAGS[flag]] = value
    # what a run began with, it goes on with
    return current().once(f"settings {config_file} {chosen} {below}", lambda: load(chosen, config_file, below=below))


@dataclass
class Site:
    """A connected target with everything that was asked of it."""

    settings: Settings
    session: Session
    report: HardwareReport
    data: Data
    state: BoxState
    sources: SourceReport | None = None

    def plan(self) -> Plan:
        """The Plan for this host, from the five inputs."""
        from ..choosing import choose
        from ..engine.preflight import ask_sources

        if self.sources is None:
            self.sources = ask_sources(self.session, self.data, self.settings)
        with self._record():
            return choose(self.report, self.settings, self.data, self.sources, self.state)

    def recorded_plan(self) -> Plan:
        """The Plan that the box records, for whoever asks now. Raises RunError where no box stands."""
        from ..plan import Plan

        if not self.state.stands or self.state.manifest is None:
            raise RunError(f"there is no box on {self.session.target}", hint="`ownstack up` makes one", code="no-box")
        with self._record():
            plan = Plan.model_validate(self.state.manifest["plan"])
        # the box may have been made from elsewhere, or under another name
        return plan.model_copy(update={"host": plan.host.model_copy(update={"target": self.settings.base.host})})

    @contextlib.contextmanager
    def _record(self) -> Iterator[None]:
        """Raises ConfigError where the box's record is one that this version cannot read."""
        from pydantic import ValidationError

        try:
            yield
        except ValidationError as error:
            made = (self.state.manifest or {}).get("kit_version", "unknown")
            raise ConfigError(
                f"the record of the box on {self.session.target} cannot be read: it was made by ownstack {made}, "
                f"this is {__version__}",
                hint=f"use ownstack {made} for this box",
                code="record",
            ) from error


@contextlib.contextmanager
def open_site(
    settings: Settings, sudo_password_file: Path | None = None, from_report: Path | None = None, doing: str = ""
) -> Iterator[Site]:
    """Connect, look at the host, become root where the box is system-wide, read what stands there.

    `doing` is the command of a run that changes the box: it holds the box until it ends, and its steps are journalled.
    """
    from ..choosing.host import as_root
    from ..data import load_data
    from ..engine.preflight import become_root, read_existing, read_state
    from ..engine.session import Session, Target
    from ..hardware.collect import collect, see_ports
    from ..hardware.facts import load as load_probe
    from ..hardware.interpret import interpret
    from ..kit import data_in_use

    if data_in_use().note:
        note(data_in_use().note)
    data = load_data(settings.wanted_roles(), fit="models" in settings.wanted_roles())
    target = Target.parse(settings.base.host, os.environ.get("OWNSTACK_SSH_CONFIG", ""))
    with Session(target) as session:
        raw = collect(None if target.local else session)
        overrides = settings.base.hardware.overrides()
        report = told_sudo(interpret(raw, overrides), settings, sudo_password_file)
        if as_root(report, settings):
            become_root(session, report, sudo_password(report, sudo_password_file))
            clear_left(session)
            if report.host.sudo != "root":  # who is root has seen everybody's
                seen = interpret(see_ports(session, raw), overrides)
                report = seen.model_copy(update={"host": report.host})
        if from_report is not None:
            told = interpret(load_probe(from_report), overrides)
            report = report.model_copy(update={"gpus": told.gpus, "cpu": told.cpu, "memory": told.memory})
        uid = 0 if as_root(report, settings) else report.host.uid or 1
        layout = settings.layout(report.host.home, uid)
        if doing:
            session.hold(layout, doing)
            if session.held is not None and session.held.lacks:
                note(UNHELD.format(session.held.lacks))
        state = read_state(session, layout)
        ollama = settings.role("ollama")
        if ollama.use != "own":
            state = state.model_copy(update=read_existing(session, ollama.url))
        if current().again:
            note(f"connected again to {target}: this run goes on")
        yield Site(settings, session, report, data, state)
        session.note("done", doing)


def clear_left(session: Session) -> None:
    """Take away sudo's password where an attempt of this run has left it whose connection broke."""
    from pyinfra.api.command import QuoteString, StringCommand

    left: list[str] = current().once("folders with a password", list)
    if left:
        session.command(StringCommand("rm", "-rf", *map(QuoteString, left)), root=False)
    left[:] = [session.askpass] if session.askpass else []


def told_sudo(report: HardwareReport, settings: Settings, file: Path | None) -> HardwareReport:
    """A rule for one user is not to be seen without his password: who names one, or wants the system, has it tried."""
    asked = file is not None or settings.base.scope == "system"
    if report.host.sudo != "none" or not asked or "sudo" not in report.host.tools:
        return report
    return report.model_copy(update={"host": report.host.model_copy(update={"sudo": "password"})})


def sudo_password(report: HardwareReport, file: Path | None) -> str | None:
    """Asked once, before anything starts; never from a flag's value."""
    if report.host.sudo != "password":
        return None
    if file is not None:
        read: Callable[[], str] = sys.stdin.readline if str(file) == "-" else file.read_text
        return current().once(f"password in {file}", read).rstrip("\n")
    if not sys.stdin.isatty():
        return None

    def asked() -> str:
        note(f"sudo on {report.host.hostname} asks for the password of {report.host.user}.")
        return str(click.prompt("Password", hide_input=True, err=True))

    return current().once(f"password of {report.host.user} on {report.host.hostname}", asked)
