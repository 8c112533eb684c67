"""`ownstack import`: the data of an Open WebUI or n8n that ran elsewhere, in the place of what the box holds."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, OwnstackError, RunError, UnreachableError, way_back
from .backup import told
from .output import confirm, emit_json, note, say
from .progress import Progress
from .restore import again, bring_runner, fill, let_go, said
from .site import Site, open_site, read_settings, target_options

if TYPE_CHECKING:
    from ..engine.apply import Listen
    from ..plan import Plan
    from ..verify.runner import VerifyReport

MIGRATION_S = 3600  # older data may be large: the service brings it up to date before it answers


@dataclass
class Importing:
    """One import on a standing box. `old`: the plan of the box; `found`: what was laid ready."""

    site: Site
    old: Plan
    path: str
    listen: Listen
    key_file: str = ""
    stamp: str = field(default_factory=lambda: time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return str(self.found["kind"])

    @property
    def plan(self) -> Plan:
        """The box's plan; documents that come from elsewhere go into collections of their own."""
        from ..engine import imports

        if self.kind != "open_webui":
            return self.old
        return self.old.model_copy(update={"vectors": imports.vectors_for(self.old, self.stamp)})

    def step(self, name: str, **more: Any) -> dict[str, Any]:
        from ..engine import imports

        self.site.session.on_event = self.listen
        return self.site.session.step(name, {**imports.spec(self.old, self.path, self.key_file), **more})

    def stage(self) -> dict[str, Any]:
        """Lay a checked copy ready; changes nothing that a service sees."""
        self.found = self.step("imports.stage")
        return self.found

    def discard(self) -> None:
        self.step("restore.revert")

    def carry_out(self) -> dict[str, Any]:
        """Exchange, start, verify, compare; where anything of it fails, the box as it was."""
        from ..engine import imports

        try:
            self.step("restore.swap", units=imports.stopped(self.old, self.kind))
            documents = self._bring()
            report = self._verified()
            counts = self.step("imports.compare")["counts"]
            self._note()
        except UnreachableError:
            raise  # nobody is there to be told; the next `up` puts back what was there
        except OwnstackError as error:
            raise self.take_back(error) from error
        except KeyboardInterrupt as error:
            raise self.take_back(RunError("it was interrupted")) from error
        except Exception as error:  # a fault of ours leaves no box with half of an import
            raise self.take_back(RunError(f"a fault of ownstack ({type(error).__name__}: {error})")) from error
        self.step("restore.finish")
        if self.kind == "open_webui":
            self.site.session.step("qdrant.drop", imports.drop_spec(self.plan, self.old.vectors))
        return {"documents": documents, "counts": counts, "verify": report}

    def _bring(self) -> dict[str, Any]:
        """Start the service, which brings its data up to date; then everything as planned, and documents indexed."""
        from ..engine import imports
        from ..engine.apply import execute
        from ..kit import activate

        activate()
        from deploy import apply
        from roles import n8n

        fill(self.site, self.plan)
        self._start()
        if self.kind == "n8n":
            self.site.session.step("imports.api_key", n8n.password_spec(self.plan))
        execute(self.site.session, apply, self.listen, plan=self.plan)
        if self.kind != "open_webui":
            return {}
        self.site.session.on_event = self.listen
        return self.site.session.step("imports.documents", imports.documents_spec(self.plan))

    def _start(self) -> None:
        from roles import role as find

        from ..engine.operations import service_list

        role = find(self.kind)
        spec = service_list(self.plan, role.services(self.plan), role.files(self.plan))
        for service in spec["services"]:
            service["timeout"] = MIGRATION_S
        self.site.session.on_event = self.listen
        self.site.session.step("imports.started", spec)

    def _verified(self) -> VerifyReport:
        from ..verify.runner import verify
        from .reprovision import wrong

        report = verify(self.plan, self.site.session, said)
        why = wrong(report)
        if why:
            raise RunError(why)
        return report

    def _note(self) -> None:
        """The box records where this data came from: its accounts have passwords that were never made here."""
        from ..engine.apply import execute
        from ..kit import activate

        activate()
        from deploy import remember

        manifest = self.site.state.manifest or {}
        about = {"time": self.stamp, "owner": self.found["owner"], "holds": self.found["holds"]}
        values: dict[str, Any] = {"imported": {**manifest.get("imported", {}), self.kind: about}}
        if self.kind == "open_webui":  # dropped in a moment; where that is cut off, `up --prune` finds them
            values["old_vectors"] = sorted({*manifest.get("old_vectors", ()), self.old.vectors})
        execute(self.site.session, remember, self.listen, plan=self.plan, values=values)

    @way_back
    def take_back(self, why: OwnstackError) -> RunError:
        """Put back what was there; the error that says why."""
        from ..engine import imports
        from .upgrade_run import aside

        back = self.step("restore.revert", units=imports.stopped(self.old, self.kind), mine=True)
        again(self.site, self.old, self.listen)
        if self.kind == "open_webui":
            let_go(self.site, self.old, self.plan.vectors, back, self.listen)
        return RunError(
            f"{self.found['label']} was not imported: {why.message}",
            hint=f"the box is as it was before, with its own data{aside(back)}; where it came from nothing was changed",
            code="import-reverted",
        )


