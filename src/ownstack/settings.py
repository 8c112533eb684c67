"""Settings: defaults < ownstack.toml < environment < flags. Every value remembers where it came from."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from .errors import ConfigError
from .hardware.report import Frozen
from .kit import activate, load_toml
from .plan import Layout, NetworkPolicy

if TYPE_CHECKING:
    from .hardware.interpret import Overrides

ROLE_NAMES = ("base", "qdrant", "ollama", "models", "open_webui", "n8n")
ENV_PREFIX = "OWNSTACK_"
# neither part begins with a dash: the host reaches the ProxyCommand of the user's ssh configuration
HOST = r"^([A-Za-z0-9_][A-Za-z0-9._@-]*@)?[A-Za-z0-9:\[][A-Za-z0-9._:\[\]-]*$"
MARK = "@@secret:"
LIST_THEM = "`ownstack config` lists all settings"
# environment variables of ours that are not settings
NOT_SETTINGS = (
    "OWNSTACK_KIT",
    "OWNSTACK_CONFIG",
    "OWNSTACK_PYTHON",
    "OWNSTACK_VENV",
    "OWNSTACK_SSH_CONFIG",
    "OWNSTACK_RECONNECT",
)


class Folder(Frozen):
    """A folder of the host that is bound into a service."""

    path: str = Field(description="Absolute path on the host.", pattern=r"^/[^\x00-\x1f\x7f;]+$")
    service: Literal["ollama", "open_webui", "n8n", "qdrant"] = Field(description="The service that sees it.")
    write: bool = Field(False, description="Whether the service may change what is in it.")


class Sources(Frozen):
    """Where programs and models come from."""

    # an address with a password in it would stand in plans and in the manifest
    mirror: str = Field(
        "",
        description="URL or folder that replaces the network; nothing else is contacted.",
        pattern=r"^(/[^\x00-\x1f\x7f]*|https?://[^\s@\x00-\x1f\x7f]+)?$",
    )
    restricted: Literal["auto", "yes", "no"] = Field(
        "auto", description="Use package registries instead of vendors: found out, always, or never."
    )
    allow_below_floor: bool = Field(False, description="Accept versions below their security floor.")
    bundle: str = Field(
        "",
        description="File, folder or address of the bundle that `upgrade --self` takes; a mirror comes first.",
        pattern=r"^([/~][^\x00-\x1f\x7f]*|https?://[^\s@\x00-\x1f\x7f]+)?$",
    )
    bundle_keys: tuple[str, ...] = Field(
        (), description="The minisign public keys whose bundles are taken, instead of those of the program."
    )

    @field_validator("bundle_keys")
    @classmethod
    def _keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            if not re.fullmatch(r"RW[A-Za-z0-9+/]{54}", key):
                raise ValueError(f"{key[:60]!r} is no minisign public key: it has 56 characters, the first are RW")
        return value


class Hardware(Frozen):
    """What the owner says about the machine, kept apart from what is detected."""

    cpu_only: bool = Field(False, description="Go on without the GPU, knowingly.")
    allow_software_gpu: bool = Field(False, description="Count a software renderer as a GPU. For tests only.")
    reserve_gib: float | None = Field(
        None, ge=0, description="Memory kept free for the desktop and other programs, GiB."
    )
    vram_gib: float | None = Field(
        None, gt=0, description="GPU memory as you know it, GiB; shown as yours, not as detected."
    )
    bandwidth_gb_s: float | None = Field(None, gt=0, description="GPU memory bandwidth as you know it, GB/s.")

    def overrides(self) -> Overrides:
        """The same in the words of the interpreter of probes: bytes and bytes per second."""
        from .hardware.interpret import Overrides

        return Overrides(
            cpu_only=self.cpu_only,
            software_gpu=self.allow_software_gpu,
            vram_bytes=None if self.vram_gib is None else int(self.vram_gib * 2**30),
            bandwidth_bytes_per_s=None if self.bandwidth_gb_s is None else self.bandwidth_gb_s * 1e9,
        )


class Network(Frozen):
    """How far each service may reach: nothing but this machine, the local network, or the internet."""

    qdrant: NetworkPolicy = Field("closed", description="How far Qdrant may reach.")
    ollama: NetworkPolicy = Field(
        "closed", description="How far Ollama may reach; models are pulled by a unit of their own."
    )
    open_webui: NetworkPolicy = Field("closed", description="How far Open WebUI may reach.")
    n8n: NetworkPolicy = Field(
        "closed", description="How far n8n may reach. Closed, it reaches no mailbox and no web service."
    )


class Base(BaseModel):
    """The settings that are not a role's."""

    model_config = {"frozen": True, "extra": "forbid"}

    roles: tuple[Literal["qdrant", "ollama", "models", "open_webui", "n8n"], ...] | None = Field(
        None, description="Which roles to install; all by default, n8n left out below 8 GB of memory."
    )
    use: Literal["chat", "code", "rag", "reasoning", "vision"] = Field(
        "chat", description="What the box is mostly for."
    )
    host: str = Field("local", description="`local`, or `user@server` over SSH.", pattern=HOST)
    scope: Literal["auto", "system", "user"] = Field(
        "auto", description="System-wide with root or sudo, or for one user; auto takes the system where it can."
    )
    prefix: str = Field("ownstack", description="First part of user and unit names.", pattern=r"^[a-z][a-z0-9-]{1,20}$")
    root: str = Field(
        "",
        description="Folder that holds the whole box, for tests; empty for the usual places.",
        pattern=r"^(/[A-Za-z0-9._/-]+)?$",
    )
    timezone: str = Field(
        "", description="Time zone for n8n's schedules; empty: the host's.", pattern=r"^[A-Za-z0-9_+/-]*$"
    )
    sources: Sources = Sources()
    hardware: Hardware = Hardware()
    network: Network = Network()
    folders: dict[str, Folder] = Field(default_factory=dict, description="Folders of the host bound into services.")

    @field_validator("folders")
    @classmethod
    def _names(cls, value: dict[str, Folder]) -> dict[str, Folder]:
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"{name!r} is not a plain name")
        return value


