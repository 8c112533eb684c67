"""A small file server for the lab: byte ranges, HEAD, a log of what was asked, and faults on request."""

from __future__ import annotations

import io
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHUNK = 1 << 18


@dataclass(frozen=True)
class Answer:
    """What lies at an address: a file or bytes, and headers beyond length and range."""

    body: Path | bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.body.stat().st_size if isinstance(self.body, Path) else len(self.body)


@dataclass
class Asked:
    """One request: who, what, which range, and how many bytes of body were sent (so far).

    It is noted before the answer goes out, so whoever has the answer finds it in the list.
    """

    client: str
    method: str
    host: str
    path: str
    range: str
    status: int = 404
    sent: int = 0


@dataclass
class Fault:
    """What goes wrong when a path is asked for: `times` times, then never again (-1: always)."""

    cut_after: int | None = None  # close the connection after this many bytes of body
    status: int | None = None  # answer with this error instead
    flip: bool = False  # one bit of the body is wrong
    times: int = -1

    def use(self) -> bool:
        if self.times == 0:
            return False
        self.times -= self.times > 0
        return True


class FileServer:
    """Serves what `resolve(host, path)` finds. Use as a context manager; `url` is its address.

    `rate` limits each answer to that many bytes a second. With `certificate` (one PEM with key) it speaks TLS.
    """

    def __init__(
        self, resolve: Callable[[str, str], Answer | None], address: str = "127.0.0.1", port: int = 0,
        certificate: Path | None = None,
    ) -> None:  # fmt: skip
        self.resolve = resolve
        self.asked: list[Asked] = []
        self.faults: dict[str, Fault] = {}
        self.rate: int | None = None
        self.server = ThreadingHTTPServer((address, port), _handler(self))
        self.server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # handshakes belong to the request's own thread, or one silent client would block all
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        host, bound = self.server.server_address[:2]
        self.url = f"{'https' if certificate else 'http'}://{host!s}:{bound}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, args=(0.02,), name=f"serve {self.url}", daemon=True
        )
        self.thread.start()

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    def __enter__(self) -> FileServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def folder(root: Path, *, by_host: bool = False) -> Callable[[str, str], Answer | None]:
    """Files below `root`; with `by_host` the request's Host header names the first folder.

    A path that leaves `root` is not found.
    """

    def resolve(host: str, path: str) -> Answer | None:
        inside = Path(host, path.lstrip("/")) if by_host else Path(path.lstrip("/"))
        target = (root / inside).resolve()
        if not target.is_relative_to(root.resolve()):
            return None
        if target.is_dir():
            return Answer(_listing(target), {"Content-Type": "text/html; charset=utf-8"})
        return Answer(target) if target.is_file() else None

    return resolve


def _listing(target: Path) -> bytes:
    """A page of links, as package clients expect of a folder; they hold for an address without a slash at its end."""
    names = [urllib.parse.quote(path.name) for path in sorted(target.iterdir())]
    links = "".join(f'<a href="{urllib.parse.quote(target.name)}/{name}">{name}</a>\n' for name in names)
    return f"<!DOCTYPE html><html><body>\n{links}</body></html>\n".encode()


def span(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single `Range` header (RFC 9110 14.1.2); None: no usable range, send all.

    Raises ValueError for a range that lies outside the file (status 416).
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if not match or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    if start >= size or start > end:
        raise ValueError("range not satisfiable")
    return start, end


def _handler(owner: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _serve(owner, self)

        do_HEAD = do_GET  # noqa: N815 (the name is the library's)

        def log_message(self, *_: Any) -> None:
            """Silent: the owner keeps the list."""

    return Handler


def _serve(owner: FileServer, request: BaseHTTPRequestHandler) -> None:
    path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
    host = request.headers.get("Host", "").rpartition(":")[0] or request.headers.get("Host", "")
    asked = Asked(request.client_address[0], request.command, host, path, request.headers.get("Range", ""))
    fault = owner.faults.get(path)
    if fault is not None and not fault.use():
        fault = None
    answer = owner.resolve(host, path)
    part = None
    if fault is not None and fault.status is not None:
        asked.status = fault.status
    elif answer is not None:
        try:
            part = span(asked.range, answer.size)
            asked.status = 206 if part else 200
        except ValueError:
            asked.status = 416
    owner.asked.append(asked)
    if answer is None or asked.status >= 400:
        _refuse(request, asked.status, answer)
    else:
        _answer(owner, request, answer, asked, part, fault or Fault())


def _refuse(request: BaseHTTPRequestHandler, status: int, answer: Answer | None) -> None:
    request.send_response(status)
    if status == 416 and answer is not None:
        request.send_header("Content-Range", f"bytes */{answer.size}")
    request.send_header("Content-Length", "0")
    request.end_headers()


def _answer(
    owner: FileServer, request: BaseHTTPRequestHandler, answer: Answer, asked: Asked, part: tuple[int, int] | None,
    fault: Fault,
) -> None:  # fmt: skip
    size = answer.size
    start, end = part or (0, size - 1)
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **answer.headers}
    if part:
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    request.send_response(asked.status)
    for name, value in {**headers, "Content-Length": str(end - start + 1)}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "HEAD":
        return
    left = end - start + 1 if fault.cut_after is None else min(end - start + 1, fault.cut_after)
    with answer.body.open("rb") if isinstance(answer.body, Path) else io.BytesIO(answer.body) as stream:
        stream.seek(start)
        while asked.sent < left:
            block = stream.read(min(CHUNK, left - asked.sent))
            if fault.flip and asked.sent == 0:
                block = bytes([block[0] ^ 1]) + block[1:]
            asked.sent += len(block)
            try:
                request.wfile.write(block)
            except OSError:  # the client has gone
                break
            rate = owner.rate  # another thread may set it
            if rate:
                time.sleep(len(block) / rate)
    if asked.sent < end - start + 1:
        request.close_connection = True
