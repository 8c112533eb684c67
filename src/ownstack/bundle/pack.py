"""Writing and reading the file: the same data give the same bytes, and nothing unexpected comes out."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import json
import tarfile
import tomllib
import zlib
from collections.abc import Mapping
from typing import Any

from . import BundleError
from .files import ABOUT, known

SCHEMA = 1
LIMIT = 16 << 20  # bytes of a bundle
UNPACKED = 64 << 20  # bytes of all that is in it
MEMBERS = 400


def listing(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What `bundle.json` says of these files, whose `roles/data.toml` says which state they are."""
    state = tomllib.loads(files["roles/data.toml"].decode())
    return {
        "schema": SCHEMA,
        "serial": int(state["serial"]),
        "needs": str(state["needs"]),
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in sorted(files.items())
        },
    }


def pack(files: Mapping[str, bytes], level: int = 9) -> bytes:
    """A bundle of these files, compressed by that much. Raises BundleError where it would be too large."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        first = (json.dumps(listing(files), indent=1, sort_keys=True) + "\n").encode()
        for name, content in ((ABOUT, first), *sorted(files.items())):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=level, mtime=0, filename="") as stream:
        stream.write(plain.getvalue())
    if packed.tell() > LIMIT:
        raise BundleError("the bundle would be too large", "leave something out", "large")
    return packed.getvalue()


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What `bundle.json` says, and all files by name. Raises BundleError where anything is not as it must be.

    Names are looked at after `bundle.json`: newer data may have files that this program does not know.
    """
    try:
        found = _members(_plain(content))
        about = json.loads(found.pop(ABOUT))
        schema, serial, needs = about["schema"], int(about["serial"]), str(about["needs"])
        listed = {str(name): (str(file["sha256"]), int(file["size"])) for name, file in about["files"].items()}
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken(f"it cannot be read: {type(error).__name__}: {error}") from error
    if schema != SCHEMA:
        raise BundleError(
            f"the bundle is of kind {schema}, this program knows kind {SCHEMA}", "take a newer ownstack", "needs"
        )
    check_serial(serial)
    check_needs(needs, serial)
    for name, data in found.items():
        if not known(name):
            raise broken(f"it holds a file {name!r} that is no data of this program")
        if (hashlib.sha256(data).hexdigest(), len(data)) != listed.get(name):
            raise broken(f"{name} is not as its list says")
    missing = sorted(set(listed) - set(found))
    if missing:
        raise broken(f"without {', '.join(missing[:3])}")
    return about, found


def broken(why: str) -> BundleError:
    return BundleError(f"the bundle is not taken: {why}", "nothing was changed; fetch it anew", "broken")


def check_serial(serial: int) -> None:
    """A serial is a day and two digits. One far in the future would keep all later bundles out."""
    try:
        day = datetime.datetime.strptime(str(serial // 100), "%Y%m%d").date()
    except ValueError:
        raise broken(f"its serial {serial} is no day with two digits") from None
    if day > datetime.date.today() + datetime.timedelta(days=7):
        raise broken(f"its serial {serial} lies in the future (or the clock of this machine is wrong)")


def check_needs(needs: str, serial: int) -> None:
    """The code has to understand the data."""
    from .. import __version__
    from ..data import version_key

    if version_key(needs) > version_key(__version__):
        raise BundleError(
            f"the data {serial} need ownstack {needs}, this is {__version__}",
            f"install ownstack {needs} or later first: it carries data of its own",
            "needs",
        )


def _plain(content: bytes) -> bytes:
    """The tar, of bearable size however small the file is."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        plain = stream.read(UNPACKED + 1)
    if len(plain) > UNPACKED:
        raise broken(f"more than {UNPACKED >> 20} MiB come out of it")
    return plain


def _members(plain: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
        for member in tar:
            name = member.name
            if member.type != tarfile.REGTYPE or member.pax_headers:
                raise broken(f"{name!r} is no plain file")
            if name in found:
                raise broken(f"{name!r} is in it twice")
            if len(found) >= MEMBERS:
                raise broken(f"more than {MEMBERS} files are in it")
            stream = tar.extractfile(member)
            found[name] = stream.read() if stream else b""
            if len(found[name]) != member.size:
                raise broken(f"it ends within {name!r}")
    return found
