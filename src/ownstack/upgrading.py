"""From the versions of a box to those of the lock: what moves, over which steps, and what may not move. Pure."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import __version__
from .choosing.artifacts import Wanted, choose_artifact, upgrade_available
from .data import Data, version_key
from .errors import ConfigError, RunError, UnsupportedError
from .plan import ChosenArtifact, Plan
from .state import BoxState

Step = Literal["major", "minor", "patch", "packages"]
# what other roles are made or run with moves with the role that uses it
TOOLS = {"python": "open_webui", "uv": "open_webui", "age": "base"}
ORDER = ("base", "qdrant", "ollama", "open_webui", "n8n")
# their data may only go from one minor version to the next
MINOR_BY_MINOR = ("qdrant",)


@dataclass(frozen=True)
class Move:
    """One component from the version that is installed to that of the lock. `via`: versions in between, in order."""

    role: str
    old: ChosenArtifact
    new: ChosenArtifact
    via: tuple[ChosenArtifact, ...] = ()

    @property
    def component(self) -> str:
        return self.new.name

    @property
    def step(self) -> Step:
        return step_of(self.old.version, self.new.version)

    @property
    def download_bytes(self) -> int | None:
        """What is fetched; None where the lock does not say."""
        sizes = [item.size_bytes for item in (*self.via, self.new)]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def as_dict(self) -> dict[str, Any]:
        return {
            "service": self.role, "component": self.component, "from": self.old.version, "to": self.new.version,
            "via": [item.version for item in self.via], "step": self.step, "download_bytes": self.download_bytes,
            "source": self.new.source,
        }  # fmt: skip


@dataclass(frozen=True)
class Held:
    """One component that stays, and why; `refused` where somebody has to decide."""

    role: str
    component: str
    version: str
    why: str
    refused: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "service": self.role, "component": self.component, "version": self.version, "why": self.why,
            "refused": self.refused,
        }  # fmt: skip


@dataclass(frozen=True)
class Upgrade:
    moves: tuple[Move, ...]
    held: tuple[Held, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """Services that move, in the order in which they are carried out."""
        return tuple(name for name in ORDER if any(move.role == name for move in self.moves))

    def of(self, role: str) -> tuple[Move, ...]:
        return tuple(move for move in self.moves if move.role == role)


def newer(plan: Plan, data: Data) -> list[str]:
    """What of a plan the lock has newer, of the same variants: what can be said without asking any source."""
    found = []
    for part in plan.roles:
        rows = {row["name"]: row["variant"] for row in data.artifacts.get(part.name, [])}
        for item in part.artifacts:
            row = next((one for one in rows.get(item.name, ()) if one["id"] == item.variant), None)
            if row is not None and item.kind != "host" and version_key(row["version"]) > version_key(item.version):
                found.append(f"{item.name} {item.version} to {row['version']}")
    return found


def step_of(old: str, new: str) -> Step:
    """How large a step is. Below 1.0 a new minor version may change anything: it counts as a major one."""
    before, after = (*version_key(old), 0, 0)[:2], (*version_key(new), 0, 0)[:2]
    if old == new:
        return "packages"
    if before[0] != after[0] or (after[0] == 0 and before[1] != after[1]):
        return "major"
    return "minor" if before[1] != after[1] else "patch"


def role_named(plan: Plan, word: str) -> str:
    """The role that a person means by a role's or a component's name. Raises ConfigError for anything else."""
    name = word.replace("-", "_")
    if name in TOOLS:
        return home(plan, "base", name)
    if name in ORDER and plan.has(name):
        return name
    for role in plan.roles:
        if role.name in ORDER and any(item.name.replace("-", "_") == name for item in role.artifacts):
            return role.name
    there = [name for name in ORDER[1:] if plan.has(name)]
    raise ConfigError(f"{word} is no service of this box", hint=f"one of {', '.join(there)}", code="no-service")


def home(plan: Plan, role: str, component: str) -> str:
    """The role with which a component of `role` moves."""
    found = TOOLS.get(component, role) if role == "base" else role
    return found if plan.has(found) else role


def find(plan: Plan, want: Wanted, services: Iterable[str] = ()) -> Upgrade:
    """What the lock has for this box that is newer than what is installed. `services`: only these roles.

    Never a version below the one that wrote the data, and none below its security floor.
    """
    wanted = set(services)
    moves: list[Move] = []
    held: list[Held] = []
    for part in plan.roles:
        for artifact in want.data.artifacts.get(part.name, []):
            owner = home(plan, part.name, artifact["name"])
            now = next((item for item in part.artifacts if item.name == artifact["name"]), None)
            if now is None or owner not in ORDER or (wanted and owner not in wanted):
                continue
            found = _one(artifact, now, replace(want, settings=part.settings), owner)
            (moves if isinstance(found, Move) else held).append(found)  # type: ignore[arg-type]
    return Upgrade(tuple(moves), tuple(held))


def _one(artifact: dict[str, Any], now: ChosenArtifact, want: Wanted, role: str) -> Move | Held:
    def stays(why: str, refused: bool = False) -> Held:
        return Held(role, now.name, now.version, why, refused)

    newer = upgrade_available(artifact, now, want)
    if not newer:
        return stays("it belongs to the host" if now.kind == "host" else "the lock has nothing newer")
    try:
        new = choose_artifact(artifact, replace(want, state=_without(want.state, now.name)))
    except UnsupportedError as error:
        return stays(f"the lock has {newer}, which cannot be had here: {error.message}", refused=True)
    if version_key(new.version) < version_key(now.version):
        return stays(f"what can be had here is {new.version}, older than what wrote the data", refused=True)
    if (new.version, new.digest) == (now.version, now.digest):
        return stays("the lock has nothing newer for this host")
    if now.name == "python" and step_of(now.version, new.version) not in ("patch", "packages"):
        return stays(f"the lock has {new.version}: another Python needs all environments anew, it is not moved")
    if now.name not in MINOR_BY_MINOR:
        return Move(role, now, new)
    try:
        return Move(role, now, new, _between(artifact, now, new, want))
    except (RunError, UnsupportedError) as error:
        return stays(error.message, refused=True)


def _without(state: BoxState, component: str) -> BoxState:
    """The state of the box as if a component's version were not recorded."""
    manifest = dict(state.manifest or {})
    manifest["versions"] = {name: item for name, item in manifest.get("versions", {}).items() if name != component}
    return state.model_copy(update={"manifest": manifest})


