"""Where a bundle comes from: a file, a folder or an address that the user names, or the mirror. And whom to trust."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from . import BundleError, minisign
from .pack import LIMIT

if TYPE_CHECKING:
    from ..settings import Sources

NAME = "ownstack-data.tar.gz"
SIGNATURE = ".minisig"
SIGNATURE_LIMIT = 4096


def place(named: str, sources: Sources) -> str:
    """The path or address of the bundle: what the user names, else the mirror's, else that of the settings.

    With a mirror nothing else is contacted. Raises ConfigError where nobody says.
    """
    if named:
        return _file(named)
    if sources.mirror:
        return f"{sources.mirror.rstrip('/')}/ownstack/{NAME}"
    if sources.bundle:
        return _file(sources.bundle)
    raise ConfigError(
        "there is no address to take new data from",
        hint='`--from FILE|FOLDER|ADDRESS`, or `[sources] bundle = "https://..."` in the settings',
        code="bundle-source",
    )


def _file(named: str) -> str:
    """A folder, and an address that ends with a slash, hold the bundle under its usual name."""
    if "://" in named:
        return named + NAME if named.endswith("/") else named
    path = Path(named).expanduser()
    return str(path / NAME if path.is_dir() else path)


def trusted(sources: Sources) -> list[minisign.PublicKey]:
    """The keys of the settings; where these name none, those of the program. Raises ConfigError where there is none."""
    from ..kit import load_toml

    own = load_toml(Path(str(resources.files(__package__).joinpath("keys.toml"))))["keys"]
    keys = [minisign.PublicKey.parse(text) for text in sources.bundle_keys or own]
    if not keys:
        raise ConfigError(
            "no key is trusted yet: this release of ownstack comes without one, so no bundle is taken",
            hint='put the publisher\'s minisign key into the settings, `[sources] bundle_keys = ["RW..."]`, '
            "after comparing it with what he tells elsewhere",
            code="bundle-keys",
        )
    return keys


def fetch(source: str) -> tuple[bytes, str]:
    """The bundle and its signature, as they are. Raises BundleError where they cannot be had or are too large."""
    signature = _read(source + SIGNATURE, SIGNATURE_LIMIT)
    try:
        return _read(source, LIMIT), signature.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{source}{SIGNATURE} is no signature", "look at the address", "signature") from error


def _read(source: str, limit: int) -> bytes:
    try:
        if "://" not in source:
            with Path(source).open("rb") as stream:
                content = stream.read(limit + 1)
        else:
            asked = urllib.request.Request(source, headers={"User-Agent": "ownstack"})  # noqa: S310 - http(s), see check
            with _opener().open(asked, timeout=60) as answer:
                content = answer.read(limit + 1)
                length = int(answer.headers.get("Content-Length") or 0)
                if len(content) < min(length, limit):
                    raise OSError(f"the connection ended after {len(content)} of {length} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise BundleError(
            f"{source} cannot be read: {why}", "nothing was changed; look at the address, or try again later", "source"
        ) from error
    if len(content) > limit:
        raise BundleError(f"{source} is larger than {limit} bytes", "this is no bundle", "large")
    return content


class _Steady(urllib.request.HTTPRedirectHandler):
    """Whoever asks over HTTPS is not sent on to an address without it."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"it sends on to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Steady)
