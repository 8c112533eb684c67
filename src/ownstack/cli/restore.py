"""`ownstack restore`: a backup in the place of what the box holds; all of it, or the box as it was."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, OwnstackError, RunError, UnreachableError, way_back
from .backup import make_ready, told, when
from .backup_key import key_options, on_target, read_passphrase
from .output import confirm, emit_json, note, say
from .progress import Progress
from .restore_bare import described, empty_box, looking, made, named, nowhere, planned, settings_in, stands
from .restore_vectors import apart, indexed, old_vectors, reindexing, remakable
from .site import Site, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..engine.apply import Listen
    from ..plan import Plan
    from ..verify.runner import CheckResult, VerifyReport

PENDING = ("swapping", "swapped")


@dataclass
class Restoring:
    """One restore on a standing box. `old`: the plan of the box; `plan`: the same for the data of the backup."""

    site: Site
    old: Plan
    about: dict[str, Any]
    keys: dict[str, Any]
    listen: Listen

    @property
    def plan(self) -> Plan:
        """The box's plan with the collections' names of the backup, or new ones for another embedding model."""
        from ..vectors import prefix_for

        if "open_webui" not in self.about["services"]:
            return self.old
        return self.old.model_copy(update={"vectors": prefix_for(self.about["box"], self.old.model("embedding"))})

    def step(self, name: str, **more: Any) -> dict[str, Any]:
        from ..engine import backups

        self.site.session.on_event = self.listen
        spec = backups.restore_spec(self.old, self.about["file"], self.keys, backups.absent(self.about, self.old))
        return self.site.session.step(name, {**spec, **more})

    def carry_out(self) -> dict[str, Any]:
        """Lay ready, exchange, start, verify; where anything of it fails, the box as it was."""
        self.step("restore.stage")
        try:
            self.step("restore.swap")
            models, documents = self._bring()
            report = self._verified()
            self._note()
        except UnreachableError:
            raise  # nobody is there to be told; the next `up` puts back what was there
        except OwnstackError as error:
            raise self.take_back(error.message) from error
        except KeyboardInterrupt as error:
            raise self.take_back("it was interrupted") from error
        except Exception as error:  # a fault of ours leaves no box with half of a backup
            raise self.take_back(f"a fault of ownstack ({type(error).__name__}: {error})") from error
        self.step("restore.finish")
        return {"models": models, "documents": documents, "verify": report}

    def _bring(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Vectors into an empty Qdrant, models into the engine, then everything as planned."""
        from ..engine import backups, imports
        from ..engine.apply import execute
        from ..kit import activate

        activate()
        from deploy import apply

        plan, left_out = self.plan, apart(self.about, self.old)
        fill(self.site, plan)
        if plan.has("qdrant") and not left_out:
            start(self.site, plan, "qdrant")
            self.step("restore.vectors", url=backups.qdrant_url(plan))
        models: list[dict[str, Any]] = []
        if backups.store(plan):
            models = self.step("restore.models", url=plan.engine_url, folder=backups.store(plan))["models"]
        execute(self.site.session, apply, self.listen, plan=plan)
        documents: dict[str, Any] = {}
        if "open_webui" in self.about["services"] and left_out:
            self.site.session.on_event = self.listen
            documents = self.site.session.step("imports.documents", imports.documents_spec(plan))
        elif "open_webui" in self.about["services"] and plan.vectors != self.about["box"]["vectors"]:
            from . import indexing

            indexing.anew(self.site.session.step, plan, self.about["box"]["vectors"])
        return models, documents

    def _verified(self) -> VerifyReport:
        from ..verify.runner import verify
        from .reprovision import wrong

        report = verify(self.plan, self.site.session, said)
        why = wrong(report)
        if why:
            raise RunError(why)
        return report

    def _note(self) -> None:
        """Whose accounts were imported, and which collections nobody needs, comes from where their data comes from."""
        from ..engine.apply import execute
        from ..kit import activate

        activate()
        from deploy import remember

        now = self.site.state.manifest or {}
        there = now.get("imported", {})
        stays = {name: about for name, about in there.items() if name not in self.about["services"]}
        comes = {name: about for name, about in self.about["box"]["imported"].items() if name in self.about["services"]}
        values = {"imported": {**stays, **comes}, "old_vectors": old_vectors(self.about, self.plan, now)}
        if values != {"imported": there, "old_vectors": now.get("old_vectors")}:
            execute(self.site.session, remember, self.listen, plan=self.plan, values=values)

    @way_back
    def take_back(self, why: str) -> RunError:
        """Put back what was there; the error that says why."""
        from .upgrade_run import aside

        back = self.step("restore.revert", mine=True)
        again(self.site, self.old, self.listen)
        return RunError(
            f"the backup was not restored: {why}",
            hint=f"the box is as it was before, with its own data{aside(back)}",
            code="restore-reverted",
        )


