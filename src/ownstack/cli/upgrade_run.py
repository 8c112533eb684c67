"""One service from a version to another, with its data: put back together where anything of it fails."""

from __future__ import annotations

import datetime
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import OwnstackError, RunError, UnreachableError, way_back
from .again import current
from .output import note
from .progress import silent

if TYPE_CHECKING:
    from ..engine.apply import Listen
    from ..plan import Plan
    from ..verify.runner import CheckResult, VerifyReport
    from .site import Site

PENDING = ("taking", "taken")
# services without which no document is found
SEARCHED = ("qdrant", "ollama", "open_webui")
# the step that begins it: where a run died in it, it may have gone on after the state was read
BEGINNING = "snapshots.take"


def new_id() -> str:
    """Names what one command does, and sorts by time."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"


def said(result: CheckResult) -> None:
    """A check says nothing by itself here."""


@dataclass
class Change:
    """One service's way: `old` is the plan that serves, `plans` lead one after the other to the last one."""

    site: Site
    role: str
    old: Plan
    plans: tuple[Plan, ...]
    listen: Listen
    patience_s: int
    kind: str = "upgrade"
    put: str = ""  # the snapshot whose data is put in the place of today's
    leave: tuple[str, ...] = ()  # of that snapshot: items and records that stay as they are
    vectors: str = ""  # of that snapshot: the beginning of its collections' names
    expected: dict[str, Any] | None = None  # counts that have to be reached; None: those of today
    rehearsed: bool = False
    run: str = field(default_factory=new_id)  # of all that `rollback` takes back together
    attempt: str = ""  # of a run that had to connect again: no two of them have a snapshot of the same name

    @property
    def identity(self) -> str:
        """Of the snapshot."""
        return f"{self.attempt or self.run}-{self.role}"

    @property
    def plan(self) -> Plan:
        return self.plans[-1]

    def step(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        self.site.session.on_event = self.listen
        return self.site.session.step(name, spec)

    def about(self) -> dict[str, dict[str, str]]:
        from ..engine.upgrades import versions

        old, new = versions(self.old), versions(self.plan)
        moved = [name for name in new if new[name] != old.get(name) or self._other(name)]
        return {"from": {name: old.get(name, "") for name in moved}, "to": {name: new[name] for name in moved}}

    def _other(self, name: str) -> bool:
        items = [[i for part in plan.roles for i in part.artifacts if i.name == name] for plan in (self.old, self.plan)]
        return [item.digest for item in items[0]] != [item.digest for item in items[1]]

    def stage(self) -> None:
        """Fetch and verify the new programs beside those that serve. Nothing is switched, whatever becomes of it."""
        from ..engine.apply import execute
        from ..engine.upgrades import staged
        from ..kit import activate

        activate()
        import deploy

        try:
            for plan in self.plans:
                execute(self.site.session, deploy.stage, self.listen, plan=staged(plan), names=[self.role])
        except UnreachableError:
            raise
        except OwnstackError as error:
            raise RunError(
                f"{error.message}; nothing was switched, the box goes on as before", hint=error.hint, code=error.code
            ) from error

    def unstage(self) -> None:
        """Take away the links by which the new programs were laid ready; the programs stay."""
        from ..engine.upgrades import staged_links

        self.step("artifacts.remove", {"paths": staged_links(self.plan)})

    def carry_out(self) -> dict[str, Any]:
        """Stop, copy, switch, start, look; keep it, or put back programs and data together."""
        from ..engine import upgrades

        since = upgrades.young(self.old, datetime.datetime.now(datetime.UTC))
        document = self._document()
        began = time.monotonic()
        try:
            spec = upgrades.take_spec(self.old, self.role, self.identity, self.run, self.kind, self.about(), since)
            taken = self.step("snapshots.take", spec)
            if self.put:
                self.step("snapshots.put", {**upgrades.place(self.old), "from": self.put, "leave": list(self.leave)})
            wanted = taken.get("counts", {}) if self.expected is None else self.expected
            for plan in self.plans:
                self._start(plan)
                self._count(plan, wanted, since)
            down = time.monotonic() - began
            report = self._verified()
            self._found(document)
            done = self.step("snapshots.commit", upgrades.place(self.plan))
        except UnreachableError:
            raise  # nobody is there to be told; the next `up` puts back what was there
        except OwnstackError as error:
            raise self.take_back(error.message, error) from error
        except KeyboardInterrupt as error:
            raise self.take_back("it was interrupted") from error
        except Exception as error:  # a fault of ours leaves no box between two versions
            raise self.take_back(f"a fault of ownstack ({type(error).__name__}: {error})") from error
        return {
            "service": self.role, **self.about(), "snapshot": taken.get("folder", ""), "bytes": taken.get("bytes", 0),
            "rehearsed": self.rehearsed,
            "counts": taken.get("counts", {}), "removed": done.get("removed", []), "down_seconds": round(down, 1),
            "seconds": round(time.monotonic() - began, 1),
            "checks": [result.as_dict() for result in report.results],
        }  # fmt: skip

    def _document(self) -> dict[str, Any]:
        """A document that lies in the box and is found; empty where there is none, or nobody can tell today."""
        from roles import open_webui

        concerned = self.role in SEARCHED and self.old.has("open_webui") and self.old.has("qdrant")
        if not concerned or self.kind != "upgrade":
            return {}
        try:
            data = self.step("open_webui.again", open_webui.again_spec(self.old))
        except RunError:  # whatever it is, the checks afterwards say it
            return {}
        point: dict[str, Any] = data["point"] if data.get("found") else {}
        return point

    def _found(self, document: dict[str, Any]) -> None:
        """Raises RunError where the document of before is found no more: what `verify` finds came just now."""
        from roles import open_webui

        if not document:
            return
        data = self.step("open_webui.again", open_webui.again_spec(self.plan, document))
        if not data["found"] and not data["refused"]:
            raise RunError("a document that was there before is not found any more", code="document-lost")

    def _start(self, plan: Plan) -> None:
        """Switch the links and the configuration, and wait for the service, which may change its data first."""
        from ..engine import upgrades
        from ..engine.apply import execute
        from ..kit import activate

        activate()
        import deploy
        from roles import n8n

        execute(self.site.session, deploy.switch, self.listen, plan=plan, names=[self.role])
        if self.put:
            from .restore import fill

            fill(self.site, plan)
        if self.role == "n8n":
            self.step("n8n.preflight", n8n.preflight_spec(plan))
        self.step("box.activate", upgrades.start_spec(plan, self.role, self.patience_s))

    def _count(self, plan: Plan, wanted: dict[str, Any], since: str) -> None:
        from ..engine import upgrades
        from ..upgrading import losses

        now = self.step("snapshots.counts", upgrades.count_spec(plan, self.role, since))
        wanted = {**wanted, "vectors": {} if "qdrant" in self.leave else wanted.get("vectors", {})}
        lost = losses(wanted, now)
        if lost:
            raise RunError("; ".join(lost), code="counts")

    def _verified(self) -> VerifyReport:
        """Everything as planned once more, then what people do: sign in, chat, find a document, run a workflow."""
        from ..engine import upgrades
        from ..engine.apply import execute
        from ..kit import activate
        from ..verify.runner import verify
        from .reprovision import wrong

        activate()
        from deploy import apply

        execute(self.site.session, apply, self.listen, plan=self.plan)
        if self.vectors and self.vectors != self.plan.vectors:
            from . import indexing

            indexing.anew(self.step, self.plan, self.vectors)
        report = verify(self.plan, self.site.session, said, upgrades.GATE[self.role])
        why = wrong(report)
        if why:
            raise RunError(why)
        return report

    @way_back
    def take_back(self, why: str, error: OwnstackError | None = None) -> OwnstackError:
        """Put back what was there; the error that says why. Where nothing had begun it says that, or is as it was."""
        from ..engine import upgrades
        from ..verify.runner import verify
        from .reprovision import wrong
        from .restore import again

        back = revert(self.site, {**upgrades.place(self.old), "id": self.identity})
        what = "way back" if self.kind == "rollback" else "upgrade"
        if back.get("stays"):
            return RunError(
                f"the {what} of {self.role} passed and stays; what it leaves behind was not cleared away: {why}",
                hint="`ownstack up` does that",
                code="not-cleared",
            )
        if back.get("gone"):
            return RunError(
                f"the {what} of {self.role} failed: {why}; and the copy of its data is gone from {back['gone']}",
                hint="nothing was put back; `ownstack up` goes on with what is there, `ownstack restore` has a backup",
                code="no-snapshot",
            )
        if not back.get("reverted"):
            hint, code = (error.hint, error.code) if error else ("", "not-begun")
            if "nothing was changed" not in hint:
                hint = "; ".join(filter(None, [hint, "nothing was changed"]))
            return RunError(f"the {what} of {self.role} did not begin: {why}", hint=hint, code=code)
        if back.get("begun", True):
            again(self.site, self.old, self.listen)
            message, code = f"the {what} of {self.role} was taken back: {why}", f"{self.kind}-reverted"
        else:
            self.step("box.activate", upgrades.start_spec(self.old, self.role, self.patience_s))
            message, code = f"the {what} of {self.role} did not begin: {why}", f"{self.kind}-reverted"
            code = error.code if error is not None else code
        still = wrong(verify(self.old, self.site.session, said, upgrades.GATE[self.role]))
        hint = "the box runs as before, with its own programs and data"
        if still:
            hint = f"its programs and data are those of before, and these checks fail with them too: {still}"
        return RunError(message, hint=hint + aside(back), code=code)


def carry_out_all(changes: list[Change]) -> list[dict[str, Any]]:
    """One after the other: what one has reached stays, also where a later one is put back."""
    done: list[dict[str, Any]] = current().once("what was upgraded", list)  # also before a connection broke
    for change in changes:
        try:
            done.append(change.carry_out())
        except OwnstackError as error:
            if done:
                stays = ", ".join(f"{row['service']} ({words(row)})" for row in done)
                error.hint = f"{error.hint}; done before it, and kept: {stays}"
            raise
    return done


def revert(site: Site, spec: dict[str, Any]) -> dict[str, Any]:
    """Put back. A step of a run that was cut off may go on over there for a moment, and is waited for."""
    for _ in range(30):
        try:
            return site.session.step("snapshots.revert", spec)
        except RunError as error:
            if error.code != "busy":
                raise
            time.sleep(2)
    return site.session.step("snapshots.revert", spec)


def end_first(site: Site, listen: Listen = silent) -> None:
    """End a restore, an import or an upgrade that was cut off, before anything else changes the box.

    Later its way back would put the data and the plan of then in the place of what came since.
    """
    from . import restore

    restore.take_back(site, listen)
    take_back(site, listen)


def take_back(site: Site, listen: Listen) -> bool:
    """Where an upgrade was cut off: put back what was there, or finish it. Whether there was one.

    What stands in `site.state` may be old: a step of the run that died may have gone on over there. The one that puts
    back waits for it (both hold the same lock) and looks once more.
    """
    from ..engine import upgrades
    from ..engine.apply import execute
    from ..engine.preflight import read_state
    from ..kit import activate
    from ..upgrading import filled
    from .restore import again

    work = site.state.work.get("upgrade", {})
    pending = work.get("status") in (*PENDING, "passed")
    if not pending and (site.state.unfinished or {}).get("step") != BEGINNING:
        return False
    activate()
    import deploy

    plan = filled(site.recorded_plan())
    execute(site.session, deploy.runner, listen, plan=plan)
    site.session.on_event = listen
    back = {} if work.get("status") == "passed" else revert(site, upgrades.place(plan))
    if not back.get("reverted"):
        if not pending:
            return False
        site.session.step("snapshots.commit", upgrades.place(plan))
        site.state = read_state(site.session, plan.layout)
        end = ", and came to its end meanwhile"
        if work["status"] == "passed":
            end = " at its end: it is finished now"
        elif back.get("gone"):
            end = f", and the copy of its data is gone from {back['gone']}: what is there stays"
        note(f"{_about(work)}{end}")
        return True
    site.state = read_state(site.session, plan.layout)
    again(site, filled(site.recorded_plan()), listen)
    note(f"{_about({**work, **back})}: programs and data are as they were before it{aside(back)}")
    return True


def _about(work: dict[str, Any]) -> str:
    what = "a way back" if work.get("kind") == "rollback" else "an upgrade"
    return f"{what} of {work.get('role')} ({words(work)}) was cut off"


def aside(back: dict[str, Any]) -> str:
    """What a way back has kept of the data that people may have worked with since, in words."""
    paths = ", ".join(back.get("replaced") or ())
    word = f"`ownstack rollback --discard {back.get('role', '')}".rstrip() + "`"
    return f"; what was there since is kept in {paths} ({word} removes it)" if paths else ""


def words(about: dict[str, Any]) -> str:
    """From which version to which, in words."""
    before, after = about.get("from") or {}, about.get("to") or {}
    return ", ".join(f"{name} {before.get(name, '')} to {after[name]}" for name in after)
