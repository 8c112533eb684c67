"""`ownstack upgrade --self`: new versions for the kit to know of. It changes no box: `upgrade` does, later."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..errors import OwnstackError
from ..kit import data_in_use
from .output import UsageError, confirm, emit_json, note, say
from .site import read_settings

if TYPE_CHECKING:
    from ..bundle.check import Bundle
    from ..settings import Sources

SCHEMA = "upgrade-self"
NEXT = "`ownstack plan` and `ownstack upgrade --check` say what that means for a box"


def with_self(command: Callable[..., int]) -> Callable[..., int]:
    """The options of `upgrade` by which it means the kit's own data, and no box."""

    @functools.wraps(command)
    def chosen(*, itself: bool, source: str, undo: bool, **rest: Any) -> int:
        if not itself:
            if source or undo:
                raise UsageError("--from and --undo belong to `upgrade --self`", hint="add --self")
            return command(**rest)
        if rest["services"]:
            raise UsageError("`upgrade --self` changes no service", hint="leave out what stands beside it")
        sets = (*rest["sets"], *([f'sources.mirror="{rest["mirror"]}"'] if rest["mirror"] else []))
        return upgrade_self(
            rest["config_file"], sets, source, undo=undo, check=rest["check"], yes=rest["yes"], as_json=rest["as_json"]
        )

    for option in reversed(
        [
            click.option("--self", "itself", is_flag=True, help="Take newer locks, floors, models and cards."),
            click.option("--from", "source", default="", metavar="PLACE", help="--self: a file, folder or address."),
            click.option("--undo", is_flag=True, help="--self: go back to the data of before."),
        ]
    ):
        chosen = option(chosen)
    return chosen


def upgrade_self(
    config_file: str | None,
    sets: tuple[str, ...],
    source: str,
    *,
    undo: bool = False,
    check: bool = False,
    yes: bool = False,
    as_json: bool = False,
) -> int:
    """Take a newer bundle, or go back with `undo`. `source`: where from, empty for mirror and settings.

    `check`: show what it would change, and take nothing.
    """
    if undo:
        return _undo(yes, as_json)
    sources: Sources = read_settings(config_file, sets).base.sources
    from ..bundle import changes, store
    from ..bundle.check import opened
    from ..bundle.source import fetch, place, trusted

    keys = trusted(sources)
    where = place(source, sources)
    if not as_json:
        note(f"asking {where}")
    bundle = opened(*fetch(where), keys)
    data = {"from": where, "key": bundle.key, "comment": bundle.comment, "serial": bundle.serial, "taken": False}
    if not store.newer(bundle):
        return _told({**data, "changes": None}, as_json, f"the data {bundle.serial} are in use already: nothing to do")
    with store.laid_out(bundle) as folder:
        found = changes.compare(folder, bundle.serial)
        data["changes"] = found
        if not as_json:
            _show(bundle, changes.lines(found))
        if check:
            return _told(data, as_json, "nothing was taken: without `--check` it is")
        try:
            confirm("Use these data from now on?", yes, as_json)
        except OwnstackError as error:
            error.data = data  # type: ignore[attr-defined]  # goes into the envelope
            raise
        data["folder"] = str(store.keep(folder, bundle.serial))
    words = f"the data {bundle.serial} are in use; no box was changed: {NEXT}"
    return _told({**data, "taken": True}, as_json, words)


def _undo(yes: bool, as_json: bool) -> int:
    from ..bundle import store

    before = data_in_use()
    if before.folder is not None:
        confirm(f"Go back from the data {before.serial}?", yes, as_json)
    now = store.undo()
    words = f"{described(now.serial, str(now.folder or ''))} are in use again, instead of {before.serial}"
    return _told({"from": before.serial, "serial": now.serial, "folder": _folder()}, as_json, words)


def _show(bundle: Bundle, lines: list[str]) -> None:
    note(f"signed with the key {bundle.key}: {bundle.comment}")
    note("")
    for line in lines:
        note(f"  {line}")
    note("")


def _told(data: dict[str, Any], as_json: bool, words: str) -> int:
    if as_json:
        emit_json(SCHEMA, data)
    else:
        say(words)
    return 0


def _folder() -> str:
    folder = data_in_use().folder
    return str(folder) if folder else ""


def described(serial: int, folder: str) -> str:
    return f"the data {serial} of `ownstack upgrade --self`" if folder else f"the program's own data {serial}"


def state() -> dict[str, Any]:
    """Which data are in use, for `config` and `status`: serial, folder (empty: the program's own), note, and age."""
    from ..data import load_floors

    now = data_in_use()
    checked = load_floors().checked
    return {
        "serial": now.serial,
        "folder": _folder(),
        "note": now.note,
        "checked": checked.isoformat(),
        "age_days": (datetime.date.today() - checked).days,
        "program": __version__,
    }


def describe(found: dict[str, Any]) -> str:
    """One line on the data in use."""
    words = f"{described(found['serial'], found['folder'])} are in use, pins checked on {found['checked']}"
    return f"{words} ({found['note']})" if found["note"] else words