def said(result: CheckResult) -> None:
    """A check of a restore says nothing by itself."""


def fill(site: Site, plan: Plan, exchanged: bool = True) -> None:
    """Configuration with the secrets that are there now; `exchanged`: others than those it was written with."""
    from ..engine.role_tasks import secret_spec
    from ..kit import activate

    activate()
    from roles import roles_of

    files = [file for role in roles_of(plan) for file in role.files(plan) if file.secret]
    if exchanged:  # one that somebody edited holds the replaced keys: it stays beside, as `.ownstack-old`
        about = {"record": plan.layout.written, "paths": [file.path for file in files]}
        for path in site.session.step("files.give_up", about).get("paths", ()):
            note(f"{path} was edited by hand, and held replaced keys: yours lies beside, as {path}.ownstack-old")
    site.session.step("secrets.fill", secret_spec(plan, files))


def start(site: Site, plan: Plan, name: str) -> None:
    from ..engine.operations import service_list
    from ..kit import activate

    activate()
    from roles import role as find

    role = find(name)
    spec = service_list(plan, role.services(plan), role.files(plan))
    site.session.step("box.control", {**spec, "action": "start"})


def again(site: Site, plan: Plan, listen: Listen) -> None:
    """The box as its plan says, after its secrets and the files that hold them were put back as they were together."""
    from ..engine.apply import execute
    from ..kit import activate

    activate()
    from deploy import apply

    fill(site, plan, exchanged=False)
    execute(site.session, apply, listen, plan=plan)


def take_back(site: Site, listen: Callable[[dict[str, Any]], None]) -> bool:
    """Where a restore was cut off: put back what was there before it. Whether there was one."""
    from ..engine import backups
    from ..engine.preflight import read_state
    from .upgrade_run import aside

    work = site.state.work.get("restore", {})
    pending = work.get("status") in PENDING
    if not pending and work.get("clean", True):
        return False
    plan = site.recorded_plan()
    bring_runner(site, plan)
    site.session.on_event = listen
    what = "an import" if work.get("import") else "a restore"
    if not pending:
        site.session.step("restore.revert", backups.restore_spec(plan, "", {}))
        note(f"{what} was cut off: what it had laid ready or aside is gone")
        return False
    back = site.session.step("restore.revert", backups.restore_spec(plan, "", {}))
    site.state = read_state(site.session, plan.layout)
    now = site.recorded_plan()
    again(site, now, listen)
    if now.vectors != plan.vectors and now.has("qdrant"):  # of an import: what was indexed until then
        let_go(site, now, plan.vectors, back, listen)
    note(f"{what} was cut off: the box is as it was before it{aside(back)}")
    return True


