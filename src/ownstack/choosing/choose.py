"""`choose`: the one place where settings, hardware, data, sources and state meet."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from .. import __version__
from ..data import Data
from ..errors import ConfigError, UnsupportedError
from ..hardware.report import HardwareReport
from ..plan import ChosenArtifact, EngineParts, HostIdentity, Layout, Plan, RolePlan, Schedule, SecretRef
from ..settings import Settings
from ..state import BoxState, SourceReport
from ..vectors import prefix_for
from . import adopting, host, models
from .artifacts import Wanted, check_obtainable, choose_artifact, upgrade_available

SMALL_MEMORY = 7.5 * 2**30  # a machine sold with 8 GB shows a little less


def choose(report: HardwareReport, settings: Settings, data: Data, sources: SourceReport, state: BoxState) -> Plan:
    """The Plan for one host. Pure: the same inputs give the same plan.

    Raises UnsupportedError (nothing fits, no source), DetectionError (hardware that cannot be read),
    ConfigError (settings that contradict each other or the host).
    """
    warnings = host.check_supported(report, settings)
    reasons: list[str] = []
    root = host.as_root(report, settings)
    manager, absent = host.process_manager(report, root)
    roles = _roles(report, settings, state, reasons)
    if manager == "supervisord" and "n8n" in roles:
        absent.append("nothing makes n8n's database smaller by itself here: there is no timer without systemd")
    platform = f"linux-{report.cpu.architecture}"
    picked = models.choose(report, settings, data, sources, state, roles)
    want = Wanted(
        report=report, sources=sources, state=state, data=data, platform=platform, engine=picked.engine,
        mirror=settings.base.sources.mirror, local=settings.base.host == "local",
        restricted=settings.base.sources.restricted, allow_below_floor=settings.base.sources.allow_below_floor,
    )  # fmt: skip
    layout = host.layout(report, settings, root, state)
    parts = _role_plans(roles, settings, want, picked.artifacts, warnings)
    parts = _base_settings(parts, report, layout)
    memory, disk = host.role_needs(roles)
    warnings += _another_ollama(report, roles, state)
    adopted = None
    if "models" in roles:
        adopted = adopting.adopted(report, settings, state, manager, layout, picked.models)
    before = adopting.recorded(state)
    told = adopting.words(adopted, None if state.gone else before)  # a `down` has given it back
    reasons += told[0]
    warnings += told[1]
    retired = _retired(roles, state)
    warnings += [f"{part.name} is left out now: its service and program go, its data stays" for part in retired]
    plan = Plan(
        kit_version=__version__,
        host=HostIdentity(
            machine_id_hash=report.host.machine_id_hash, hostname=report.host.hostname, target=settings.base.host
        ),
        hardware_fingerprint=report.fingerprint(),
        hardware=report.matters(),
        state_hash=state.digest(),
        layout=layout,
        manager=manager,
        system=root,
        platform=platform,
        os_name=report.host.os_name,
        profile=picked.profile,
        use=settings.base.use,
        engine=_engine_of(parts, picked.engine),
        gpu_names=tuple(gpu.name for gpu in report.gpus if gpu.usable),
        engine_url=picked.engine_url,
        engine_existing=picked.engine_existing,
        adopted=adopted,
        given_back=before if before is not None and (adopted is None or adopted.dropin != before.dropin) else None,
        roles=parts,
        retired=retired,
        models=picked.models,
        model_wishes=models.wishes_digest(settings) if "models" in roles else "",
        model_data=picked.data,
        deferred_model=picked.deferred,
        vectors=prefix_for(
            (state.manifest or {})["plan"] if state.stands else None,
            next((m for m in picked.models if m.use == "embedding"), None),
        ),
        secrets=_secrets(roles),
        backup=Schedule.model_validate(recorded) if (recorded := _recorded(state).get("backup")) else None,
        folders=tuple((f"{f.service}:{name}", f.path, f.write) for name, f in settings.base.folders.items()),
        timezone=settings.base.timezone or getattr(report.host, "timezone", "") or "UTC",
        mirror=settings.base.sources.mirror,
        reasons=(*reasons, *picked.reasons),
        warnings=(*warnings, *picked.warnings),
        absent_protections=tuple(absent),
        disk_needed_bytes=disk + sum(m.download_bytes or 0 for m in picked.models) + 2**30,
        memory_needed_bytes=memory + sum(m.predicted_host_bytes for m in picked.models),
    )
    host.check_packages(report, plan, state)
    host.check_ports(report, plan, state)
    host.check_disk(report, plan, state)
    return plan


def _recorded(state: BoxState) -> dict[str, Any]:
    """The plan that the box records, as data; empty on a bare host."""
    return (state.manifest or {})["plan"] if state.stands else {}


def _roles(report: HardwareReport, settings: Settings, state: BoxState, reasons: list[str]) -> tuple[str, ...]:
    roles = settings.wanted_roles()
    use = settings.role("ollama").use
    if use != "own":
        roles = tuple(name for name in roles if name != "ollama")
    if use == "existing":
        reasons.append(f"the Ollama at {settings.role('ollama').url} is used as it is")
    if "open_webui" in roles and "qdrant" not in roles:
        raise ConfigError("open_webui keeps its vectors in qdrant", hint='add "qdrant" to `roles`', code="role-needs")
    stands = (
        {role["name"] for role in (state.manifest or {}).get("plan", {}).get("roles", [])} if state.stands else set()
    )
    if settings.base.roles is None and report.memory.usable_bytes < SMALL_MEMORY and "n8n" not in stands:
        roles = tuple(name for name in roles if name != "n8n")
        reasons.append("n8n is left out: this machine has less than 8 GB of memory (`roles = [...]` overrules)")
    return roles


def _another_ollama(report: HardwareReport, roles: tuple[str, ...], state: BoxState) -> list[str]:
    """At the first run: the Ollama that is on the machine already is offered as the engine."""
    found = report.ollama
    if found is None or state.stands or "ollama" not in roles or not (found.binary or found.unit or found.listening):
        return []
    what = ", ".join(filter(None, [found.version and f"version {found.version}", found.unit or found.binary]))
    text = f"an Ollama is on this machine already{f' ({what})' if what else ''}, and this plan installs one of its own"
    return [f'{text}; `[ollama] use = "existing"` takes that one instead, as it is; "adopt" makes it the box\'s engine']


def _retired(roles: tuple[str, ...], state: BoxState) -> tuple[RolePlan, ...]:
    """Roles that the box has and this plan has not."""
    if not state.stands or state.manifest is None:
        return ()
    return tuple(RolePlan.model_validate(part) for part in state.manifest["plan"]["roles"] if part["name"] not in roles)


def _role_plans(
    roles: tuple[str, ...], settings: Settings, want: Wanted, extra: frozenset[str], warnings: list[str]
) -> tuple[RolePlan, ...]:
    ports = host.choose_ports(settings, roles)
    parts = []
    for name in roles:
        chosen: list[ChosenArtifact] = []
        for artifact in want.data.artifacts.get(name, []):
            if artifact.get("optional") and artifact["name"] not in extra:
                continue
            try:
                pick = choose_artifact(artifact, replace(want, settings=settings.role(name).model_dump()))
                check_obtainable(artifact, pick, want)
            except UnsupportedError as error:
                if not artifact.get("spare"):  # the box runs without it, and says what it cannot do
                    raise
                warnings.append(f"{artifact['name']} is left out, which {artifact['use']}: {error.message}")
                continue
            newer = upgrade_available(artifact, pick, want)
            if pick.below_floor:
                warnings.append(_below_floor(pick, want.data, newer))
            if newer:
                installed = f"{pick.name} {pick.version} is installed, the lock has {newer}"
                warnings.append(f"{installed}: upgrade available, `ownstack upgrade` brings it")
            chosen.append(pick)
        network = getattr(settings.base.network, name, "closed")
        values = settings.role(name).model_dump(mode="json")
        parts.append(RolePlan(name=name, settings=values, artifacts=tuple(chosen), ports=ports[name], network=network))
    return tuple(parts)


def _base_settings(parts: tuple[RolePlan, ...], report: HardwareReport, layout: Layout) -> tuple[RolePlan, ...]:
    """What the base role needs of the host: a Python for the runner, one for services, system packages."""
    base = next(part for part in parts if part.name == "base")
    python = base.artifact("python")
    own = f"{layout.current('python')}/bin/python3"
    service_python = str(python.details["path"]) if python.kind == "host" else own
    full = [path for path, version in report.host.python if tuple(map(int, version.split(".")[:2])) >= (3, 9)]
    formats = {a.details.get("unpack", {}).get("format") for part in parts for a in part.artifacts if a.way != "host"}
    # whether the host has it already is for the operation to see: a plan must not change when it is there
    packages = ["zstd"] if "tar.zst" in formats else []
    values: dict[str, Any] = {
        "runner_python": full[0] if full else own, "python": service_python, "packages": packages,
    }  # fmt: skip
    return tuple(part.model_copy(update={"settings": values}) if part is base else part for part in parts)


def _secrets(roles: tuple[str, ...]) -> tuple[SecretRef, ...]:
    found: list[SecretRef] = []
    for name in roles:
        found += importlib.import_module(f"roles.{name}").ROLE.secrets
    return tuple(found)


def _below_floor(artifact: ChosenArtifact, data: Data, newer: str) -> str:
    floor, why = data.floors.of(artifact.name)
    text = f"{artifact.name} {artifact.version} is below the security floor {floor} ({why})"
    return text if newer else f"{text}: the only source that answers here has no newer one"


def _engine_of(parts: tuple[RolePlan, ...], wanted: EngineParts) -> EngineParts:
    """The engine's parts as the chosen artefact has them: AMD cards are driven by Vulkan where it has no ROCm."""
    for part in parts:
        if part.name == "ollama" and wanted == "rocm":
            item = part.artifact("ollama")
            if item.kind == "build" or wanted not in item.details.get("engines", [wanted]):
                return "vulkan"
    return wanted
