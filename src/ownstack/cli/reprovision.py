"""A standing box on other hardware, or with other wishes: one transaction from its plan to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import OwnstackError, RunError, UnreachableError, way_back
from .output import note, size
from .progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..engine.apply import Listen, RunResult
    from ..plan import Plan
    from ..transition import Transition
    from ..verify.runner import VerifyReport
    from .site import Site

# checks that a change of models or of the engine can turn red; others tell of something else
CONCERNED = ("ollama", "models", "open_webui", "n8n", "qdrant")


def earlier_plan(site: Site) -> Plan | None:
    """The last plan that was verified: of a transaction that was cut off, the one it came from."""
    from ..plan import Plan

    if not site.state.stands or site.state.manifest is None:
        return None
    return Plan.model_validate(site.state.manifest.get("previous_plan") or site.state.manifest["plan"])


def quality_of(site: Site, *plans: Plan) -> dict[str, float]:
    """The catalogue's rank of each planned model, for its own use."""
    from ..errors import ConfigError

    found: dict[str, float] = {}
    for plan in plans:
        for model in plan.models:
            table = site.data.fit.ranks.get(plan.use if model.use == "chat" else model.use, {})
            try:
                tag = site.data.fit.catalogue.find(model.tag)[0].tag
            except ConfigError:
                continue
            if tag in table:
                found[model.tag] = table[tag]
    return found


@dataclass
class Transaction:
    """Fetch while the old models serve, switch, verify, and put the earlier plan back where that fails."""

    site: Site
    old: Plan
    plan: Plan
    change: Transition
    carried: bool = False  # whether documents have their new vectors before the switch

    def bring(self, listen: Listen) -> None:
        """Pull and check the new models; the box goes on with the old ones. Nothing is switched if that fails."""
        from ..engine.apply import execute
        from ..kit import activate

        activate()
        from deploy import bring, remember

        session = self.site.session
        if self.change.fetch:
            execute(session, bring, listen, plan=self.plan, old=self.old)
            session.on_event = listen
            self._there(self._wait(self.plan, [model.tag for model in self.change.fetch]))
        # a run that was cut off has asked, and may have switched
        if not (self.site.state.manifest or {}).get("previous_plan"):
            # with other parts the engine of today may not be able to load them: `verify` has the first chat then
            if self.change.engine is None:
                self._answer()
            if self.change.reindex:
                self.carried = self._carry(listen)
        execute(session, remember, listen, plan=self.plan, values={"previous_plan": kept(self.old)})

    def _carry(self, listen: Listen) -> bool:
        """Give documents their new vectors, in collections that nobody searches yet. Whether that was done.

        Where the model or Qdrant cannot be asked before the switch, documents are indexed after it.
        """
        from ..engine import units
        from ..engine.apply import execute
        from ..kit import activate
        from . import indexing

        activate()
        from deploy import remember, runner

        session = self.site.session
        execute(session, runner, listen, plan=self.plan)
        # on record first: what a run that is cut off leaves behind is for `--prune`
        execute(session, remember, listen, plan=self.plan, values={"old_vectors": self._unused(self.old)})
        session.layout_runner = units.runner_python(self.plan)
        session.on_event = listen
        return indexing.carry(session.step, self.plan, self.old.vectors)

    def settle(self) -> None:
        """After the switch: what still goes on by itself ends, and what came since is indexed too."""
        self._wait(self.plan)
        if self.change.reindex:
            from . import indexing

            indexing.rest(self.site.session.step, self.plan, self.old.vectors, self.carried)

    def _wait(self, plan: Plan, tags: list[str] | None = None) -> dict[str, dict[str, str]]:
        """Until no pull of a plan's models goes on; the errors of those that did not end well."""
        from ..engine import units
        from ..kit import activate

        activate()
        from roles.models import pulled

        session = self.site.session
        session.layout_runner = units.runner_python(plan)
        names = [model.tag for model in pulled(plan)] if tags is None else tags
        found: dict[str, dict[str, str]] = session.step(
            "ollama.pull_wait", {"run_dir": units.run_dir(plan), "tags": names}
        )["ended"]
        return found

    def _there(self, ended: dict[str, dict[str, str]]) -> None:
        """Raises RunError when a fetched model is not in the engine as planned: nothing was switched yet."""
        from roles.models import ensure_spec

        now = self.site.session.step("ollama.ensure", ensure_spec(self.plan))
        for model in self.change.fetch:
            if model.tag in now["missing"] or model.tag in now["wrong"]:
                error = ended.get(model.tag, {})
                why = error.get("message") or now["wrong"].get(model.tag) or "it is not there"
                raise RunError(
                    f"{model.tag} was not fetched: {why}; the box goes on as before",
                    hint=error.get("hint") or "`ownstack up` goes on where it stopped",
                    code=error.get("code") or "not-fetched",
                )

    def _answer(self) -> None:
        """Raises RunError when a new model does not answer: nothing was switched yet.

        Asked here and not by the pull, which has nothing to do when a later run finds the model there.
        """
        had = {model.tag for model in self.old.models}
        for model in {m.tag: m for m in self.plan.models if m.source == "registry" and m.tag not in had}.values():
            name = "ollama.embed_check" if model.use == "embedding" else "ollama.chat_check"
            try:
                said = self.site.session.step(name, {"url": self.plan.engine_url, "model": model.tag, "timeout": 1800})
                why, hint = "it gives no answer", "`ownstack logs ollama` shows why"
                right = said["dimension"] if model.use == "embedding" else said["answered"]
            except RunError as error:
                why, hint, right = error.message, error.hint, False
            if not right:
                raise RunError(
                    f"{model.tag} is there and cannot be used: {why}; the box goes on as before",
                    hint=f"{hint}; `ownstack up --keep-models` stays with the present models",
                    code="model-silent",
                )

    def end(self, report: VerifyReport) -> None:
        """Keep the change, or take it back. Raises RunError with the reason when it was taken back."""
        why = wrong(report)
        if why:
            raise self.put_back(why)
        self.keep()

    def keep(self) -> None:
        """The new plan stands: the earlier one is forgotten."""
        self._note({"previous_plan": None, "old_vectors": self._unused(self.plan)})

    def _unused(self, kept: Plan) -> list[str] | None:
        """Collections for `--prune` once `kept` stands: also those of a change that was taken back or given up."""
        held = (self.site.state.manifest or {}).get("old_vectors", ())
        known = {*held, self.old.vectors, self.plan.vectors, self.site.recorded_plan().vectors}
        return sorted(known - {kept.vectors}) or None

    @way_back
    def put_back(self, why: str) -> RunError:
        """Carry the earlier plan out again, and look whether it works; the error that says why."""
        from ..engine.apply import execute
        from ..kit import activate
        from ..verify.runner import verify

        activate()
        from deploy import apply

        execute(self.site.session, apply, silent, plan=self.old)
        self._wait(self.old)
        self._note({"previous_plan": None, "old_vectors": self._unused(self.old)})
        still = wrong(verify(self.old, self.site.session, lambda result: None, CONCERNED))
        runs = (
            f"its plan is that of before, and these checks fail with it too: {still}" if still else "it runs as before"
        )
        return RunError(
            f"the change was taken back: {why}",
            hint=f"{runs}; nothing was deleted; `ownstack up --keep-models` stays with the models of before",
            code="reprovision-reverted",
        )

    def _note(self, values: dict[str, Any]) -> None:
        from ..engine.apply import execute
        from ..kit import activate

        activate()
        from deploy import remember

        execute(self.site.session, remember, silent, plan=self.plan, values=values)