def let_go(site: Site, plan: Plan, vectors: str, back: dict[str, Any], listen: Listen) -> None:
    """Collections of an import that was taken back. Where its documents are kept aside, `up --prune` has them later."""
    from ..engine import imports
    from ..engine.apply import execute
    from ..kit import activate

    activate()
    from deploy import remember

    if back.get("replaced"):
        left = {*(site.state.manifest or {}).get("old_vectors", ()), vectors}
        execute(site.session, remember, listen, plan=plan, values={"old_vectors": sorted(left)})
        return
    with contextlib.suppress(RunError):  # empty collections harm nobody
        site.session.step("qdrant.drop", imports.drop_spec(plan, vectors))


def bring_runner(site: Site, plan: Plan) -> None:
    """Bring today's runner; nothing else of the box is touched."""
    from ..engine.apply import execute
    from ..kit import activate

    activate()
    from deploy import ready

    execute(site.session, ready, lambda event: None, plan=plan)


def clear_second(site: Site) -> None:
    """Take away what a second instance left that was cut off: of a restore drill, of a rehearsal."""
    from ..engine import backups, scratch

    for name, words in (("drill", "a restore drill"), ("rehearsal", "a rehearsal")):
        if name not in site.state.work:
            continue
        plan = site.recorded_plan()
        told = {"place": scratch.spec(plan, name), "lock": backups.common(plan)["lock"]}
        if site.session.step("drill.clear", told)["cleared"]:
            note(f"{words} was cut off: what it left is gone; the box itself is as it was")


def located(site: Site, plan: Plan, path: str) -> str:
    """The backup on the target: there already, or uploaded from here; of a folder the box's own newest.

    Raises ConfigError where it is in neither, RunError where a folder has those of several other boxes.
    """
    from ..engine import backups

    wanted = {"path": path, "mark": backups.mark(plan)}
    found: str = site.session.step("backup.find", wanted)["file"]
    here = Path(path)
    if not found and here.exists() and not site.session.target.local:
        from ..runner.backup_names import find

        with looking(path):
            local = find(wanted, lambda event: None)["data"]["file"]
        if local:
            found = f"{plan.layout.var}/work/restore-{Path(local).name}"
            site.session.put(Path(local), found, "0600")
    if not found:
        raise nowhere(site, path)
    return found


def compatible(about: dict[str, Any], plan: Plan) -> None:
    """Raises RunError where the box could not read the data."""
    from ..engine import backups

    found = backups.newer(about.get("versions", {}), plan)
    if found:
        raise RunError(
            f"the backup is newer than this box: {'; '.join(found)}",
            hint="restore it with the version of ownstack that made it, or a newer one; nothing was changed",
            code="backup-newer",
        )
    missing = [name for name in about.get("services", ()) if not plan.has(name)]
    if missing:
        raise RunError(
            f"the backup holds {', '.join(missing)}, which this box has not",
            hint="add them to `roles` and run `ownstack up`; nothing was changed",
            code="role-missing",
        )
    remakable(about, plan)