def _between(
    artifact: dict[str, Any], now: ChosenArtifact, new: ChosenArtifact, want: Wanted
) -> tuple[ChosenArtifact, ...]:
    """The latest patch of each minor version on the way, as the table's `step` entries have them for this platform."""
    rows = {row["version"]: row for row in artifact.get("step", ()) if row["platform"] in ("any", want.platform)}
    versions = path(now.name, now.version, new.version, rows)
    bare = {**artifact, "variant": []}
    state = _without(want.state, now.name)
    return tuple(
        choose_artifact({**bare, "variant": [rows[version]]}, replace(want, state=state, allow_below_floor=True))
        for version in versions
    )


def path(component: str, old: str, new: str, listed: Iterable[str]) -> tuple[str, ...]:
    """The versions between `old` and `new` that data has to be opened with, one minor version at a time.

    listed: versions that can be had on the way. After the last minor version of a major one comes the next major's
    first. Raises RunError where one is missing: such data would be opened by a version that never learnt to read it.
    """
    latest: dict[tuple[int, int], str] = {}
    for version in sorted(listed, key=version_key):
        latest[minor_of(version)] = version
    at, end = minor_of(old), minor_of(new)
    found = []
    while at != end:
        minor, major = (at[0], at[1] + 1), (at[0] + 1, 0)
        if minor in latest and minor < end:
            at = minor
        elif end in (minor, major):
            break
        elif major in latest and major < end:
            at = major
        else:
            raise _no_way(component, old, new, f"{minor[0]}.{minor[1]}")
        found.append(latest[at])
    return tuple(found)


