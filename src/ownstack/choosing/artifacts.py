"""Which variant of an artefact: the first whose source answers and whose version is safe."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..data import Data, version_key
from ..errors import UnsupportedError
from ..hardware.report import HardwareReport
from ..plan import ChosenArtifact
from ..state import BoxState, SourceReport

VENDOR = "vendor"


@dataclass(frozen=True)
class Wanted:
    """What the choice depends on beside the artefact itself."""

    report: HardwareReport
    sources: SourceReport
    state: BoxState
    data: Data
    platform: str
    engine: str
    mirror: str
    local: bool
    restricted: str  # auto, yes, no
    allow_below_floor: bool
    settings: dict[str, Any] = field(default_factory=dict)  # of the role at hand


def choose_artifact(artifact: dict[str, Any], want: Wanted) -> ChosenArtifact:
    """The variant for this host. Raises UnsupportedError that says why each one was passed over.

    What is installed stays as it is recorded: only `upgrade` moves a version.
    """
    recorded = want.state.versions().get(artifact["name"])
    if recorded is not None:
        return _with_parts(artifact, ChosenArtifact.model_validate(recorded), want)
    passed: list[str] = []
    for variant in artifact["variant"]:
        reason = _unfit(artifact, variant, want)
        if not reason:
            return _chosen(artifact, variant, want, passed)
        passed.append(f"{variant['id']}: {reason}")
    old = "`[sources] allow_below_floor = true` accepts an older version"
    silent = any("does not answer" in text for text in passed)
    hint = (
        "try again when the network is back"
        if silent
        else "docs/reference/artefacts.md lists what there is for which machine"
    )
    if any("floor" in text for text in passed):
        hint = f"{hint}; {old}" if silent else old
    raise UnsupportedError(
        f"no source of {artifact['name']} can be used here ({'; '.join(passed)})", hint=hint, code="no-source"
    )


def _with_parts(artifact: dict[str, Any], now: ChosenArtifact, want: Wanted) -> ChosenArtifact:
    """What is installed, or the same version built for the GPU that has come since. Raises UnsupportedError where it
    has no parts for that GPU and no other build of the same version has."""
    engines = now.details.get("engines")
    same = [row for row in artifact["variant"] if (row["id"], row["version"]) == (now.variant, now.version)]
    more = [name for row in same for name in row.get("holds", ())]
    if not engines or want.engine in (*engines, *more, "cpu") or (want.engine == "rocm" and "vulkan" in engines):
        return now
    for variant in artifact["variant"]:
        if variant["version"] == now.version and not _unfit(artifact, variant, want):
            return _chosen(artifact, variant, want, [f"{now.variant}: for {'/'.join(engines)} only"])
    raise UnsupportedError(
        f"{now.name} {now.version} as it is installed ({now.variant}) has no parts for {want.engine}, and no other "
        "build of the same version has them",
        hint="`ownstack upgrade` brings another version where there is one; `hardware.cpu_only = true` goes on without",
        code="engine-parts",
    )


def upgrade_available(artifact: dict[str, Any], chosen: ChosenArtifact, want: Wanted) -> str:
    """The version that the lock has for this host, where it is not the one that is installed.

    That of the same variant; else that of the one which a first installation would take now, where it is newer.
    """
    if chosen.kind == "host":
        return ""
    for variant in artifact["variant"]:
        if variant["id"] != chosen.variant:
            continue
        if variant["version"] != chosen.version:
            return str(variant["version"])
        if chosen.kind == "lock" and variant["sha256"] != chosen.sha256:
            return f"{variant['version']} with other packages"
    if artifact["name"] not in want.state.versions():
        return ""
    try:
        now = choose_artifact(artifact, replace(want, state=BoxState()))
    except UnsupportedError:
        return ""
    newer = now.kind != "host" and version_key(now.version) > version_key(chosen.version)
    return now.version if newer else ""


def check_obtainable(artifact: dict[str, Any], chosen: ChosenArtifact, want: Wanted) -> None:
    """Raises UnsupportedError where a program is gone that was made from a lock which this kit no longer has.

    A newer lock would bring another version, and versions move only on purpose.
    """
    locks = {variant["sha256"] for variant in artifact["variant"] if variant["kind"] == "lock"}
    held = {(str(mark.get("name")).replace("_", "-"), mark.get("version")) for mark in want.state.releases.values()}
    if chosen.kind != "lock" or chosen.sha256 in locks or (chosen.name, chosen.version) in held:
        return
    made = (want.state.manifest or {}).get("kit_version", "unknown")
    raise UnsupportedError(
        f"{chosen.name} {chosen.version} is recorded for this box, its program is gone, and this ownstack has only the "
        "lock of another version",
        hint=f"put it back with ownstack {made}, or with the data of then: `ownstack upgrade --self --undo`",
        code="earlier-lock",
    )


def _unfit(artifact: dict[str, Any], variant: dict[str, Any], want: Wanted) -> str:
    """Why a variant cannot be used here; empty when it can."""
    if variant["platform"] not in ("any", want.platform):
        return f"for {variant['platform']}"
    engines = variant.get("engines")
    if engines and want.engine not in engines:
        return f"for {'/'.join(engines)} only"
    newer = variant.get("glibc", "0")
    if want.report.host.glibc[:1].isdigit() and version_key(want.report.host.glibc) < version_key(newer):
        return f"needs glibc {newer}, the host has {want.report.host.glibc}"
    when = variant.get("when")
    if when and not want.settings.get(when["setting"]):
        return f"only with the setting {when['setting']}"
    if variant["kind"] == "host":
        return "" if host_python(variant, want.report) else "the host has none that fits"
    below = want.data.floors.below(artifact["name"], variant["version"])
    accepted = want.allow_below_floor or want.settings.get("allow_below_floor")
    if below and not accepted and not (_restricted(want) and not want.state.has_data):
        return f"{variant['version']} is below the security floor {want.data.floors.of(artifact['name'])[0]}"
    return _unreachable(variant, want)


def _restricted(want: Wanted) -> bool:
    return want.restricted == "yes" or (want.restricted == "auto" and want.sources.restricted)


def _unreachable(variant: dict[str, Any], want: Wanted) -> str:
    if want.mirror:
        held = variant.get("url") or variant["kind"] == "lock" or variant.get("sha256") or variant.get("result")
        return "" if held else "not part of a mirror"
    source = variant["source"]
    if variant.get("url") and want.restricted == "yes":
        return "vendors are switched off by `sources.restricted`"
    if not variant.get("url") and want.restricted == "no":
        return "registries are switched off by `sources.restricted`"
    if want.sources.answers(source):
        return ""
    reason = want.sources.target.get(source) or want.sources.controller.get(source) or "not asked"
    return f"{source} does not answer ({reason})"


def host_python(variant: dict[str, Any], report: HardwareReport) -> str:
    """The path of a Python of the host that every account may run, in one of the variant's versions."""
    wanted = variant.get("versions", ["3.11", "3.12"])
    for path, version in report.host.python:
        if ".".join(version.split(".")[:2]) in wanted:
            return path
    return ""


def _chosen(artifact: dict[str, Any], variant: dict[str, Any], want: Wanted, passed: list[str]) -> ChosenArtifact:
    url = variant.get("url", "")
    version = variant["version"]
    if variant["kind"] == "host":
        way = "host"
        path = host_python(variant, want.report)
        version = next(v for p, v in want.report.host.python if p == path)
        variant = {**variant, "path": path}
    elif variant["kind"] == "lock":
        way = "lock"
    elif url and not (want.mirror.startswith("/") and not want.local):
        way = "target"
    else:
        way = "carry"
    below = want.data.floors.below(artifact["name"], version)
    why = "first choice" if not passed else "; ".join(passed)
    return ChosenArtifact.model_validate(
        {
            "name": artifact["name"], "variant": variant["id"], "version": version, "platform": want.platform,
            "kind": variant["kind"], "way": way, "source": variant["source"], "url": url,
            "sha256": variant.get("sha256", ""), "size_bytes": variant.get("size"),
            "licence": variant.get("licence", ""), "below_floor": below, "why": why, "details": variant,
        }
    )  # fmt: skip