@click.command()
@target_options
@click.option("-y", "--yes", is_flag=True, help="Go on without being asked.")
@click.option("--mirror", default=None, help="URL or folder that replaces the network, for a new machine.")
@click.option("--cpu-only", is_flag=True, help="On a new machine: go on without the GPU, knowingly.")
@key_options
@click.argument("file", metavar="FILE|FOLDER")
def restore(
    host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
    as_json: bool, verbose: int, yes: bool, mirror: str | None, cpu_only: bool,
    passphrase_file: Path | None, identity: Path | None, file: str,
) -> int:  # fmt: skip
    """Put a backup (or the newest one in a folder) in the place of what the box holds.

    On a new machine the box is made first, fitted to its hardware. What is replaced is kept aside until the box has
    passed `verify` with the restored data, and put back where it does not.
    """
    from . import upgrade_run

    began = time.monotonic()
    word = _key(passphrase_file, identity, as_json)
    path = file if file.startswith("/") else str(Path(file).resolve())
    settings = read_settings(config_file, sets, host=host, mirror=mirror, cpu_only=cpu_only)
    with open_site(settings, sudo_password_file, doing="restore") as site, Progress(quiet=as_json) as progress:
        upgrade_run.end_first(site, progress)
        new = not stands(site)
        bare = new and not site.state.stands  # else there may be data of an earlier box
        if new:
            about = described(site, path)
            held = settings_in(about, path)  # those given here win
            site.settings = read_settings(config_file, sets, below=held, host=host, mirror=mirror, cpu_only=cpu_only)
            if not as_json and held:
                note(f"settings in the backup: {named(held)}")
            plan = planned(site)
            compatible(about, plan)
            if not as_json and reindexing(about, plan):
                note(reindexing(about, plan))
            confirm(f"Make a box on {site.report.host.hostname} and restore {path} into it?", yes, as_json)
            plan = made(site, plan, progress)
        else:
            plan = site.recorded_plan()
        with empty_box(new):
            make_ready(site, plan)
            found = located(site, plan, path)
            try:
                with on_target(site.session, word, identity) as keys:
                    data = _restored(site, plan, found, dict(keys), progress, yes or bare, as_json)
            finally:
                if found.startswith(f"{plan.layout.var}/work/") and site.session.alive:  # it was uploaded for this run
                    with contextlib.suppress(OwnstackError):
                        site.session.step("artifacts.remove", {"paths": [found]})
    data["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        emit_json("restore", data)
        return 0
    say(f"Restored the backup of {data['hostname']}, {when(data['created'])}: {told(data['holds'])}")
    for row in data["models"]:
        if row["state"] != "there":
            note(f"the model {row['name']}: {row['state']}")
    for line in indexed(data["documents"]):
        note(line)
    say(f"{len(data['checks'])} checks, none of a service failed; {data['seconds']} s")
    return 0


def _key(passphrase_file: Path | None, identity: Path | None, as_json: bool) -> str:
    if identity is not None:
        if identity.is_file() or not identity.exists():  # a pipe, as of `<(...)`, can be read only once
            identity.read_text()  # a wrong name is told now, and not when a box was made on a new machine
        return ""
    if passphrase_file is not None:
        return read_passphrase(passphrase_file)
    if as_json or not sys.stdin.isatty():
        raise ConfigError(
            "a backup is encrypted",
            hint="name the passphrase (`--passphrase-file FILE`) or the age identity (`--identity FILE`)",
            code="no-passphrase",
        )
    return str(click.prompt("Passphrase of the backup", hide_input=True, err=True))


def _restored(
    site: Site, plan: Plan, file: str, keys: dict[str, Any], listen: Listen, yes: bool, as_json: bool
) -> dict[str, Any]:
    """Check the backup whole, ask, and carry it out."""
    from ..engine import backups

    site.session.on_event = listen
    about = site.session.step("backup.verify", backups.verify_spec(plan, file, keys))
    compatible(about, plan)
    if plan.has("open_webui") and "open_webui" not in about["services"] and "qdrant" in about["versions"]:
        raise RunError(
            "the backup holds vectors and no Open WebUI: those of this box's documents would be lost",
            hint="restore it into a box of its own; nothing was changed",
            code="backup-vectors",
        )
    if not as_json:
        note(f"{file}: of {about['hostname']}, {when(about['created'])}: {told(about['holds'])}")
        for name in backups.absent(about, plan):
            note(f"{name} is not in the backup: its data stays as it is")
        if reindexing(about, plan):
            note(reindexing(about, plan))
    confirm(f"Put this in the place of what {plan.host.hostname} holds now?", yes, as_json)
    done = Restoring(site, plan, about, keys, listen).carry_out()
    checks = [result.as_dict() for result in done["verify"].results]
    kept = {key: value for key, value in about.items() if key != "box"}
    told_now = {"reindex": reindexing(about, plan), "documents": done["documents"]}
    return {**kept, **told_now, "models": done["models"], "checks": checks}