class Settings(BaseModel):
    """All settings of one box, each key with its origin."""

    model_config = {"frozen": True, "arbitrary_types_allowed": True}

    base: Base
    role_settings: dict[str, Any]
    origins: dict[str, str]

    def role(self, name: str) -> Any:
        return self.role_settings[name]

    @model_validator(mode="after")
    def _ports_differ(self) -> Settings:
        seen: dict[int, str] = {}
        for name, model in self.role_settings.items():
            for key, value in model.model_dump().items():
                if key.endswith("port") and isinstance(value, int):
                    if value in seen:
                        raise ConfigError(
                            f"{name}.{key} and {seen[value]} are both {value}", hint="give one of them another port"
                        )
                    seen[value] = f"{name}.{key}"
        return self

    def wanted_roles(self) -> tuple[str, ...]:
        chosen = self.base.roles
        names = ROLE_NAMES if chosen is None else ("base", *chosen)
        return tuple(name for name in ROLE_NAMES if name in names)

    def layout(self, home: str, uid: int) -> Layout:
        """System-wide for root, the user's own folders otherwise."""
        root = self.base.root
        if uid == 0:
            units = f"{root}/etc/systemd/system" if root else "/etc/systemd/system"
            return Layout(
                opt=f"{root}/opt/ownstack", etc=f"{root}/etc/ownstack", var=f"{root}/var/lib/ownstack",
                units=units, prefix=self.base.prefix,
            )  # fmt: skip
        base = root or home
        return Layout(
            opt=f"{base}/.local/share/ownstack/opt", etc=f"{base}/.config/ownstack",
            var=f"{base}/.local/state/ownstack", units=f"{base}/.config/systemd/user", prefix=self.base.prefix,
        )  # fmt: skip

    def flat(self) -> Iterator[tuple[str, Any, str]]:
        """Every key with its value and origin, for `config --origin`."""
        for key, value in flatten(self.base.model_dump()):
            yield key, value, self.origins.get(key, "default")
        for name in ROLE_NAMES:
            for key, value in flatten(self.role_settings[name].model_dump(), f"{name}."):
                yield key, value, self.origins.get(key, "default")


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def role_models() -> dict[str, type[BaseModel]]:
    activate()
    return {name: importlib.import_module(f"roles.{name}.settings").Settings for name in ROLE_NAMES}


