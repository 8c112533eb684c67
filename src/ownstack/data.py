"""The kit's data, read once: artefact locks, floors, and what fitting needs."""

from __future__ import annotations

import datetime
import hashlib
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .kit import data_path, load_toml

REQUIRED = {"id", "kind", "version", "platform", "source"}
KINDS = {"file", "build", "host", "lock"}


@dataclass(frozen=True)
class Floors:
    """Security floors and the day on which pins and advisories were checked."""

    checked: datetime.date
    warn_after_days: int
    floor: dict[str, str]
    why: dict[str, str]

    def of(self, component: str) -> tuple[str, str]:
        """A component's floor and why it is one."""
        name = component.replace("-", "_")
        return self.floor.get(name, ""), self.why.get(name, "see roles/floors.toml")

    def below(self, component: str, version: str) -> bool:
        floor = self.floor.get(component.replace("-", "_"))
        return floor is not None and version_key(version) < version_key(floor)


@dataclass(frozen=True)
class Data:
    """role -> artefacts as its artifacts.toml has them, each build with the hash of its inputs."""

    artifacts: dict[str, list[dict[str, Any]]]
    floors: Floors
    fit: Any = field(default=None)

    def vendor_hosts(self) -> list[str]:
        """The hosts that vendors' files come from, for the preflight."""
        found = {
            urllib.parse.urlsplit(variant["url"]).netloc
            for artifacts in self.artifacts.values()
            for artifact in artifacts
            for variant in rows(artifact)
            if variant.get("url")
        }
        return sorted(found)


def rows(artifact: dict[str, Any]) -> list[dict[str, Any]]:
    """All that an artefact may be: its variants, and versions that data is opened with on the way to them."""
    return [*artifact["variant"], *artifact.get("step", ())]


def version_key(version: str) -> tuple[int, ...]:
    """A version as numbers, for comparing; `1.19.2` < `1.20`."""
    return tuple(
        int("".join(c for c in part if c.isdigit()) or 0) for part in version.split("-")[0].split("+")[0].split(".")
    )


def load_floors() -> Floors:
    table = load_toml(data_path("roles/floors.toml"))
    return Floors(table["checked"], table["warn_after_days"], table["floor"], table["why"])


def lock_hash(variant: dict[str, Any], folder: Path) -> str:
    """The hash of a lock and of what else decides what is made from it."""
    digest = hashlib.sha256()
    for name in (variant["lock"], *variant.get("inputs", ())):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def load_artifacts(role: str) -> list[dict[str, Any]]:
    """A role's artefacts. Raises ConfigError that names the file and the variant."""
    from .engine.carry import inputs_hash

    path = data_path(f"roles/{role}/artifacts.toml")
    if not path.exists():
        return []
    artifacts: list[dict[str, Any]] = load_toml(path).get("artifact", [])
    for artifact in artifacts:
        for variant in rows(artifact):
            where = f"{path}: {artifact['name']}/{variant.get('id', '?')}"
            missing = REQUIRED - set(variant)
            if missing:
                raise ConfigError(f"{where}: without {', '.join(sorted(missing))}")
            if variant["kind"] not in KINDS:
                raise ConfigError(f"{where}: kind {variant['kind']!r}")
            if variant["kind"] == "lock":
                variant["sha256"] = lock_hash(variant, path.parent)
            if variant["kind"] == "file" and not variant.get("sha256"):
                raise ConfigError(f"{where}: a file without sha256 is never installed")
            if variant["kind"] == "build":
                variant["inputs_sha256"] = inputs_hash(variant, path.parent)
    return artifacts


def load_data(roles: tuple[str, ...], fit: bool = True) -> Data:
    held = None
    if fit:
        from .fitting.choose import load_data as load_fit

        held = load_fit()
    return Data({role: load_artifacts(role) for role in roles}, load_floors(), held)