def _no_way(component: str, old: str, new: str, missing: str) -> RunError:
    return RunError(
        f"{component} goes from {old} to {new} one minor version at a time, and the lock has no {missing}",
        hint="nothing was changed; a later ownstack may have it",
        code="upgrade-path",
    )


def minor_of(version: str) -> tuple[int, int]:
    key = (*version_key(version), 0, 0)
    return key[0], key[1]


def opens(old: str, new: str) -> bool:
    """Whether `new` may open data of `old` at once: no minor version lies between, that is known of none to a major."""
    (major, minor), then = minor_of(old), minor_of(new)
    return then in ((major, minor), (major, minor + 1))


def refused(found: Upgrade) -> None:
    """Raises RunError where what was asked for by name cannot move although there is something newer."""
    why = [f"{item.component} {item.version}: {item.why}" for item in found.held if item.refused]
    if why and not found.moves:
        raise RunError("; ".join(why), hint="`ownstack upgrade --check` shows all of it", code="no-upgrade")


# ------------------------------------------------------------------------------------------------------- plans


def filled(plan: Plan) -> Plan:
    """A recorded plan as this version of the kit would have written it: settings that came later have their default."""
    from .kit import activate

    activate()
    parts = []
    for part in plan.roles:
        if part.name == "base":  # what it needs was found on the host
            parts.append(part)
            continue
        try:
            defaults = importlib.import_module(f"roles.{part.name}.settings").Settings().model_dump(mode="json")
        except (ImportError, TypeError, ValueError):  # no settings, or none without a value of the owner's
            defaults = {}
        parts.append(part.model_copy(update={"settings": {**defaults, **part.settings}}))
    return plan.model_copy(update={"roles": tuple(parts), "kit_version": __version__})


def with_artifacts(plan: Plan, items: Iterable[ChosenArtifact]) -> Plan:
    """The same plan with other versions of some components."""
    new = {item.name: item for item in items}
    parts = tuple(
        part.model_copy(update={"artifacts": tuple(new.get(item.name, item) for item in part.artifacts)})
        for part in plan.roles
    )
    return plan.model_copy(update={"roles": parts})


def stages(plan: Plan, moves: Iterable[Move]) -> tuple[Plan, ...]:
    """The plans that lead one after the other to the new versions: the last one is where it ends."""
    moves = tuple(moves)
    steps = [with_artifacts(plan, [item]) for move in moves for item in move.via]
    return (*steps, with_artifacts(plan, [move.new for move in moves]))


# ------------------------------------------------------------------------------------------------------- counts


def losses(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is there no longer, in words. Both as `snapshots.counts` gives them.

    More is no loss: people may have come in meanwhile.
    """
    found = []
    for service, counted in sorted(before.get("tables", {}).items()):
        for what, number in counted.items():
            now = after.get("tables", {}).get(service, {}).get(what)
            if now is None or now < number:
                found.append(f"{service} had {number} {what}, now {'none can be counted' if now is None else now}")
    for name, number in sorted(before.get("vectors", {}).items()):
        now = after.get("vectors", {}).get(name)
        if now is None or now < number:
            found.append(f"the collection {name} had {number} vectors, now {'it is gone' if now is None else now}")
    for name, digest in sorted(before.get("models", {}).items()):
        if after.get("models", {}).get(name) != digest:
            found.append(f"the model {name} is {'another' if name in after.get('models', {}) else 'gone'}")
    if before.get("key") and before["key"] != after.get("key"):
        found.append(f"n8n's encryption key was {before['key']}, now {after.get('key') or 'none'}")
    return found


def since(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What was made since a snapshot, which a way back to it would lose, in words."""
    found = []
    for service, counted in sorted(now.get("tables", {}).items()):
        for what, number in counted.items():
            more = number - then.get("tables", {}).get(service, {}).get(what, 0)
            if more > 0:
                found.append(f"{more} {what} of {service}")
    for name, number in sorted(now.get("vectors", {}).items()):
        more = number - then.get("vectors", {}).get(name, 0)
        if more > 0:
            found.append(f"{more} vectors in {name}")
    for name, digest in sorted(now.get("models", {}).items()):
        if then.get("models", {}).get(name) != digest:
            found.append(f"the model {name}")
    return found
