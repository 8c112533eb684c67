"""What `choose` may know beside the hardware: which sources answer, and what is on the box already."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field

from .hardware.report import Frozen


class SourceReport(Frozen):
    """Which sources answered at the preflight. An empty reason means it answered.

    `target` are vendors' hosts asked from the target, `controller` package registries asked from here.
    """

    target: dict[str, str] = Field(default_factory=dict)
    controller: dict[str, str] = Field(default_factory=dict)
    models: str = ""  # why the model registry cannot be reached; empty: it answered

    def answers(self, source: str) -> bool:
        if source in self.target:
            return not self.target[source]
        return source in self.controller and not self.controller[source]

    @property
    def restricted(self) -> bool:
        """No vendor's host answers at all: a network that reaches package registries only."""
        return bool(self.target) and all(self.target.values())


class BoxState(Frozen):
    """What a box records of itself and what is seen of it. Empty on a bare host."""

    manifest: dict[str, Any] | None = None
    releases: dict[str, Any] = Field(default_factory=dict)
    services: dict[str, Any] = Field(default_factory=dict)
    work: dict[str, Any] = Field(default_factory=dict)
    unfinished: dict[str, Any] | None = None  # the journal's last step, where it was begun and did not end
    holder: str = ""  # who works on the box now
    edited: tuple[str, ...] = ()  # files of ours that somebody edited
    recovered: tuple[dict[str, Any], ...] = ()  # what was put in order at boot
    gone: bool = False  # what it records is there, its programs are not: after a plain `down`
    existing_ollama: str = ""  # version of the Ollama that is used as it is, empty where it does not answer
    existing_models: tuple[str, ...] = ()  # what it has

    @property
    def stands(self) -> bool:
        return bool(self.manifest and self.manifest.get("plan"))

    @property
    def installed(self) -> bool:
        """An `up` went through to its end here at least once, even if programs were taken away since."""
        return bool(self.manifest and self.manifest.get("installed"))

    @property
    def has_data(self) -> bool:
        """Services have run here, so that there may be data of theirs."""
        return self.installed or any(service.get("recorded") for service in self.services.values())

    def versions(self) -> dict[str, Any]:
        """Component -> artefact as chosen at the first install. They move only on purpose.

        A first run that was cut off binds only what it had installed by then: a wrong lock must not stay for good.
        """
        found: dict[str, Any] = (self.manifest or {}).get("versions", {})
        if self.installed:
            return found
        held = {(str(mark.get("name")).replace("_", "-"), mark.get("version")) for mark in self.releases.values()}
        return {name: item for name, item in found.items() if (name.replace("_", "-"), item["version"]) in held}

    def digest(self) -> str:
        """Of what a plan was made for: not of process ids or progress."""
        steady = {"versions": self.versions(), "plan": (self.manifest or {}).get("plan_digest", "")}
        return hashlib.sha256(json.dumps(steady, sort_keys=True).encode()).hexdigest()[:16]