def config_path(explicit: str | None = None) -> Path:
    """The settings file: named, in this folder, or in the user's configuration folder."""
    named = explicit or os.environ.get("OWNSTACK_CONFIG")
    if named:
        return Path(named)
    here = Path("ownstack.toml")
    if here.exists():
        return here
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(base) / "ownstack" / "ownstack.toml"


def load(
    flags: Mapping[str, Any] | None = None,
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    below: Mapping[str, Any] | None = None,
) -> Settings:
    """Read all layers; `below` are settings of a backup, which all others overrule.

    Raises ConfigError that names the key, where it stands, and the nearest right name.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    _merge(values, _nest(below or {}), origins, "backup")
    file = config_path(path)
    if file.exists():
        _merge(values, load_toml(file), origins, str(file))
    elif path:
        raise ConfigError(f"there is no settings file {path}", hint="`ownstack init` writes one")
    _merge(values, from_environment(os.environ if environ is None else environ), origins, "environment")
    _merge(values, _nest(flags or {}), origins, "flag")
    models = role_models()
    base = {key: value for key, value in values.items() if key not in models}
    settings = Settings(
        base=_validated(Base, base, "", origins, [*Base.model_fields, *models]),
        role_settings={
            name: _validated(model, values.get(name, {}), f"{name}.", origins, []) for name, model in models.items()
        },
        origins=origins,
    )
    for key, value, origin in settings.flat():
        if MARK in str(value):  # in a rendered file the secret itself would stand in its place
            raise ConfigError(f"{origin}: `{key}` may not hold `{MARK}`", hint=LIST_THEM)
    return settings


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """`OWNSTACK_OLLAMA__PORT=11500` is the key `ollama.port`; values are read as TOML, else as text."""
    flat: dict[str, Any] = {}
    for name, text in environ.items():
        if name.startswith(ENV_PREFIX) and name not in NOT_SETTINGS and not name.startswith("OWNSTACK_TEST_"):
            flat[name[len(ENV_PREFIX) :].lower().replace("__", ".")] = parse_value(text)
    return _nest(flat)


def parse_value(text: str) -> Any:
    """A value from a flag or the environment: TOML where it is TOML, else the text itself."""
    import tomllib

    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if len(found) == 1 else text


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        table = nested
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{key}: {parent} is a value, not a table", hint=LIST_THEM)
        table[last] = value
    return nested


def _merge(
    into: dict[str, Any], new: Mapping[str, Any], origins: dict[str, str], origin: str, prefix: str = ""
) -> None:
    for key, value in new.items():
        name = prefix + key
        if isinstance(value, Mapping):
            table = into.setdefault(key, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{origin}: {name} is a value, not a table", hint=LIST_THEM)
            _merge(table, value, origins, origin, name + ".")
        else:
            into[key] = value
            origins[name] = origin


def _validated(model: type[Any], values: Any, prefix: str, origins: Mapping[str, str], known: list[str]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # a misspelt key is often also a missing one: the misspelling says more
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        where = [str(part) for part in first["loc"]]
        key = prefix + ".".join(where) if where else prefix.rstrip(".")
        near_key = (o for k, o in origins.items() if k.startswith(key) or key.startswith(f"{k}."))
        origin = origins.get(key) or next(near_key, "settings")
        if first["type"] == "extra_forbidden":
            names = known if known and len(where) == 1 else _names_at(model, where[:-1])
            near = difflib.get_close_matches(where[-1], names, 1)
            hint = f"did you mean `{near[0]}`?" if near else "known here: " + ", ".join(sorted(names))
            raise ConfigError(f"{origin}: unknown setting `{_told(key)}`", hint=hint) from None
        words = first["msg"][0].lower() + first["msg"][1:]
        message = f"{_told(words)}, not {repr(first['input'])[:80]}"
        raise ConfigError(f"{origin}: `{_told(key)}`: {message}", hint=LIST_THEM) from None


def _told(text: str) -> str:
    """Text of others in a message: of bearable length, and nothing that a terminal would obey."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def _names_at(model: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = model
    for part in path:
        if get_origin(current) is dict:  # a table of tables with names of the user's own
            current = get_args(current)[1]
            continue
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        current = field.annotation if field is not None else None
    return list(current.model_fields) if hasattr(current, "model_fields") else list(model.model_fields)
