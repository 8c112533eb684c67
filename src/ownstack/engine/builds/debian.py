"""Packages of a Debian suite, taken through the machine's own apt without touching its package state.

apt checks the archive's signature and every file's hash. The mirror is the one that the machine's own apt
configuration names for its own Debian, so a company mirror or proxy is honoured.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from ...errors import RunError

Say = Callable[[str], None]
ARCHITECTURE = {"linux-x86_64": "amd64", "linux-aarch64": "arm64"}
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ADDRESS = re.compile(r"(?:https?|file|copy|mirror\+\w+|ftp)://?\S+")


def mirrors(root: Path = Path("/etc/apt")) -> list[str]:
    """Addresses of Debian archives in apt's source lists, main archives before security and others."""
    found: list[str] = []
    for path in [root / "sources.list", *sorted((root / "sources.list.d").glob("*"))]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if re.match(r"\s*(deb\s|uris\s*:)", line, re.IGNORECASE):
                found += [address.rstrip("/") for address in _ADDRESS.findall(line)]
    return [address for address in dict.fromkeys(found) if address.endswith("debian")]


def packages(names: list[str], suite: str, platform: str, work: Path, say: Say) -> tuple[Path, list[dict[str, str]]]:
    """Fetch packages with all they depend on and unpack them under `work`.

    Returns the folder they were unpacked in, and for each package its name, version, file and sha256.
    Raises RunError when apt is missing or refuses.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            hint = "run the build on Debian or Ubuntu"
            raise RunError(f"{program} is needed to take packages from Debian", hint=hint)
    archives = mirrors()
    if not archives:
        raise RunError("apt on this machine names no Debian archive", hint="add one to /etc/apt/sources.list.d")
    if not Path(KEYRING).exists():
        raise RunError(f"{KEYRING} is missing", hint="install the package debian-archive-keyring")
    debs = _fetch(names, suite, platform, archives[0], work, say)
    root = work / "root"
    root.mkdir()
    taken = []
    for deb in debs:
        _run(["dpkg-deb", "--extract", str(deb), str(root)], {})
        fields = _run(["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(deb)], {}).split(" ")
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        taken.append({"package": fields[0], "version": fields[1], "file": deb.name, "sha256": digest})
    return root, taken


def _fetch(names: list[str], suite: str, platform: str, archive: str, work: Path, say: Say) -> list[Path]:
    apt = work / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").write_text("")
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {archive} {suite} main\n")
    settings = {
        "Dir::Etc::SourceList": apt / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": apt,
        "Dir::State::Lists": apt / "lists",
        "Dir::State::Status": apt / "status",
        "Dir::Cache": apt / "cache",
        "APT::Architecture": ARCHITECTURE[platform],
        "APT::Architectures": ARCHITECTURE[platform],
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        # a mirror that lags behind still carries signed packages
        "Acquire::Check-Valid-Until": "false",
    }
    (apt / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    environment = {"APT_CONFIG": str(apt / "apt.conf")}
    say(f"reading Debian {suite}'s package index")
    _run(["apt-get", "-q", "update"], environment)
    say(f"fetching {', '.join(names)} and what they need")
    _run(["apt-get", "-q", "-y", "--download-only", "--no-install-recommends", "install", *names], environment)
    return sorted((apt / "cache" / "archives").glob("*.deb"))


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RunError(f"{' '.join(command[:2])} failed: {last}", hint="is the package mirror reachable?")
    return done.stdout
