"""Pins of vendors' files: what the vendor publishes about them, and newer ones.

A pin is a block of roles/*/artifacts.toml (or a row of requirements/uv.vendor) with an address and a
sha256. GitHub tells the hash and size of each release file; nodejs.org a list of hashes per version.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ownstack.data import version_key
from ownstack.runner.fetch import mirrored

Read = Callable[[str], bytes]
GITHUB = re.compile(r"https://github\.com/([^/]+/[^/]+)/releases/download/([^/]+)/(.+)")
STEP = "[[artifact.step]]"
NODE = re.compile(r"https://nodejs\.org/dist/v([^/]+)/(.+)")


class UnknownError(Exception):
    """The vendor could not be asked, or says nothing of this file."""


@dataclass(frozen=True)
class Pin:
    """One address with its hash. `size` in bytes, 0 where the pin has none.

    Pins with the same `group` in a file belong together (an archive and its overlay) and move together. A `step` is a
    version on the way to the others, and stays.
    """

    component: str
    version: str
    url: str
    sha256: str
    size: int = 0
    group: int = 0
    step: bool = False


def reader(mirror: str) -> Read:
    """Reads an address; with a mirror (folder or address) reads `<mirror>/<host>/<path>` and nothing else."""

    def read(url: str) -> bytes:
        place = mirrored(url, mirror)
        try:
            if place.startswith("/"):
                return Path(place).read_bytes()
            with urllib.request.urlopen(place, timeout=60) as answer:  # noqa: S310  (addresses of the pins)
                body: bytes = answer.read()
                return body
        except OSError as error:
            raise UnknownError(f"{place}: {error}") from error

    return read


def published(pin: Pin, read: Read) -> tuple[str, int]:
    """The sha256 and size (0: not told) that the vendor publishes for a pin's file. Raises UnknownError."""
    if match := GITHUB.fullmatch(pin.url):
        repository, tag, name = match.groups()
        release = _github(repository, f"releases/tags/{tag}", read)
        for asset in release["assets"]:
            if asset["name"] == urllib.parse.unquote(name) and str(asset.get("digest")).startswith("sha256:"):
                return asset["digest"].removeprefix("sha256:"), int(asset["size"])
        raise UnknownError(f"{repository} {tag} publishes no hash of {name}")
    if match := NODE.fullmatch(pin.url):
        version, name = match.groups()
        for line in read(f"https://nodejs.org/dist/v{version}/SHASUMS256.txt").decode().splitlines():
            if line.split()[1:] == [name]:
                return line.split()[0], 0
        raise UnknownError(f"the list of hashes of {version} does not name {name}")
    raise UnknownError("no known list of hashes for this address")


def newest(pin: Pin, read: Read, hold: int = 0) -> Pin:
    """A pin moved to the newest release, or as it is. `hold` leading version parts stay. Raises UnknownError."""
    if match := GITHUB.fullmatch(pin.url):
        return _newest_github(pin, match, read, hold)
    if NODE.fullmatch(pin.url):
        listed = json.loads(read("https://nodejs.org/dist/index.json"))
        versions = [entry["version"].removeprefix("v") for entry in listed]
        version = _best(versions, pin.version, hold)
        if version == pin.version:
            return pin
        moved = replace(pin, version=version, url=pin.url.replace(pin.version, version), size=0)
        return replace(moved, sha256=published(moved, read)[0])
    raise UnknownError("no known list of releases for this address")


def _newest_github(pin: Pin, match: re.Match[str], read: Read, hold: int) -> Pin:
    repository, tag, file = match.groups()
    release = _github(repository, "releases/latest", read)
    name = urllib.parse.unquote(file)
    fixed = ".".join(pin.version.split(".")[:hold])
    free = r"\.\d+" * (len(pin.version.split(".")) - hold)
    version = re.escape(fixed) + (free if fixed else free.removeprefix(r"\."))
    pattern = re.escape(name).replace(re.escape(pin.version), f"({version})")
    pattern = pattern.replace(re.escape(tag), re.escape(release["tag_name"]))
    for asset in release["assets"]:
        found = re.fullmatch(pattern, asset["name"])
        digest = str(asset.get("digest"))
        if not found or not digest.startswith("sha256:"):
            continue
        new = found.group(1) if found.groups() else release["tag_name"].removeprefix("v")
        if version_key(new) < version_key(pin.version) or new.split(".")[:hold] != pin.version.split(".")[:hold]:
            return pin
        url = f"https://github.com/{repository}/releases/download/{release['tag_name']}/{urllib.parse.quote(asset['name'])}"
        size = int(asset["size"])
        return replace(pin, version=new, url=url, sha256=digest.removeprefix("sha256:"), size=size)
    return pin