def transaction(site: Site, plan: Plan) -> Transaction | None:
    """What leads a standing box to `plan`; None where neither its models nor its engine nor its hardware change.

    A change that was cut off is one to be ended, also where the plan is again the one from before it.
    """
    from ..hardware.change import describe_change
    from ..transition import between

    old = earlier_plan(site)
    if old is None or not site.state.installed or not plan.has("models") or not old.has("models"):
        return None
    hardware = describe_change(old.hardware, site.report)
    quality = quality_of(site, old, plan)
    change = between(old, plan, hardware, quality)
    begun = bool((site.state.manifest or {}).get("previous_plan"))
    if change.nothing and not change.hardware and old.vectors == plan.vectors and not begun:
        return None
    if change.fetch:
        change = between(old, plan, hardware, quality, here(site, old, plan))
    return Transaction(site, old, plan, change)


def here(site: Site, old: Plan, plan: Plan) -> list[str]:
    """Planned models that the engine has already; none where it does not answer."""
    from ..engine import units
    from ..kit import activate

    activate()
    from roles.models import ensure_spec

    site.session.layout_runner = units.runner_python(old)
    try:
        found: list[str] = site.session.step("ollama.ensure", ensure_spec(plan))["present"]
    except RunError:
        return []
    return found


def switch(move: Transaction | None, apply: Callable[[], RunResult]) -> RunResult:
    """Carry the new plan out; where that fails half-way the earlier one is put back."""
    if move is None:
        return apply()
    try:
        result = apply()
        move.settle()
    except UnreachableError:
        raise  # nobody is there to be told; the next `up` goes on
    except OwnstackError as error:
        raise move.put_back(error.message) from error
    return result