@contextlib.contextmanager
def located(site: Site, plan: Plan, path: str) -> Iterator[str]:
    """The source on the target: there already, or uploaded from here for the time of the import."""
    whole = path if "://" in path else str(Path(path).expanduser().absolute())
    there = "://" in path or site.session.step("imports.find", {"path": whole})["there"]
    if there or site.session.target.local or not Path(whole).exists():
        yield whole  # where it is nowhere, the step says so
        return
    from ..runner.core import StepError
    from ..runner.imports import pack

    folder = f"{plan.layout.var}/work/import"
    with tempfile.TemporaryDirectory(prefix="ownstack-import-") as work:
        try:
            made = pack(whole, work)
        except StepError as error:
            raise RunError(error.message, hint=error.hint, code=error.code) from error
        except OSError as error:
            raise RunError(
                f"{whole} cannot be copied on its way to the box: {error}",
                hint=f"it goes through {tempfile.gettempdir()} of this machine: set TMPDIR to a larger folder",
                code="import-copy",
            ) from error
        site.session.put(Path(made), f"{folder}.tar", "0600")
    try:
        site.session.step("imports.received", {"file": f"{folder}.tar", "folder": folder})
        yield folder
    finally:
        with contextlib.suppress(OwnstackError):
            site.session.step("artifacts.remove", {"paths": [folder, f"{folder}.tar"]})


@click.command(name="import")
@target_options
@click.option("-y", "--yes", is_flag=True, help="Go on without being asked.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    default=None,
    help="File with n8n's encryption key, where its folder has no `config` with it.",
)
@click.argument("path", metavar="PATH")
def import_(
    host: str | None, config_file: str | None, sets: tuple[str, ...], sudo_password_file: Path | None,
    as_json: bool, verbose: int, yes: bool, key_file: Path | None, path: str,
) -> int:  # fmt: skip
    """Take over the data of an Open WebUI or an n8n that ran elsewhere.

    PATH is its database or the folder (volume) it lies in: `webui.db`, or `database.sqlite` with n8n's `config`. It
    is only read; a copy is checked, brought up to date by the service itself, and its rows compared. What the box
    held until then is kept aside until the box has passed `verify`, and put back where it does not.
    """
    from . import upgrade_run

    began = time.monotonic()
    settings = read_settings(config_file, sets, host=host)
    with (
        open_site(settings, sudo_password_file, doing="import") as site,
        Progress(quiet=as_json) as progress,
    ):
        upgrade_run.end_first(site, progress)
        plan = site.recorded_plan()
        bring_runner(site, plan)
        with located(site, plan, path) as found, _key(site, key_file) as key:
            work = Importing(site, plan, found, progress, key)
            data = _imported(work, yes, as_json)
    data["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        emit_json("import", data)
        return 0
    say(f"Imported {data['label']}: {told(data['holds'])}; nothing is missing")
    if data["documents"].get("left"):
        note(f"not indexed: {', '.join(data['documents']['left'])}")
    say(f"{len(data['checks'])} checks, none of a service failed; {data['seconds']} s")
    if data["owner"]:
        say(f"Sign in as {data['owner']} with the password that you had there.")
    return 0


@contextlib.contextmanager
def _key(site: Site, file: Path | None) -> Iterator[str]:
    """n8n's key as a private file on the target."""
    if file is None:
        yield ""
        return
    text = file.read_text().strip()
    if not text:
        raise ConfigError(f"{file} holds no key", hint="write N8N_ENCRYPTION_KEY of that n8n into it")
    with site.session.private(text + "\n") as path:
        yield path


def _imported(work: Importing, yes: bool, as_json: bool) -> dict[str, Any]:
    """Lay ready, say what it is, ask, carry out."""
    found = work.stage()
    if not as_json:
        note(f"{found['label']} in {found['found']}: {told(found['holds'])}")
        for line in found["notes"]:
            note(f"  {line}")
    held = told(found["here"]) or "nothing"
    try:
        confirm(f"Put this in the place of what {found['label']} holds on the box ({held})?", yes, as_json)
    except BaseException:
        work.discard()
        raise
    done = work.carry_out()
    checks = [result.as_dict() for result in done["verify"].results]
    return {**found, "documents": done["documents"], "counts": done["counts"], "checks": checks}
