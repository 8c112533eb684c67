"""Which files are the kit's data, by their names in a bundle."""

from __future__ import annotations

import re
from pathlib import Path

from ..kit import own_path

ABOUT = "bundle.json"
ROLE_FILES = {
    "base": ("artifacts.toml", "supervisor.lock", "toolchain.txt"),
    "models": ("artifacts.toml", "minilm.txt"),
    "n8n": ("artifacts.toml", "package-lock.json", "package.json", "prune.toml", "toolchain.txt"),
    "ollama": ("artifacts.toml", "go.mod", "go.sum", "toolchain.txt"),
    "open_webui": ("artifacts.toml", "requirements-full.lock", "requirements.lock"),
    "qdrant": ("artifacts.toml",),
}
GRAPHS = ("all", "cpu", "cpuall", "exps", "nofa", "part", "q8", "server")
# what every bundle holds
REQUIRED = (
    "roles/data.toml",
    "roles/floors.toml",
    *(f"roles/{role}/{name}" for role, names in ROLE_FILES.items() for name in names),
    "fitting/cards.toml",
    "fitting/catalogue.json",
    "fitting/ranks.toml",
    *(f"fitting/graphs-{mode}.jsonl" for mode in GRAPHS),
)
# and of these as many as there are
PROFILE = re.compile(r"hardware_profiles/[a-z0-9][a-z0-9-]{0,40}\.toml")


def known(name: str) -> bool:
    """Whether a file of this name may lie in a bundle."""
    return name in REQUIRED or PROFILE.fullmatch(name) is not None


def own_files() -> dict[str, Path]:
    """All files of the program's own data: name in a bundle -> path."""
    profiles = sorted(own_path("hardware_profiles").glob("*.toml"))
    found = {name: own_path(name) for name in REQUIRED}
    return dict(sorted({**found, **{f"hardware_profiles/{path.name}": path for path in profiles}}.items()))
