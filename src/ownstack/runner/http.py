"""A small HTTP client for services on loopback. It never uses a proxy."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO, Any

from .core import FULL, StepError

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


def download(url: str, out: IO[bytes], headers: dict[str, str] | None = None, timeout: float = 600.0) -> str:
    """Write what `url` answers to `out`; its SHA-256. Raises StepError where the answer is not whole."""
    asked = urllib.request.Request(url, headers=headers or {})  # noqa: S310 - the box's own services
    sha256 = hashlib.sha256()
    try:
        with _opener.open(asked, timeout=timeout) as answer:
            for piece in iter(lambda: answer.read(1 << 20), b""):
                sha256.update(piece)
                out.write(piece)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in FULL:  # it is this side's disk
            raise
        raise StepError(f"{url.split('?')[0]} was not fetched: {error}", hint="run again", code="fetch") from error
    return sha256.hexdigest()


def send_file(url: str, path: str, headers: dict[str, str], timeout: float = 3600.0) -> tuple[int, Any]:
    """POST a file as the form field `snapshot`, streamed; status and decoded answer. Status 0: no answer at all."""
    mark = f"ownstack{os.urandom(12).hex()}"
    head = (
        f'--{mark}\r\nContent-Disposition: form-data; name="snapshot"; filename="part"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{mark}--\r\n".encode()
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    try:
        connection.putrequest("POST", f"{parts.path}?{parts.query}" if parts.query else parts.path)
        length = len(head) + os.path.getsize(path) + len(tail)
        sent = {**headers, "Content-Type": f"multipart/form-data; boundary={mark}", "Content-Length": str(length)}
        for name, value in sent.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(head)
        with open(path, "rb") as stream:
            for piece in iter(lambda: stream.read(1 << 20), b""):
                connection.send(piece)
        connection.send(tail)
        answer = connection.getresponse()
        return answer.status, _decode(answer.read())
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


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