def _best(versions: list[str], now: str, hold: int) -> str:
    same = [version for version in versions if version.split(".")[:hold] == now.split(".")[:hold]]
    plain = [version for version in same if re.fullmatch(r"[0-9.]+", version)]
    return max([now, *plain], key=version_key)


def _github(repository: str, path: str, read: Read) -> Any:
    return json.loads(read(f"https://api.github.com/repos/{repository}/{path}"))


def floor(repository: str, read: Read) -> tuple[str, str]:
    """The version that mends every serious published advisory of a project, and why; ("", "") for none.

    Raises UnknownError.
    """
    best = ("", "")
    for advisory in _github(repository, "security-advisories?state=published&per_page=100", read):
        if advisory.get("severity") not in ("high", "critical"):
            continue
        for affected in advisory.get("vulnerabilities") or []:
            for version in re.findall(r"\d+(?:\.\d+)+", affected.get("patched_versions") or ""):
                if version_key(version) > version_key(best[0] or "0"):
                    name = advisory.get("cve_id") or advisory["ghsa_id"]
                    best = (version, f"{name}, {advisory['summary'].strip().rstrip('.')}")
    return best


# ---- where pins are written ---------------------------------------------------------------------


def table_pins(text: str) -> list[Pin]:
    """The pins of an artifacts.toml, in order. A table without a version has the one before it."""
    found, component, version, group, step = [], "", "", 0, False
    for block in _blocks(text):
        group += block.startswith("[[")
        step = block.startswith(STEP) if block.startswith("[[") else step
        component = _value(block, "name") if block.startswith("[[artifact]]") else component
        version = _value(block, "version") or version
        if _value(block, "url") and _value(block, "sha256"):
            size = int(_value(block, "size") or 0)
            found.append(Pin(component, version, _value(block, "url"), _value(block, "sha256"), size, group, step))
    return found


def table_with(text: str, old: Pin, new: Pin) -> str:
    """The text of an artifacts.toml with one pin moved."""
    blocks = _blocks(text)
    for number, block in enumerate(blocks):
        if not _is(block, old):
            continue
        for key in ("version", "url", "sha256"):
            block = re.sub(rf'(?m)^{key} = ".*"$', f'{key} = "{getattr(new, key)}"', block)
        block = re.sub(r"(?m)^size = \d+\n", "", block)
        if new.sha256 != old.sha256:  # one place told the new hash
            block = re.sub(r"(?m)^witnesses = \d+$", "witnesses = 1", block)
        if new.size:
            block = re.sub(r'(?m)^(sha256 = ".*"\n)', rf"\g<1>size = {new.size}\n", block)
        blocks[number] = block
    return "".join(blocks)


def table_with_step(text: str, old: Pin, new: Pin) -> str:
    """`table_with`, and behind the pin what it was: data of that version goes on by way of it."""
    (was,) = [block for block in _blocks(text) if _is(block, old)]
    step = re.sub(r'(?m)^id = "(.*)"$', rf'id = "\g<1>-{old.version}"', was.replace("[[artifact.variant]]", STEP))
    found = []
    for block in _blocks(table_with(text, old, new)):
        end = "\n\n" if _is(block, new) else ""
        found.append(block.rstrip("\n") + end + step if end else block)
    return "".join(found)


def _is(block: str, pin: Pin) -> bool:
    return (_value(block, "url"), _value(block, "sha256")) == (pin.url, pin.sha256)


def _blocks(text: str) -> list[str]:
    return re.split(r"(?m)^(?=\[)", text)


def _value(block: str, key: str) -> str:
    match = re.search(rf'(?m)^{key} = "?([^"\n]*?)"?$', block)
    return match.group(1) if match else ""


def row_pins(text: str) -> list[Pin]:
    """The pins of requirements/uv.vendor."""
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return [Pin("uv", version, url, digest, 0, number) for number, (_, version, digest, url) in enumerate(rows)]


def row_with(text: str, old: Pin, new: Pin) -> str:
    """The text of requirements/uv.vendor with one pin moved."""
    lines = text.splitlines(keepends=True)
    return "".join(
        line.replace(old.url, new.url).replace(old.sha256, new.sha256).replace(f" {old.version} ", f" {new.version} ")
        if old.url in line
        else line
        for line in lines
    )
