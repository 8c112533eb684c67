"""The raw probe: what was observed on a machine, unread. Serialisable, so that it can be replayed."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from ..errors import ConfigError
from .report import Frozen

Row = tuple[str, ...]


def natural(text: str | None, base: int = 10) -> int | None:
    """A number without a sign as a file or a command prints it; None for anything else.

    A driver may print what it likes: one odd line must not end the detection of all the rest.
    """
    text = (text or "").strip()
    if not re.fullmatch(r"[0-9]+" if base == 10 else r"(0[xX])?[0-9a-fA-F]+", text) or len(text) > 20:
        return None
    return int(text, base)


class RawProbe(Frozen):
    """Lines of probe.sh, NVML's answer, nvidia-smi's lines, and what psutil adds locally.

    `nvml` is None where it was not asked or did not answer; `nvml_error` then says why (empty: there
    was no reason to ask). The same holds for `smi`. `smi_memory` has a line for each MIG instance: card's
    UUID, index, MiB in total, MiB free. `provenance` is for fixtures: where it came from.
    """

    schema_version: int = 1
    lines: tuple[str, ...]
    nvml: dict[str, Any] | None = None
    nvml_error: str = ""
    smi: tuple[str, ...] | None = None
    smi_fields: tuple[str, ...] = ()
    smi_instances: tuple[str, ...] = ()
    smi_memory: tuple[str, ...] = ()
    smi_error: str = ""
    extras: dict[str, Any] = Field(default_factory=dict)
    provenance: str = ""

    @cached_property
    def _sections(self) -> dict[str, list[Row]]:
        sections: dict[str, list[Row]] = {}
        for line in self.lines:
            section, *fields = line.split("\t")
            sections.setdefault(section, []).append(tuple(field.strip() for field in fields))
        return sections

    def rows(self, section: str, first: str | None = None) -> list[Row]:
        """All lines of a section, without its name; with `first`, those that begin so, without it."""
        rows = self._sections.get(section, [])
        if first is None:
            return rows
        return [row[1:] for row in rows if row and row[0] == first]

    def get(self, section: str, key: str, default: str = "") -> str:
        """The first value under a key."""
        return next((row[0] for row in self.rows(section, key) if row), default)

    def number(self, section: str, key: str) -> int | None:
        return natural(self.get(section, key))

    @property
    def complete(self) -> bool:
        return bool(self.rows("probe", "end"))


def make_anonymous(line: str) -> str:
    """machine-id is meant to stay on the machine: keep a hash of it only."""
    if line.startswith("host\tmachine_id\t"):
        value = line.split("\t", 2)[2].strip()
        return "host\tmachine_id_hash\t" + hashlib.sha256(f"ownstack:{value}".encode()).hexdigest()
    return line


def save(raw: RawProbe, path: Path) -> None:
    path.write_text(json.dumps(raw.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> RawProbe:
    """A probe that `detect --raw` saved."""
    try:
        return RawProbe.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a saved probe", hint="save one with `ownstack detect --raw FILE`") from error
