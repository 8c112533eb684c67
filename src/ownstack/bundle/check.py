"""Everything that has to hold before a bundle counts: who signed it, and that this program can work with all of it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import tempfile
import tomllib
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import rows
from ..errors import OwnstackError
from ..kit import data_from, load_toml, own_path
from ..settings import ROLE_NAMES
from . import BundleError, minisign
from .files import GRAPHS, REQUIRED, ROLE_FILES
from .pack import broken, unpack

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
HASH = re.compile(r"[0-9a-f]{64}")
PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,_-]+\])?==\S+( ; .*)?")


@dataclass(frozen=True)
class Bundle:
    """A bundle whose signature holds."""

    serial: int
    needs: str
    files: dict[str, bytes]
    about: dict[str, Any]
    key: str
    comment: str


def opened(content: bytes, signature: str, keys: list[minisign.PublicKey]) -> Bundle:
    """The signature is checked before a byte of the content is looked at. Raises BundleError."""
    try:
        key, comment = minisign.verify(content, signature, keys)
    except minisign.SignatureError as error:
        raise BundleError(
            f"the bundle is not taken: {error}",
            "nothing was changed; take it from its publisher, and compare the key with what he tells elsewhere",
            "signature",
        ) from error
    about, files = unpack(content)
    return Bundle(int(about["serial"]), str(about["needs"]), files, about, key.name, comment)


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Lay the files of a bundle out in a folder. Their names were looked at."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def look(files: Mapping[str, bytes], serial: int) -> None:
    """`check` for files that lie nowhere yet."""
    with tempfile.TemporaryDirectory(prefix="ownstack-") as name:
        write(files, Path(name))
        check(Path(name), serial)


def check(folder: Path, serial: int) -> None:
    """Load all data that lie in `folder` as the program would. Raises BundleError that names the file."""
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise broken(f"without {', '.join(missing[:3])}")
    try:
        state = load_toml(folder / "roles" / "data.toml")
        if state["serial"] != serial:
            raise broken(f"roles/data.toml says {state['serial']}, its list {serial}")
        for role in ROLE_FILES:
            _artifacts(role, folder)
        with data_from(folder, serial):
            _load()
        _locks(folder)
    except BundleError:
        raise
    except OwnstackError as error:
        raise broken(error.message.replace(f"{folder}/", "")) from error
    except Exception as error:  # whatever a loader says to data of a wrong shape
        raise broken(f"its data cannot be loaded: {type(error).__name__}: {error}") from error


def _load() -> None:
    """The loaders of the program itself; what they read later is read now."""
    from ..data import load_data
    from ..fitting.replay import program
    from ..hardware.cards import named

    data = load_data(ROLE_NAMES)
    for floor in data.floors.floor.values():
        if not PLAIN.fullmatch(floor):
            raise ValueError(f"the floor {floor!r} is no version")
    for entry in data.fit.catalogue:
        for quant in entry.quants:
            entry.model(quant)
    unknown = {tag for ranks in data.fit.ranks.values() for tag in ranks} - set(data.fit.catalogue.entries)
    if unknown or not data.fit.profiles:
        raise ValueError(f"ranks of models that are not in the catalogue: {', '.join(sorted(unknown)[:3])}")
    for mode in GRAPHS:
        program("", mode)
    named()


def _artifacts(role: str, folder: Path) -> None:
    """What the loader does not ask: nothing names a path, a recipe, an address or a name that it must not."""
    where = f"roles/{role}/artifacts.toml"
    artifacts = load_toml(folder / where)["artifact"]
    own = {artifact["name"] for artifact in load_toml(own_path(where))["artifact"]}
    if not own <= {artifact["name"] for artifact in artifacts}:
        raise broken(f"{where}: not all that this program installs is in it")
    for artifact in artifacts:
        for variant in rows(artifact):
            at = f"{where}: {artifact['name']}/{variant.get('id', '?')}"
            for key in ("id", "version", "platform", "kind"):
                if not PLAIN.fullmatch(str(variant.get(key, ""))):
                    raise broken(f"{at}: {key} {variant.get(key)!r}")
            if not PLAIN.fullmatch(artifact["name"]):
                raise broken(f"{at}: its name is none")
            _variant(at, role, variant)
            for which in ("", "full_"):
                _same(at, folder / "roles" / role, variant.get(f"{which}lock"), variant.get(f"{which}sha256"))


def _same(at: str, folder: Path, lock: str | None, sha256: str | None) -> None:
    """A lock whose hash the table tells is that lock."""
    if lock and sha256 and hashlib.sha256((folder / lock).read_bytes()).hexdigest() != sha256:
        raise broken(f"{at}: {lock} is not the one that it names")


def _variant(at: str, role: str, variant: dict[str, Any]) -> None:
    names = [str(name) for name in (*variant.get("inputs", ()), variant.get("lock"), variant.get("full_lock")) if name]
    strange = [name for name in names if name not in ROLE_FILES[role]]
    if strange:
        raise broken(f"{at}: reads {strange[0]!r}")
    recipe = variant.get("recipe")
    if recipe is not None and not (
        str(recipe).isidentifier() and importlib.util.find_spec(f"ownstack.engine.builds.{recipe}")
    ):
        raise broken(f"{at}: this program has no recipe {recipe!r}")
    for key, value in _texts(variant):
        if key == "url":
            check_url(at, value)
        elif key in ("sha256", "result", "full_sha256"):
            if not HASH.fullmatch(value):
                raise broken(f"{at}: {key} is no hash")
        elif value.startswith(("/", "-", "~")) or ".." in value.split("/") or not value.isprintable():
            raise broken(f"{at}: {key} {value[:80]!r}")


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a table, each with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def check_url(at: str, url: str) -> None:
    """Programs come over HTTPS, from a host with a name."""
    parts = urllib.parse.urlsplit(url)
    named = re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z][a-z0-9-]+", parts.netloc)
    if parts.scheme != "https" or not named or ".." in parts.path.split("/"):
        raise broken(f"{at}: url {url[:120]!r}")


def _locks(folder: Path) -> None:
    """Every package is pinned and has its hash."""
    for role, names in ROLE_FILES.items():
        for name in names:
            path = folder / "roles" / role / name
            if name.endswith(".lock") or name in ("toolchain.txt", "minilm.txt"):
                _pinned(f"roles/{role}/{name}", path.read_text(encoding="utf-8"))
    packages = json.loads((folder / "roles/n8n/package-lock.json").read_bytes())["packages"]
    for name, package in packages.items():
        if name and not (package.get("integrity") or package.get("link")):
            raise broken(f"roles/n8n/package-lock.json: {name} without a hash")
    json.loads((folder / "roles/n8n/package.json").read_bytes())
    tomllib.loads((folder / "roles/n8n/prune.toml").read_text(encoding="utf-8"))
    if "\nrequire " not in (folder / "roles/ollama/go.mod").read_text(encoding="utf-8"):
        raise broken("roles/ollama/go.mod requires nothing")
    for line in (folder / "roles/ollama/go.sum").read_text(encoding="utf-8").splitlines():
        if not re.fullmatch(r"\S+ \S+ h1:[A-Za-z0-9+/]{43}=", line):
            raise broken(f"roles/ollama/go.sum: {line[:80]!r}")


def _pinned(where: str, text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        requirement, _, hashes = line.split("#")[0].strip().partition("--hash=")
        if not requirement and not hashes:
            continue
        if not PINNED.fullmatch(requirement.strip()) or not re.fullmatch(
            r"sha256:[0-9a-f]{64}(\s+--hash=sha256:[0-9a-f]{64})*\s*", hashes
        ):
            raise broken(f"{where}: {line.strip()[:80]!r} is not one version with its hashes")
