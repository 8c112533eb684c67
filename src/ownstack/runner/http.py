"""A small HTTP client for services on loopback. It never uses a proxy."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from .core import StepError

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(
    method: str,
    url: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    timeout: float = 30.0,
) -> tuple[int, Any]:
    """Status and decoded answer (JSON where it is JSON, else text). Status 0: no answer at all."""
    data = None
    sent = dict(headers or {})
    if isinstance(body, bytes):
        data = body
    elif body is not None:
        data = json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    asked = urllib.request.Request(url, data=data, method=method, headers=sent)  # noqa: S310 - the box's own services
    try:
        with _opener.open(asked, timeout=timeout) as answer:
            return answer.status, _decode(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _decode(error.read())
    except (OSError, ValueError) as error:
        return 0, str(error)


def _decode(raw: bytes) -> Any:
    text = raw.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def wait_ready(url: str, seconds: float, what: str) -> float:
    """Wait until `url` answers 200; return the seconds it took. Raises StepError after `seconds`."""
    began = time.monotonic()
    last = ""
    while time.monotonic() - began < seconds:
        status, answer = request("GET", url, timeout=5)
        if status == 200:
            return time.monotonic() - began
        last = f"status {status}" if status else str(answer)
        time.sleep(0.2)
    raise StepError(
        f"{what} did not become ready in {int(seconds)} s ({last})",
        hint=f"`ownstack logs {what}` shows why",
        code="not-ready",
    )
