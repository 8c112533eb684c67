"""The Plan: the only value that crosses from choosing to applying. Frozen and serialisable."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field

from .hardware.report import Frozen

ProcessManager = Literal["systemd", "systemd-user", "supervisord"]
NetworkPolicy = Literal["closed", "lan", "internet"]
EngineParts = Literal["cpu", "cuda", "rocm", "vulkan"]
# the beginning of the names of Open WebUI's collections, for the first embedding model of a box
VECTORS = "open-webui"
ModelUse = Literal["bootstrap", "chat", "embedding", "code", "vision", "task"]


class Layout(Frozen):
    """Where everything lies on the target. One prefix for all of it, so boxes never meet.

    `opt` holds programs, `etc` configuration and secrets, `var` data and the manifest.
    """

    opt: str = "/opt/ownstack"
    etc: str = "/etc/ownstack"
    var: str = "/var/lib/ownstack"
    units: str = "/etc/systemd/system"
    prefix: str = "ownstack"  # of user and unit names

    def release(self, component: str, version: str, digest: str) -> str:
        return f"{self.opt}/{component}/releases/{version}-{digest[:8]}"

    def current(self, component: str) -> str:
        return f"{self.opt}/{component}/current"

    def config(self, service: str) -> str:
        return f"{self.etc}/{service}"

    def data(self, service: str) -> str:
        return f"{self.var}/{service}"

    @property
    def secrets(self) -> str:
        return f"{self.etc}/secrets"

    @property
    def manifest(self) -> str:
        return f"{self.var}/manifest.json"

    @property
    def written(self) -> str:
        """The hashes of all that was written to files of ours, by which edited ones are noticed."""
        return f"{self.var}/files.sha256"

    @property
    def adopted(self) -> str:
        """What an Ollama is told that was there before the box: the drop-in of its unit names this file."""
        return f"{self.etc}/adopted.env"

    @property
    def runner(self) -> str:
        return f"{self.current('base')}/runner.pyz"

    def unit(self, service: str) -> str:
        """Name of the service's unit (without `.service`) or of its supervised program."""
        return f"{self.prefix}-{service.replace('_', '-')}"

    def user(self, service: str) -> str:
        """Name of the service's account and group."""
        return self.unit(service)


class SecretRef(Frozen):
    """Names a secret that lives on the target only. `@@secret:NAME@@` marks it in a template."""

    name: str
    length: int = 43
    kind: Literal["token", "hex", "password"] = "token"

    @property
    def mark(self) -> str:
        return f"@@secret:{self.name}@@"


class ConfigFile(Frozen):
    """A rendered file. One that carries secret marks is filled on the target, mode 0600 or 0640."""

    path: str
    content: str
    mode: str = "0644"
    owner: str = ""  # empty: whoever applies the plan (root, or the one user)
    group: str = ""

    @property
    def secret(self) -> bool:
        return "@@secret:" in self.content


class Service(Frozen):
    """One process to keep running. Process-manager templates render it; roles know none of them."""

    name: str
    description: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    # files of KEY=VALUE lines with secrets, read by the process manager as root
    environment_files: tuple[str, ...] = ()
    working_directory: str
    # files without which it must not start
    requires: tuple[str, ...] = ()
    ports: tuple[int, ...]
    # the service starts children that listen on ports of their own (loopback)
    child_ports: bool = False
    state_directory: str
    writable: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    network: NetworkPolicy = "closed"
    gpu: bool = False
    jit: bool = False
    netlink: bool = False
    # the URL path that answers 200 when ready, on ports[0]
    ready_path: str
    start_timeout_s: int = 180
    stop_timeout_s: int = 30
    memory_max_bytes: int | None = None
    umask: str = "0077"


