"""The models of a plan: recorded ones stay; else what fits; else the bootstrap models with the reason said."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from ..data import Data
from ..errors import ConfigError, UnsupportedError
from ..fitting.choose import Selection, Wishes, choose_models, describe
from ..hardware.report import HardwareReport
from ..plan import ModelChoice, ModelUse
from ..settings import Settings
from ..state import BoxState, SourceReport
from .existing import select_existing
from .models import Picked


def select(
    report: HardwareReport,
    settings: Settings,
    data: Data,
    sources: SourceReport,
    state: BoxState,
    engine: str,
    url: str,
    existing: bool,
) -> Picked:
    if existing:
        return select_existing(report, settings, data, sources, state, url)
    today = data.fit.digest
    anew = settings.role("models").refit
    kept = None if anew else _recorded(report, settings, state, engine, url, existing)
    better = kept is not None and kept.deferred is not None and not sources.models
    if kept is not None and (settings.role("models").keep or not better):
        return _told(kept, today)
    wanted = wishes(settings)
    bootstrap = _bootstrap(report, data, settings)
    held_on = _pins_of(state) if settings.role("models").keep else {}
    wanted = dataclasses.replace(wanted, pins={**held_on, **wanted.pins})
    try:
        chosen = choose_models(report, wanted, data.fit)
    except UnsupportedError as error:
        if held_on:
            raise _kept_too_large(error) from error
        raise
    if sources.models:
        held = _held(report, wanted, data, state)
        if held is None:
            made = _without_registry(chosen, bootstrap, sources, engine, url, existing)
        else:
            made = _waiting(chosen, held, bootstrap, sources, engine, url)
        return dataclasses.replace(made, data=today)
    first = tuple(m for m in bootstrap if m.use == "bootstrap")
    tasks = (chosen.task,) if chosen.task is not None else ()
    return Picked(
        profile=chosen.profile, engine=engine, models=(*first, *chosen.models, *tasks),
        artifacts=frozenset(m.artifact for m in first), engine_url=url, engine_existing=existing, data=today,
        reasons=chosen.reasons, warnings=chosen.warnings,
    )  # fmt: skip


def _kept_too_large(error: UnsupportedError) -> UnsupportedError:
    return UnsupportedError(
        f"the models that are kept do not fit: {error.message}",
        hint="without `--keep-models` and `[models] keep` the best that fits is chosen; or close programs",
        code="kept-too-large",
    )


def _told(kept: Picked, today: str) -> Picked:
    """The recorded models, and a word where what they were chosen from is another by now: they stay all the same."""
    if kept.data in ("", today):
        return kept
    newer = (
        "the catalogue of models, the cards or the machine classes are other ones than when the models were chosen: "
        "`ownstack plan --refit` shows what they make of this machine"
    )
    return dataclasses.replace(kept, warnings=(*kept.warnings, newer))


def _pins_of(state: BoxState) -> dict[str, str]:
    """use -> tag of the models that a standing box pulled."""
    if not state.stands or state.manifest is None:
        return {}
    uses = ("chat", "embedding", "code", "vision")
    models = (ModelChoice.model_validate(item) for item in state.manifest["plan"]["models"])
    return {model.use: model.tag for model in models if model.source == "registry" and model.use in uses}


def _held(report: HardwareReport, wanted: Wishes, data: Data, state: BoxState) -> Selection | None:
    """The recorded models fitted to today's hardware, for a box whose registry is away; None where they do not fit."""
    pins = _pins_of(state)
    if not {"chat", "embedding"} <= set(pins):
        return None
    try:
        return choose_models(report, dataclasses.replace(wanted, pins=pins), data.fit)
    except (ConfigError, UnsupportedError):
        return None


def _waiting(
    chosen: Selection, held: Selection, bootstrap: tuple[ModelChoice, ...], sources: SourceReport, engine: str, url: str
) -> Picked:
    """What is there goes on serving, and what this machine deserves is named."""
    deserved = next(m for m in chosen.models if m.use == "chat")
    first = tuple(m for m in bootstrap if m.use == "bootstrap")
    why = [f"the model registry does not answer ({sources.models}): the models that are there stay"]
    better = deserved if deserved.tag not in {m.tag for m in held.models} else None
    if better is not None:
        why.append(f"with a model registry this machine would run {better.tag}; `ownstack up` fetches it then")
    return Picked(
        profile=held.profile, engine=engine, models=(*first, *held.models),
        artifacts=frozenset(m.artifact for m in first), engine_url=url, deferred=better,
        reasons=(*held.reasons, *why), warnings=held.warnings,
    )  # fmt: skip


