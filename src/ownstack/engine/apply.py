"""Carrying out a Plan: the pyinfra deploy with its progress and its results."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gevent import get_hub  # type: ignore[import-untyped]
from gevent.hub import Hub  # type: ignore[import-untyped]
from pyinfra.api.command import FileUploadCommand
from pyinfra.api.deploy import add_deploy
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.operations import run_ops
from pyinfra.api.state import BaseStateCallback, State
from pyinfra.context import ctx_host, ctx_state

from ..errors import OwnstackError, RunError, UnreachableError
from . import ahead, carry, units
from .facts import StepState
from .lean import SSHException
from .session import Session, read_result

Listen = Callable[[dict[str, Any]], None]
BROKEN = (OSError, EOFError, SSHException)  # what a connection that breaks raises


@dataclass(frozen=True)
class OperationResult:
    """`said`: what its step wants people to know, one sentence each."""

    name: str
    changed: bool
    commands: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


@dataclass
class RunResult:
    """What a run did. `changed` counts operations that changed something.

    `looked`: what steps that only look have found (see `execute`), as far as they were asked and answered.
    """

    operations: list[OperationResult] = field(default_factory=list)
    looked: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        return sum(op.changed for op in self.operations)

    @property
    def total(self) -> int:
        return len(self.operations)


def _progress(listen: Listen, names: dict[str, str]) -> type[BaseStateCallback]:
    class Progress(BaseStateCallback):
        @staticmethod
        def operation_host_start(state: State, host: Host, op_hash: str) -> None:
            listen({"event": "operation", "name": names.get(op_hash, "")})

    return Progress


def _journal(session: Session, names: dict[str, str]) -> type[BaseStateCallback]:
    """Each operation's begin and end, on the target's disk before and after it."""
    # what ends an operation reaches `prepared` and is told by us, not as a traceback by gevent as well
    get_hub().NOT_ERROR = (*Hub.NOT_ERROR, OwnstackError, PyinfraError, *BROKEN)

    class Journal(BaseStateCallback):
        @staticmethod
        def operation_host_start(state: State, host: Host, op_hash: str) -> None:
            session.note("begin", names.get(op_hash, ""))

        @staticmethod
        def operation_host_success(state: State, host: Host, op_hash: str, retry_count: int = 0) -> None:
            session.note("end", names.get(op_hash, ""))

        @staticmethod
        def operation_host_error(
            state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
        ) -> None:
            if session.alive:
                session.note("failed", names.get(op_hash, ""))

    return Journal


@contextlib.contextmanager
def prepared(session: Session, deploy: Callable[..., Any], **arguments: Any) -> Iterator[list[str]]:
    """Declare a deploy's operations on the session's host; gives their hashes in order."""
    session.reset()
    session.state.check_for_changes = False  # all at once, when it is asked for
    session.layout_runner = units.runner_python(arguments["plan"])
    try:
        with ctx_state.use(session.state):
            add_deploy(session.state, deploy, **arguments)
        if session.host not in session.state.active_hosts:
            raise _failure(session)
        yield order_of(session)
    except PyinfraError as error:
        raise _failure(session, error) from error
    except BROKEN as error:
        if getattr(error, "filename", None):  # a file of the caller's own
            raise
        raise _cut(session, str(error)) from error
    finally:
        ctx_state.reset()
        ctx_host.reset()


def preview(session: Session, deploy: Callable[..., Any], **arguments: Any) -> RunResult:
    """What a deploy would change: a good guess, since later operations depend on earlier ones."""
    result = RunResult()
    with prepared(session, deploy, **arguments) as order:
        for op_hash, changes in zip(order, _changes(session, order, {})[0], strict=True):
            result.operations.append(OperationResult(_name(session, op_hash), changes))
    return result


def execute(
    session: Session,
    deploy: Callable[..., Any],
    listen: Listen,
    look: dict[str, dict[str, Any]] | None = None,
    **arguments: Any,
) -> RunResult:
    """Run a deploy. Raises RunError that carries the failing operation's own message.

    `look`: steps that only look, and their specifications. Where nothing is to change they have looked when the deploy
    did, by the same command; else whoever wants to know asks afterwards.
    """
    result = RunResult()
    with prepared(session, deploy, **arguments) as order:
        names = {op_hash: _name(session, op_hash) for op_hash in order}
        changes, looked = _changes(session, order, look or {})
        if not any(changes):
            result.operations = [OperationResult(name, False) for name in names.values()]
            result.looked = looked
            return result
        session.on_event = listen
        carry.configure(lambda text: listen({"event": "progress", "what": text, "done": 0}), arguments["plan"].mirror)
        if session.held is not None:
            session.held.plan = arguments["plan"].digest()[:16]
        session.state.add_callback_handler(_journal(session, names)())  # type: ignore[no-untyped-call]
        session.state.add_callback_handler(_progress(listen, names)())  # type: ignore[no-untyped-call]
        try:
            with session.events(), ctx_state.use(session.state):
                run_ops(session.state)
        finally:
            _collect(session, names, result)
        if session.host not in session.state.active_hosts:
            raise _failure(session)
    return result


def order_of(session: Session) -> list[str]:
    return list(session.state.get_op_order())  # type: ignore[no-untyped-call]


def _name(session: Session, op_hash: str) -> str:
    return ", ".join(sorted(session.state.get_op_meta(op_hash).names)).rpartition(" | ")[2]


def _meta(session: Session, op_hash: str) -> Any:
    return session.state.ops[session.host][op_hash].operation_meta


def _changes(
    session: Session, order: list[str], look: dict[str, dict[str, Any]]
) -> tuple[list[bool], dict[str, dict[str, Any]]]:
    """Whether each operation would change something now; and what the steps of `look` answer."""
    operations = [session.state.ops[session.host][op_hash].command_generator for op_hash in order]
    steps = {name: {"runner": session.layout_runner, "step": name, "spec": spec} for name, spec in look.items()}
    with (
        ctx_state.use(session.state),
        ctx_host.use(session.host),
        ahead.gather(operations, steps.values()),
    ):
        answers = {name: ahead.ask(StepState, **asked) for name, asked in steps.items()}
        changes = [bool(_meta(session, op_hash).will_change) for op_hash in order]
    return changes, {name: answer["data"] for name, answer in answers.items() if answer["data"]}


def _collect(session: Session, names: dict[str, str], result: RunResult) -> None:
    for op_hash, name in names.items():
        meta = _meta(session, op_hash)
        if meta.is_complete():
            step = _step_result(meta)
            # a runner step says itself whether it changed anything
            changed = bool(meta.did_change()) and bool(step.get("changed", True))
            said = tuple(map(str, step.get("data", {}).get("said", ())))
            result.operations.append(OperationResult(name, changed, said=said))


def _step_result(meta: Any) -> dict[str, Any]:
    """The last event of an operation that is a runner step; empty for all others."""
    for line in reversed(meta.stdout_lines if hasattr(meta, "stdout_lines") else meta.stdout.splitlines()):
        if line.startswith('{"event": "result"'):
            return dict(json.loads(line))
    return {}


def _failure(session: Session, error: Exception | None = None) -> OwnstackError:
    """The failing operation's own words instead of pyinfra's 'No hosts remaining!'."""
    for op_hash in order_of(session):
        meta = _meta(session, op_hash)
        if not (meta.is_complete() and meta.did_error()):
            continue
        name = _name(session, op_hash)
        if not session.alive:
            return _cut(session, f"during: {name}")
        try:
            read_result(name, 1, meta.stdout, meta.stderr)
        except RunError as step:
            if step.code != "run-failed":
                return RunError(f"{name}: {step.message}", hint=step.hint, code=step.code)
        tail = _not_uploaded(session, meta) or "\n".join((meta.stderr or meta.stdout).splitlines()[-8:])
        return RunError(
            f"{name}: {tail or 'failed'}",
            hint="mend the cause and run again: it goes on where it stopped",
            code="disk-full" if "No space left" in tail else None,
        )
    if not session.alive:  # no operation came to its end, so none has failed
        return _cut(session)
    return RunError(f"the run on {session.target} stopped: {error or 'the host gave no answer'}", hint="run again")


def _cut(session: Session, how: str = "") -> UnreachableError:
    return session.lost(how, "run the same command again: it goes on where it stopped")


def _not_uploaded(session: Session, meta: Any) -> str:
    """Why the host took no file, where that is what failed."""
    command = (meta._commands or [None])[-1]
    if not isinstance(command, FileUploadCommand):
        return ""
    size = os.path.getsize(command.src) if isinstance(command.src, str) else command.src.seek(0, os.SEEK_END)
    if session.rights()["_sudo"]:  # goes first to the folder for temporary files, as the login user
        why = session.refusal(str(command.remote_temp_filename), size, root=False)
        if why:
            return why
    return session.refusal(command.dest, size)
