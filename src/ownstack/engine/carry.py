"""What the controller obtains itself: registry packages and builds, kept in the user's cache and uploaded.

Public package registries are reached by their ordinary clients as the user has set them up, so that mirrors,
proxies and company certificates are theirs to choose.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..kit import data_path, load_toml
from ..plan import ChosenArtifact
from ..runner.core import StepError
from ..runner.fetch import fetch, sha256_of
from ..runner.npm import trust
from ..runner.unpack import unpack

Say = Callable[[str], None]


@dataclass(frozen=True)
class Carried:
    path: Path
    sha256: str


_held: dict[str, Carried] = {}
_say: Say = lambda text: None  # noqa: E731
_mirror = ""


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/ownstack`: may be deleted at any time, never needed."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "ownstack"


def held(artifact: ChosenArtifact) -> Carried:
    """The artefact's file on this machine, obtained now if it was not yet."""
    key = artifact.name + artifact.digest
    if key not in _held:
        _held[key] = obtain(artifact, _say, mirror_of())
    return _held[key]


def configure(say: Say, mirror: str) -> None:
    """How to tell what is going on, and the mirror that replaces the network, for files obtained during a run."""
    global _say, _mirror
    _say, _mirror = say, mirror


def mirror_of() -> str:
    return _mirror


def obtain(artifact: ChosenArtifact, say: Say, mirror: str = "") -> Carried:
    """Obtain one artefact on the controller, verified. Raises RunError that names the artefact and its source."""
    try:
        return _obtain(artifact, say, mirror)
    except StepError as error:  # the runner's own code fetches here too
        message = f"{artifact.name} {artifact.version}: {error.message}"
        raise RunError(message, hint=error.hint, code=error.code) from error


def _obtain(artifact: ChosenArtifact, say: Say, mirror: str) -> Carried:
    root = cache_root()
    for folder in ("files", "builds"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    result = str(artifact.details.get("result", ""))
    if artifact.kind == "build" and not (mirror and result):
        return _build(artifact, root, say)
    digest = artifact.sha256 or result
    path = root / "files" / digest
    if not path.exists() or sha256_of(str(path)) != digest:
        _file(artifact.model_copy(update={"sha256": digest}), path, say, mirror)
    return Carried(path, digest)


def by_hash(mirror: str, sha256: str) -> str:
    """Where a mirror holds a locked file that has no vendor's address: packages and builds with a known result."""
    return f"{mirror.rstrip('/')}/sha256/{sha256}"


def _file(artifact: ChosenArtifact, path: Path, say: Say, mirror: str) -> None:
    say(f"fetching {artifact.name} {artifact.version} ({artifact.source})")
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        work = Path(name)
        if artifact.url or mirror:
            got = work / "file"
            url, root = (artifact.url, mirror) if artifact.url else (by_hash(mirror, artifact.sha256), "")
            fetch(url, str(got), artifact.sha256, lambda event: None, mirror=root, size=artifact.size_bytes)
        else:
            got = PACKAGES[artifact.source](artifact, work)
        digest = sha256_of(str(got))
        if digest != artifact.sha256:
            raise RunError(
                f"{artifact.name} {artifact.version} from {artifact.source} has sha256 {digest}, "
                f"the lock says {artifact.sha256}",
                hint="nothing was installed; the package has changed or was damaged on the way",
                code="fetch-hash",
            )
        got.replace(path)


def run(command: list[str], cwd: Path, what: str, env: dict[str, str] | None = None) -> str:
    """Run a client program; on failure an error with its last lines."""
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=env
    )
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).splitlines()[-6:])
        raise RunError(
            f"{what} failed: {tail}", hint="check that this machine reaches its package registry, then run again"
        )
    return done.stdout


def _member(archive: Path, member: str, work: Path) -> Path:
    """One file out of a wheel or package archive."""
    out = work / "member"
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as stream, out.open("wb") as target:
            shutil.copyfileobj(stream, target)
    else:
        with tarfile.open(archive) as tar:
            source = tar.extractfile(member)
            if source is None:
                raise RunError(f"{archive.name} holds no file {member}")
            with out.open("wb") as target:
                shutil.copyfileobj(source, target)
    return out