def wishes(settings: Settings) -> Wishes:
    """What the settings ask of the models."""
    models = settings.role("models")
    pins = {use: tag for use in ("chat", "embedding", "code", "vision") if (tag := getattr(models, use, ""))}
    reserve = settings.base.hardware.reserve_gib
    kept = None if reserve is None else int(reserve * 2**30)
    asked = tuple(use for use in ("code", "vision") if pins.get(use))
    return Wishes(
        use=settings.base.use, roles=("chat", "embedding", *asked), pins=pins,
        context=getattr(models, "context", None), kv_type=getattr(models, "kv_type", None),
        parallel=getattr(models, "parallel", 1), reserve_gpu_bytes=kept, reserve_ram_bytes=kept,
        speed_floor_tps=getattr(models, "speed_floor", None),
        allow_software_gpu=settings.base.hardware.allow_software_gpu, cpu_only=settings.base.hardware.cpu_only,
    )  # fmt: skip


def wishes_digest(settings: Settings) -> str:
    """What the models were chosen for, so that a change of wishes is noticed."""
    text = json.dumps(dataclasses.asdict(wishes(settings)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bootstrap(report: HardwareReport, data: Data, settings: Settings) -> tuple[ModelChoice, ...]:
    """The models that come as artefacts: small, and there when no registry is."""
    found = []
    hardware = settings.base.hardware
    where = Wishes(allow_software_gpu=hardware.allow_software_gpu, cpu_only=hardware.cpu_only)
    for artifact in data.artifacts.get("models", []):
        about: dict[str, Any] = artifact["model"]
        use: ModelUse = "embedding" if about["use"] == "embedding" else "bootstrap"
        entry, _ = data.fit.catalogue.find(about["tag"])
        exact = about["quant"] in entry.quants
        name = f"{about['tag']}-{about['quant'].lower()}" if exact else about["tag"]
        made = describe(data.fit, name, report, use=use, context=about["context"], wishes=where)
        own = {"tag": about["tag"], "name": about["tag"], "source": "artifact", "artifact": artifact["name"]}
        found.append(made.model_copy(update=own))
    return tuple(found)


def _without_registry(
    chosen: Any, bootstrap: tuple[ModelChoice, ...], sources: SourceReport, engine: str, url: str, existing: bool
) -> Picked:
    deserved = next((m for m in chosen.models if m.use == "chat"), None)
    chat = tuple(m.model_copy(update={"use": "chat"}) if m.use == "bootstrap" else m for m in bootstrap)
    reasons = [f"the model registry does not answer ({sources.models}): the models that come with the kit are used"]
    if deserved is not None:
        reasons.append(f"with a model registry this machine would run {deserved.tag}; `ownstack up` fetches it then")
    return Picked(
        profile=chosen.profile, engine=engine, models=chat,
        artifacts=frozenset(m.artifact for m in bootstrap), engine_url=url, engine_existing=existing,
        deferred=deserved, reasons=tuple(reasons), warnings=chosen.warnings,
    )  # fmt: skip


def _recorded(
    report: HardwareReport, settings: Settings, state: BoxState, engine: str, url: str, existing: bool
) -> Picked | None:
    """The recorded models, while hardware and wishes are the ones they were chosen for.

    Free memory differs from hour to hour: a second `up` must not choose other models for that.
    """
    if not state.stands or state.manifest is None:
        return None
    old = state.manifest["plan"]
    driven = (engine, "vulkan") if engine == "rocm" else (engine,)  # an engine without ROCm drives AMD cards by Vulkan
    same = (
        old["hardware_fingerprint"] == report.fingerprint()
        and old["engine"] in driven
        and old["engine_url"] == url
        and old["use"] == settings.base.use
        and old.get("model_wishes") == wishes_digest(settings)
    )
    if not same:
        return None
    models = tuple(ModelChoice.model_validate(item) for item in old["models"])
    deferred = old.get("deferred_model")
    return Picked(
        profile=old["profile"], engine=engine, models=models,
        artifacts=frozenset(m.artifact for m in models if m.artifact), engine_url=url, engine_existing=existing,
        data=old.get("model_data", ""),
        deferred=None if deferred is None else ModelChoice.model_validate(deferred),
        reasons=("hardware and settings are the same as when the models were chosen: they stay",),
    )  # fmt: skip
