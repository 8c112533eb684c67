"""Hardware profiles: which class a machine is in, and the policy of that class. Never model lists."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..kit import load_toml
from .machine import Machine


@dataclass(frozen=True, slots=True)
class Policy:
    """What a class of machines may use, and what it must reach. Sizes in bytes, speed in tokens/s."""

    use: str
    reserve_gpu_bytes: int
    reserve_ram_bytes: int
    context_floor: int
    context_goal: int
    speed_floor_tps: float
    parallel: int
    embedding_max_bytes: int
    embedding_on: str
    task_model: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """A class of machines. It matches from its smallest memory up; the largest that matches counts."""

    name: str
    title: str
    gpu: bool
    min_bytes: int
    policy: Policy

    def matches(self, machine: Machine) -> bool:
        if self.gpu != bool(machine.devices):
            return False
        return (machine.vram if self.gpu else machine.ram_total) >= self.min_bytes


def ladder(profiles: tuple[Profile, ...], machine: Machine) -> tuple[Profile, ...]:
    """The machine's own profile first, then the smaller ones of its kind, from the largest down."""
    found = sorted((p for p in profiles if p.matches(machine)), key=lambda p: -p.min_bytes)
    if not found:
        raise ConfigError("no hardware profile matches", hint="hardware_profiles/ needs one without a minimum")
    return tuple(found)


def load_profile(path: Path) -> Profile:
    """Read one profile; a wrong or missing key is an error that names the file."""
    raw = load_toml(path)
    known = {f.name for f in fields(Policy)}
    policy: dict[str, Any] = raw.get("policy", {})
    match: dict[str, Any] = raw.get("match", {})
    wrong = sorted(set(raw) - {"name", "title", "match", "policy"})
    wrong += sorted(set(match) - {"gpu", "vram_min_bytes", "ram_min_bytes"})
    wrong += sorted(set(policy) - known)
    missing = sorted(known - set(policy)) + [k for k in ("name", "title") if k not in raw]
    if wrong or missing or "gpu" not in match:
        what = f"unknown: {', '.join(wrong)}" if wrong else f"missing: {', '.join(missing) or 'match.gpu'}"
        raise ConfigError(f"{path}: {what}", hint="a profile holds match rules and policy only")
    key = "vram_min_bytes" if match["gpu"] else "ram_min_bytes"
    return Profile(
        name=str(raw["name"]),
        title=str(raw["title"]),
        gpu=bool(match["gpu"]),
        min_bytes=int(match.get(key, 0)),
        policy=Policy(**policy),
    )


def load_profiles(folder: Path) -> tuple[Profile, ...]:
    return tuple(load_profile(path) for path in sorted(folder.glob("*.toml")))