class ChosenArtifact(Frozen):
    """One download or build that the plan uses, and why this variant."""

    name: str
    variant: str
    version: str
    platform: str
    kind: Literal["file", "build", "host", "lock"]
    # target: the runner on the target fetches `url`; carry: the controller obtains and uploads it;
    # lock: a language's own installer works from a hash-locked file; host: it is there
    way: Literal["target", "carry", "lock", "host"]
    source: str
    url: str = ""
    sha256: str = ""
    size_bytes: int | None = None
    licence: str = ""
    below_floor: bool = False
    why: str = ""
    # the variant's own table of artifacts.toml (package, recipe, unpack, ...)
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What names the release: the file's hash, or the hash of a build's inputs."""
        return self.sha256 or str(self.details.get("inputs_sha256", "")) or "0" * 64


class ModelChoice(Frozen):
    """A model for one use, with what it is predicted to take. Sizes in bytes."""

    use: ModelUse
    name: str
    tag: str  # the name Ollama serves it under
    source: Literal["registry", "artifact", "existing"]
    artifact: str = ""
    quant: str = ""
    digest: str = ""
    download_bytes: int | None = None
    context: int = 0
    parallel: int = 1
    kv_type: Literal["f16", "q8_0", "q4_0"] = "f16"
    gpu_layers: int | None = None
    layers: int | None = None
    predicted_gpu_bytes: int = 0
    predicted_host_bytes: int = 0
    projector_bytes: int = 0  # of the predicted bytes what reads pictures takes: the engine's log does not count it
    predicted_tps: tuple[float, float, float] | None = None
    dimension: int | None = None
    licence: str = ""
    reasons: tuple[str, ...] = ()


class RolePlan(Frozen):
    """All that a role may look at: its settings, artefacts and ports."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    artifacts: tuple[ChosenArtifact, ...] = ()
    ports: dict[str, int] = Field(default_factory=dict)
    network: NetworkPolicy = "closed"

    def artifact(self, name: str) -> ChosenArtifact:
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        raise KeyError(name)


class HostIdentity(Frozen):
    machine_id_hash: str
    hostname: str
    target: str  # "local" or user@server, as the user named it; not part of what a box records


class Schedule(Frozen):
    """Backups that make themselves, as the owner asked for them with `backup --every`."""

    every: Literal["day", "week"]
    to: str
    keep: int = 7
    with_models: bool = False
    recipients: tuple[str, ...] = ()  # none: the passphrase is a secret of the box
    elsewhere: bool = False  # the folder is on another disk, which has to be there
    drill: bool = False  # once a week the newest one is tried in a second instance
    settings: dict[str, Any] = Field(default_factory=dict)  # what the backup says of the settings


class Adopted(Frozen):
    """An Ollama that was there before the box, as its engine: one drop-in is added to its unit, and nothing else."""

    unit: str
    path: str  # of the unit's own file
    dropin: str
    # the box's file of variables, which the drop-in names: what a unit reads from files wins over its `Environment=`,
    # wherever that stands, and only a later file wins over them. Empty in older boxes: their drop-in holds all of them
    variables: str = ""
    version: str = ""
    environment: tuple[tuple[str, str], ...] = ()


class Plan(Frozen):
    """What will be done on one host, and why. Made by `choose`, carried out by `apply`."""

    schema_version: Literal[1] = 1
    kit_version: str
    host: HostIdentity
    hardware_fingerprint: str
    # what the fingerprint was made of, so that a change can be told in words
    hardware: tuple[str, ...] = ()
    state_hash: str
    layout: Layout
    manager: ProcessManager
    system: bool = True  # services run under accounts of their own (False: all as the one user)
    platform: str  # linux-x86_64, linux-aarch64
    os_name: str = ""
    profile: str
    use: str = "chat"
    engine: EngineParts = "cpu"
    gpu_names: tuple[str, ...] = ()
    engine_url: str = "http://127.0.0.1:11434"
    engine_existing: bool = False
    adopted: Adopted | None = None
    given_back: Adopted | None = None  # what the box had adopted until now
    roles: tuple[RolePlan, ...]
    # what the box had until now: services and programs go, data stays
    retired: tuple[RolePlan, ...] = ()
    models: tuple[ModelChoice, ...]
    model_wishes: str = ""  # hash of what the models were chosen for
    model_data: str = ""  # hash of the catalogue, the cards and the profiles that they were chosen from
    # the model this hardware deserves where the registry cannot be reached
    deferred_model: ModelChoice | None = None
    vectors: str = VECTORS  # the beginning of the names of the collections that hold documents' vectors
    secrets: tuple[SecretRef, ...] = ()
    backup: Schedule | None = None
    folders: tuple[tuple[str, str, bool], ...] = ()  # name, host path, writable
    locale: str = "C.UTF-8"
    timezone: str = "UTC"
    mirror: str = ""
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    absent_protections: tuple[str, ...] = ()
    disk_needed_bytes: int = 0
    memory_needed_bytes: int = 0

    def role(self, name: str) -> RolePlan:
        for role in self.roles:
            if role.name == name:
                return role
        raise KeyError(name)

    def has(self, name: str) -> bool:
        return any(role.name == name for role in self.roles)

    def model(self, use: ModelUse) -> ModelChoice | None:
        return next((m for m in self.models if m.use == use), None)

    def bound(self, role: str, write: bool) -> tuple[str, ...]:
        """The host folders that the settings bind into a role's service: those to write to, or the others."""
        return tuple(path for name, path, may in self.folders if name.split(":")[0] == role and may == write)

    def account(self, service: str) -> str:
        """The account and group a service runs under; empty where all run as the one user."""
        return self.layout.user(service) if self.system else ""

    def digest(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