def kept(plan: Plan) -> dict[str, Any]:
    """A plan as a manifest holds it."""
    return plan.model_copy(update={"state_hash": "", "reasons": (), "warnings": ()}).model_dump(mode="json")


def wrong(report: VerifyReport) -> str:
    """Why a change cannot stay, in words; empty where it can."""
    failed = [r for r in report.results if r.outcome.status == "failed" and r.check.role in CONCERNED]
    return "; ".join(f"{r.check.id}: {r.outcome.measured}" for r in failed)


def settled(report: VerifyReport) -> bool:
    """Whether what is left of earlier plans may go: not where nothing was looked at.

    An edited file, say, is no reason to keep models for ever.
    """
    return bool(report.results) and all(
        r.outcome.status in ("ok", "skipped") for r in report.results if r.check.role in CONCERNED
    )


def keep_tags(site: Site, plan: Plan) -> list[str]:
    """Models that no prune may take: planned ones, and those of an earlier plan that may still come back."""
    tags = {model.tag for model in plan.models}
    if plan.deferred_model is not None:
        tags.add(plan.deferred_model.tag)
    return sorted(tags)


LEFTOVERS = "ollama.leftovers"


def leftovers_spec(site: Site, plan: Plan) -> dict[str, Any]:
    """The specification of `ollama.leftovers` and `ollama.prune`; empty where no models are the box's own to remove.

    Of an engine that is only used no model goes: what is on record may be of one before it, and the same model there
    be its owner's. What was pulled into an adopted one has a record of its own.
    """
    from ..kit import activate

    if not plan.has("models") or (plan.engine_existing and plan.adopted is None):
        return {}
    activate()
    from roles.models import record

    return {"url": plan.engine_url, "record": record(plan), "keep": keep_tags(site, plan)}


def look(site: Site, plan: Plan, move: Transaction | None) -> dict[str, dict[str, Any]]:
    """What a run that finds nothing to do may look at beside it."""
    spec = leftovers_spec(site, plan)
    return {LEFTOVERS: spec} if spec and move is None else {}


def tidy(site: Site, plan: Plan, prune: bool, moved: bool, looked: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Leftovers of earlier plans: removed with `prune`, only named without.

    `moved`: this run had a transaction; `looked`: what it has seen already, and has not changed.
    """
    from ..engine import units
    from ..kit import activate

    if not plan.has("models"):
        return []
    activate()
    spec = leftovers_spec(site, plan)
    session = site.session
    session.layout_runner = units.runner_python(plan)
    session.on_event = silent
    try:
        if spec and (prune or LEFTOVERS not in looked):
            looked = {LEFTOVERS: session.step("ollama.prune" if prune else LEFTOVERS, spec)}
        found = looked[LEFTOVERS]["models"] if spec else []
        rows: list[dict[str, Any]] = [{**row, "removed": prune} for row in found]
        return rows + _old_vectors(site, plan, prune, moved)
    except RunError:
        if prune:
            raise
        return []  # a service does not answer: `verify` has said so


def _old_vectors(site: Site, plan: Plan, prune: bool, moved: bool) -> list[dict[str, Any]]:
    """Collections of embedding models that were used earlier."""
    from ..engine.apply import execute
    from ..engine.preflight import state_spec

    if not plan.has("qdrant") or not plan.has("open_webui"):
        return []
    from deploy import remember
    from roles.open_webui import qdrant_url

    manifest = site.state.manifest  # read since this run holds the box: only a transaction notes something else
    if moved:
        manifest = site.session.step("box.state", state_spec(plan.layout))["manifest"]
    prefixes = set((manifest or {}).get("old_vectors", ())) - {plan.vectors}
    if not prefixes:
        return []
    spec = {"url": qdrant_url(plan), "secrets_dir": plan.layout.secrets, "prefixes": sorted(prefixes)}
    found = site.session.step("qdrant.drop" if prune else "qdrant.of", spec)["collections"]
    if prune:
        execute(site.session, remember, silent, plan=plan, values={"old_vectors": None})
    return [{"collection": name, "removed": prune} for name in found]


def tell(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        what = row.get("model") or f"the collection {row.get('collection')}"
        taken = f", {size(row['bytes'])}" if row.get("bytes") else ""
        if row["removed"]:
            note(f"removed: {what}{taken}")
        else:
            note(f"no longer needed: {what}{taken}; `ownstack up --prune` removes it")
