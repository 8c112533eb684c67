"""Models of an Ollama that was there before the box: used as they are, added to only by consent."""

from __future__ import annotations

import urllib.parse

from ..data import Data
from ..errors import ConfigError, UnsupportedError
from ..fitting.choose import describe
from ..hardware.report import HardwareReport
from ..plan import ModelChoice, ModelUse
from ..settings import Settings
from ..state import BoxState, SourceReport
from .models import Picked

CONTEXT = 8192  # tokens
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def short(name: str) -> str:
    return name.removesuffix(":latest")


def select_existing(
    report: HardwareReport, settings: Settings, data: Data, sources: SourceReport, state: BoxState, url: str
) -> Picked:
    """Chat and embedding model among what the engine has, or what may be added.

    Raises UnsupportedError when the engine does not answer, ConfigError when a model is missing and none may be added.
    """
    if not state.existing_ollama:
        raise UnsupportedError(
            f"no Ollama answers at {url}", hint="start it, or correct `[ollama] url`", code="no-existing-ollama"
        )
    if data.floors.below("ollama", state.existing_ollama):
        raise UnsupportedError(
            f"the Ollama at {url} is {state.existing_ollama}, below the security floor {data.floors.floor['ollama']}",
            hint="update it: " + data.floors.why["ollama"],
            code="existing-below-floor",
        )
    _reachable_by_services(settings, url)
    chat = _choose("chat", report, settings, data, state, url)
    embedding = _choose("embedding", report, settings, data, state, url)
    has = f"has {len(state.existing_models)} models and is left as it is"
    return Picked(
        profile="existing-engine",
        models=(chat, embedding),
        artifacts=frozenset(m.artifact for m in (chat, embedding) if m.artifact),
        engine_url=url.rstrip("/"),
        engine_existing=True,
        reasons=(f"Ollama {state.existing_ollama} at {url} {has}",),
    )


def _reachable_by_services(settings: Settings, url: str) -> None:
    host = urllib.parse.urlsplit(url).hostname or ""
    if host in LOOPBACK:
        return
    for name in ("open_webui", "n8n"):
        if name in settings.wanted_roles() and getattr(settings.base.network, name) == "closed":
            raise ConfigError(
                f"{name} may reach this machine only, but the Ollama is at {host}",
                hint=f'`[network] {name} = "lan"` lets it',
            )


def _choose(
    use: ModelUse, report: HardwareReport, settings: Settings, data: Data, state: BoxState, url: str
) -> ModelChoice:
    models = settings.role("models")
    pin = getattr(models, use)
    there = [short(name) for name in state.existing_models]
    if pin and short(pin) in there:
        return _known(pin, use, report, data, "you named it", _context(settings, use))
    kept = _recorded(use, state) if models.keep and not pin else ""
    if kept and short(kept) in there:
        return _known(kept, use, report, data, "it is kept", _context(settings, use))
    suited = [name for name in there if use in _capabilities(name, data)]
    if suited and not pin:
        ranks = data.fit.ranks.get("chat", {})
        best = max(suited, key=lambda name: (ranks.get(name, 0.0), name))
        return _known(best, use, report, data, "the best of what the engine has", _context(settings, use))
    if not models.may_add_models:
        what = f"{pin} is not there" if pin else f"it has no model for {use} that this kit knows"
        raise ConfigError(
            f"the Ollama at {url}: {what}",
            hint=f'name one (`[models] {use} = "..."`), pull one there, '
            "or consent with `[models] may_add_models = true`",
            code="existing-lacks-model",
        )
    return _added(use, pin, report, data)


def _recorded(use: ModelUse, state: BoxState) -> str:
    """The model that the box uses so far; empty where it has none."""
    models = (state.manifest or {})["plan"]["models"] if state.stands else []
    return next((str(model["tag"]) for model in models if model["use"] == use), "")


def _capabilities(name: str, data: Data) -> frozenset[str]:
    try:
        entry, _ = data.fit.catalogue.find(name)
    except ConfigError:
        return frozenset({"embedding"} if "embed" in name or "minilm" in name else ())
    return frozenset(entry.capabilities)


def _context(settings: Settings, use: ModelUse) -> int:
    """The context that an adopted engine is given; 0 where its owner's settings stand."""
    if settings.role("ollama").use != "adopt" or use != "chat":
        return 0
    return int(settings.role("models").context or settings.role("ollama").context or CONTEXT)


def _known(name: str, use: ModelUse, report: HardwareReport, data: Data, why: str, context: int) -> ModelChoice:
    """A model of the engine as it is; with a context, what it will take then, where the catalogue knows it."""
    own = {"name": name, "tag": name, "source": "existing", "reasons": (why,)}
    try:
        entry, _ = data.fit.catalogue.find(name)
    except ConfigError:
        return ModelChoice.model_validate({"use": use, "context": context, **own})
    if not context:
        return ModelChoice.model_validate({"use": use, "dimension": entry.dimension, **own})
    made = describe(data.fit, name, report, use=use, context=min(context, entry.context or context))
    return made.model_copy(update={**own, "download_bytes": None, "digest": ""})


def _added(use: ModelUse, pin: str, report: HardwareReport, data: Data) -> ModelChoice:
    """With consent: the named model from the registry, else the small one that comes with the kit."""
    if pin:
        return ModelChoice(use=use, name=pin, tag=pin, source="registry", reasons=("added with your consent",))
    wanted = "embedding" if use == "embedding" else "bootstrap"
    for artifact in data.artifacts.get("models", []):
        about = artifact["model"]
        if about["use"] == wanted:
            made = describe(data.fit, about["tag"], report, use=use, context=about["context"])
            own = {"tag": about["tag"], "name": about["tag"], "source": "artifact", "artifact": artifact["name"]}
            return made.model_copy(update={**own, "reasons": ("added with your consent",)})
    raise UnsupportedError(f"there is no {use} model to add", hint="name one in `[models]`")