def pip_download(name: str, version: str, work: Path, platform: str = "any") -> Path:
    """The wheel of a PyPI package, by pip as the user configured it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--dest", str(work)]  # fmt: skip
    machine = {"linux-x86_64": "x86_64", "linux-aarch64": "aarch64"}.get(platform)
    if machine:
        for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014"):
            command += ["--platform", f"{tag}_{machine}"]
    run([*command, f"{name}=={version}"], work, f"pip download {name}=={version}")
    return next(work.glob("*.whl"))


def _pypi(artifact: ChosenArtifact, work: Path) -> Path:
    package = artifact.details["package"]
    wheel = pip_download(package["name"], package["version"], work, artifact.platform)
    return _member(wheel, package["file"], work) if package.get("file") else wheel


def _npm(artifact: ChosenArtifact, work: Path) -> Path:
    package = artifact.details["package"]
    npm = npm_command(work)
    wanted = f"{package['name']}@{package['version']}"
    out = run([*npm, "pack", "--silent", wanted], work, f"npm pack {wanted}", env={**os.environ, **trust()})
    tarball = work / out.strip().splitlines()[-1]
    return _member(tarball, package["file"], work) if package.get("file") else tarball


def npm_command(work: Path) -> list[str]:
    """npm of this machine, or else the one in Node's wheel."""
    if shutil.which("npm"):
        return ["npm"]
    variant = _node_wheel()
    folder = cache_root() / "tools" / f"node-{variant['sha256'][:16]}"
    if not folder.exists():
        package = variant["package"]
        wheel = pip_download(package["name"], package["version"], work, variant["platform"])
        if sha256_of(str(wheel)) != variant["sha256"]:
            raise RunError(f"{wheel.name} is not the one that the lock names", code="fetch-hash")
        part = Path(tempfile.mkdtemp(dir=work)) / "node"
        unpack(str(wheel), str(part), variant["unpack"])
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(part, folder)
    return [str(folder / "bin/node"), str(folder / "lib/node_modules/npm/bin/npm-cli.js")]


def _node_wheel() -> dict[str, Any]:
    for artifact in load_toml(data_path("roles/n8n/artifacts.toml"))["artifact"]:
        for variant in artifact["variant"]:
            if artifact["name"] == "node" and variant["source"] == "pypi" and variant["platform"] == _here():
                return dict(variant)
    raise RunError("there is no npm on this machine", hint="install Node.js with npm")


def _here() -> str:
    return f"linux-{os.uname().machine}"


PACKAGES: dict[str, Callable[[ChosenArtifact, Path], Path]] = {"pypi": _pypi, "npm": _npm}


def _build(artifact: ChosenArtifact, root: Path, say: Say) -> Carried:
    """A build's result, kept under the hash of its inputs; its own hash stands beside it."""
    name = f"{artifact.details['recipe']}-{artifact.digest[:16]}-{artifact.platform}.tar.gz"
    path, note = root / "builds" / name, root / "builds" / f"{name}.json"
    if path.exists() and note.exists():
        known = json.loads(note.read_text())["sha256"]
        if known == sha256_of(str(path)):
            return Carried(path, known)
    say(f"building {artifact.name} {artifact.version} here: this takes a few minutes, once")
    recipe = importlib.import_module(f"ownstack.engine.builds.{artifact.details['recipe']}")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as work:
        out = Path(work) / "out.tar.gz"
        inner = Path(work) / "work"
        inner.mkdir()
        recipe.build(artifact.details, inner, out, say)
        digest = sha256_of(str(out))
        out.replace(path)
    note.write_text(json.dumps({"sha256": digest, "name": artifact.name, "version": artifact.version}) + "\n")
    return Carried(path, digest)


def inputs_hash(variant: dict[str, object], folder: Path) -> str:
    """The hash of a build's locked inputs: its table in artifacts.toml and the files it names."""
    digest = hashlib.sha256(json.dumps(variant, sort_keys=True).encode())
    names = variant.get("inputs", [])
    for name in names if isinstance(names, list) else []:
        digest.update((folder / str(name)).read_bytes())
    return digest.hexdigest()
