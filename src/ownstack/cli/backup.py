"""`ownstack backup`: a copy of what the box holds, made while everything runs; or a look at one."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, RunError
from .backup_key import key_options, new_passphrase, on_target, read_passphrase
from .output import UsageError, emit_json, note, say, size
from .progress import Progress
from .site import Site, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..plan import Plan


# also of a disk that is not mounted, whose folder was made in its place
SAME_DISK = "it lies on the same disk as the box, and is lost with it: `--to` names a folder on another one"


def make_ready(site: Site, plan: Plan) -> None:
    """Bring today's runner and what encrypts; nothing else of the box is touched."""
    from ..engine.apply import execute
    from ..kit import activate

    activate()
    from deploy import ready

    if not any(item.name == "age" for item in plan.role("base").artifacts):
        raise RunError(
            "what encrypts a backup is not part of this box",
            hint="`ownstack up` installs it: it comes from the Python package index",
            code="no-age",
        )
    execute(site.session, ready, lambda event: None, plan=plan)


def when(stamp: str) -> str:
    """`20261125T143000Z` in the words of the machine that shows it."""
    made = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    return made.astimezone().strftime("%Y-%m-%d %H:%M")


def told(holds: dict[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in holds.items())


def absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ConfigError(f"{path} is not an absolute path", hint="name a folder of the box: /mnt/disk/backups")
    return path.rstrip("/") or "/"


def destination(plan: Plan, to: str) -> str:
    """The folder for backups. Raises ConfigError for one that goes with the box, or would be a part of its backups."""
    from ..engine import backups

    if not to:
        return backups.folder(plan)
    path = os.path.normpath(f"/{absolute(to).strip('/')}")
    layout = plan.layout
    inside = next((top for top in (layout.var, layout.etc, layout.opt) if f"{path}/".startswith(f"{top}/")), "")
    if inside:
        raise ConfigError(
            f"{path} lies in the box's own {inside}: `ownstack down --purge` takes it away",
            hint=f"name a folder on another disk; without `--to` it is {backups.folder(plan)}, which stays",
            code="backup-inside",
        )
    return path


def make(
    site: Site, to: str, keep: int, with_models: bool, word: str, recipients: tuple[str, ...], drill: bool
) -> dict[str, Any]:
    """Make one, and with `drill` try it. The data of the step, with the name of the folder."""
    from ..engine import backups

    plan = site.recorded_plan()
    target = destination(plan, to)
    make_ready(site, plan)
    with on_target(site.session, word) as key:
        keys = {**key, "recipients": list(recipients), "once": bool(key)}
        settings = backups.chosen_settings(site.settings)
        spec = backups.make_spec(plan, settings, target, keep, with_models, keys)
        spec = {**spec, "drill": backups.drill_spec(plan) if drill else None}
        return site.session.step("backup.make_outliving", backups.outliving(plan, spec))


def schedule(
    site: Site, every: str, to: str, keep: int, with_models: bool, word: str, recipients: tuple[str, ...], drill: bool
) -> dict[str, Any]:
    """Let the box make backups by itself, or stop that. What was set."""
    from ..engine import backups
    from ..engine.apply import execute
    from ..kit import activate
    from ..plan import Schedule

    activate()
    import deploy

    old = site.recorded_plan()
    if old.manager == "supervisord":
        raise RunError(
            "process 1 is not systemd here: there is no timer that could make backups",
            hint="let a scheduler of your own run `ownstack backup --to FOLDER --recipient age1...`",
            code="no-timer",
        )
    target = destination(old, to)
    make_ready(site, old)
    wanted = None
    if every != "never":
        with on_target(site.session, word) as key:
            keys = backups.key_spec(old, recipients=list(recipients), **key)
            told_place = {
                **backups.common(old), **keys, "to": target, "secret": backups.PASSPHRASE,
                "state": backups.state_file(old),
            }  # fmt: skip
            elsewhere = site.session.step("backup.place", told_place)["elsewhere"]
        wanted = Schedule(
            every="week" if every == "week" else "day", to=target, keep=keep, with_models=with_models,
            recipients=recipients, elsewhere=elsewhere, drill=drill, settings=backups.chosen_settings(site.settings),
        )  # fmt: skip
    plan = old.model_copy(update={"backup": wanted})
    execute(site.session, deploy.schedule, lambda event: None, plan=plan, old=old)
    return {
        "every": every, "to": wanted.to if wanted else "", "keep": keep, "drill": bool(wanted and wanted.drill),
        "same_disk": bool(wanted and not wanted.elsewhere),
    }  # fmt: skip


def look(site: Site, file: str, word: str, identity: Path | None, drill: bool) -> dict[str, Any]:
    """Check one, and with `drill` try it. Raises RunError that says what is wrong with it."""
    from ..engine import backups
    from .restore import compatible
    from .restore_vectors import apart, reindexing

    plan = site.recorded_plan()
    make_ready(site, plan)
    with on_target(site.session, word, identity) as key:
        data = site.session.step("backup.verify", backups.verify_spec(plan, file, dict(key)))
        if drill:
            compatible(data, plan)
            more = {**key, "file": file, "without_vectors": bool(apart(data, plan))}
            spec = backups.outliving(plan, {**backups.drill_spec(plan), **more}, "drill")
            data["drill"] = site.session.step("drill.run_outliving", spec)
            data["reindex"] = reindexing(data, plan)
    return data


@click.command()
@target_options
@click.option("--to", default="", help="Folder of the box for the file; another disk is best.")
@click.option("--keep", type=click.IntRange(1, 1000), default=7, show_default=True, help="How many backups stay.")
@click.option("--with-models", is_flag=True, help="All models with their files; otherwise only those made here.")
@click.option("--recipient", "recipients", multiple=True, metavar="AGE1...", help="Encrypt for a key of age instead.")
@click.option(
    "--every",
    type=click.Choice(["day", "week", "never"]),
    default=None,
    help="Let the box make them itself, or not.",
)
@key_options
@click.option("--verify", "verify_file", default="", metavar="FILE", help="Check a backup instead of making one.")
@click.option(
    "--drill",
    is_flag=True,
    help="Try the backup too: second instances of the services start on it; with --every once a week.",
)
def backup(
    host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
    as_json: bool, verbose: int, to: str, keep: int, with_models: bool, recipients: tuple[str, ...],
    every: str | None, passphrase_file: Path | None, identity: Path | None, verify_file: str, drill: bool,
) -> int:  # fmt: skip
    """Make a backup while everything runs: chats, documents, vectors, workflows, keys, the list of models.

    All of it is encrypted, with a passphrase or for an age recipient. The file is checked by opening it again before
    older ones go.
    """
    from .upgrade_run import end_first

    settings = read_settings(config_file, sets, host=host)
    if verify_file and (every or to or recipients or with_models):
        raise UsageError(
            "--verify looks at a backup that is there: --every, --to, --recipient and --with-models make one",
            hint="leave out one or the other",
        )
    if verify_file:
        word = read_passphrase(passphrase_file) if passphrase_file is not None else ""
        if drill and not word and identity is None:
            raise ConfigError(
                "a backup is encrypted, and to be tried it has to be opened",
                hint="name the passphrase (`--passphrase-file FILE`) or the age identity (`--identity FILE`)",
                code="no-passphrase",
            )
        named = str(Path(verify_file).resolve()) if settings.base.host == "local" else verify_file
        with open_site(settings, sudo_password_file) as site, Progress(quiet=as_json) as progress:
            site.session.on_event = progress
            data = look(site, named, word, identity, drill)
        return _say_look(data, as_json)
    word = "" if every == "never" else new_passphrase(passphrase_file, recipients, as_json)
    if every is not None:
        with open_site(settings, sudo_password_file, doing="backup --every") as site:
            end_first(site)
            data = schedule(site, every, to, keep, with_models, word, recipients, drill)
        return _say_schedule(data, as_json)
    with open_site(settings, sudo_password_file, doing="backup") as site, Progress(quiet=as_json) as progress:
        end_first(site, progress)
        site.session.on_event = progress
        data = make(site, to, keep, with_models, word, recipients, drill)
    if as_json:
        emit_json("backup", data)
        return 0
    say(f"{data['file']}: {size(data['bytes'])} in {data['seconds']} s, opened again and sound")
    say(f"  {told(data['holds'])}")
    _say_drill(data)
    if data["without_models"]:
        note(f"without the list of models: {data['without_models']}")
    for path in data["removed"]:
        note(f"removed: {path}")
    if data.get("same_disk"):
        note(SAME_DISK)
    say("The passphrase or identity is needed to restore it: keep it where the box is not.")
    return 0


def _say_schedule(data: dict[str, Any], as_json: bool) -> int:
    if as_json:
        emit_json("backup", data)
    elif data["every"] == "never":
        say("The box makes no more backups by itself. Those that are there stay.")
    else:
        say(f"A backup every {data['every']} at three in the night, in {data['to']}; the newest {data['keep']} stay.")
        if data["same_disk"]:
            note(SAME_DISK)
        if data["drill"]:
            say("Once a week the newest is tried in second instances of the services.")
        say("`ownstack status` says when the last one was made, and why one failed.")
    return 0


def _say_drill(data: dict[str, Any]) -> None:
    if data.get("drill"):
        drill = data["drill"]
        say(f"  restorable: second instances of the services started on it in {drill['seconds']} s and held")
        say(f"  {told(drill['counts'])}")
        if data.get("reindex"):
            note(f"vectors were not tried: in a restore {data['reindex']}")


def _say_look(data: dict[str, Any], as_json: bool) -> int:
    if as_json:
        emit_json("backup", {key: value for key, value in data.items() if key != "box"})
        return 0
    say(f"{data['file']}: sound, {data['parts']} parts, {size(data['bytes'])}")
    say(f"  of {data['hostname']}, {when(data['created'])}, by ownstack {data['kit_version']}")
    say(f"  {told(data['holds'])}")
    say(
        "  opened with this key: databases, vectors and files are sound"
        if data["opened"]
        else "  every part is as it was written; to look inside give `--passphrase-file` or `--identity`"
    )
    _say_drill(data)
    return 0
