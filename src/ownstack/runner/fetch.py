"""Fetching: to a temporary name, resumable, verified, then moved. No verification, no file."""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.client
import os
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from .core import Emit, Event, Result, Spec, StepError, progress, sync_folder
from .journal import outlive

CHUNK = 1 << 20
TRIES = 4


def sha256_of(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while True:
            block = stream.read(CHUNK)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def mirrored(url: str, mirror: str) -> str:
    """Where a mirror holds what lies at `url`: under `<host>/<path>`. A mirror replaces the network.

    In a folder the path stands without an address's escapes.
    """
    if not mirror:
        return url
    parts = urllib.parse.urlsplit(url)
    if mirror.startswith("/"):
        return os.path.join(mirror, parts.netloc, urllib.parse.unquote(parts.path).lstrip("/"))
    return f"{mirror.rstrip('/')}/{parts.netloc}{parts.path}"


def fetch(url: str, dest: str, sha256: str, emit: Emit, *, mirror: str = "", size: int | None = None) -> bool:
    """Bring `url` to `dest` with the given hash; return whether anything was transferred.

    A partial download lies beside `dest` as `.part` and is continued. Raises StepError with the code
    `fetch-hash` when the bytes are not the ones the lock names, `fetch-network` when no answer came.
    """
    if os.path.exists(dest) and sha256_of(dest) == sha256:
        return False
    os.makedirs(os.path.dirname(dest), exist_ok=True)
    source = mirrored(url, mirror)
    part = dest + ".part"
    if source.startswith("/"):
        inside = os.path.normpath(source).startswith(os.path.normpath(mirror or "/").rstrip("/") + "/")
        if not (inside and os.path.isfile(source)):
            raise StepError(f"the mirror has no {source}", hint="complete the mirror folder", code="fetch-missing")
        shutil.copyfile(source, part)
    else:
        _download(source, part, emit, size)
    got = sha256_of(part)
    if got != sha256:
        os.unlink(part)
        raise StepError(
            f"{source} has sha256 {got}, the lock says {sha256}",
            hint="nothing was installed; try again, and if it stays so the source has changed: do not use it",
            code="fetch-hash",
        )
    os.replace(part, dest)
    sync_folder(os.path.dirname(dest))
    return True


def _download(url: str, part: str, emit: Emit, size: int | None) -> None:
    last = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(2**attempt)
        try:
            _download_once(url, part, emit, size)
            return
        except urllib.error.HTTPError as error:
            last = f"{error.code} {error.reason}"
            if error.code == 416:
                os.unlink(part)
            elif error.code < 500:
                break
        except OSError as error:
            if error.errno == 28:
                raise StepError(
                    f"no space left while fetching {url}", hint="free disk space", code="disk-full"
                ) from error
            last = str(getattr(error, "reason", error))
        except http.client.HTTPException as error:  # what answers there speaks no HTTP, or stops in the middle of it
            last = f"{type(error).__name__}: {error}"
    raise StepError(
        f"cannot fetch {url}: {last}",
        hint="run the same command again: it continues where it stopped",
        code="fetch-network",
    )


def _download_once(url: str, part: str, emit: Emit, size: int | None) -> None:
    have = os.path.getsize(part) if os.path.exists(part) else 0
    headers = {"User-Agent": "ownstack"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:  # noqa: S310
        resumed = answer.status == 206
        done = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else size
        last = 0.0
        with open(part, "ab" if resumed else "wb") as stream:
            while True:
                block = answer.read(CHUNK)
                if not block:
                    break
                stream.write(block)
                done += len(block)
                if time.monotonic() - last > 0.5:
                    last = time.monotonic()
                    progress(emit, os.path.basename(part)[: -len(".part")], done, total)
    if total is not None and done < total:
        raise OSError(f"connection closed after {done} of {total} bytes")


def file(spec: dict[str, Any], emit: Emit) -> Result:
    """Fetch one file. spec: url, dest, sha256, mirror, size."""
    here = os.path.exists(spec["dest"]) and sha256_of(spec["dest"]) == spec["sha256"]
    if here or spec.get("dry"):
        return {"changed": not here}
    changed = fetch(
        spec["url"], spec["dest"], spec["sha256"], emit, mirror=spec.get("mirror", ""), size=spec.get("size")
    )
    return {"changed": changed, "data": {"path": spec["dest"]}}


def many(spec: Spec, emit: Emit) -> Result:
    """Fetch several files at the same time; each lies under its hash in `work` until its release is made.

    spec: files [{name, url, sha256, size, release}], work, mirror. A file whose release is complete is not fetched.
    """
    missing = [
        item
        for item in spec["files"]
        if not os.path.exists(os.path.join(item["release"], ".ownstack-release.json"))
        and not os.path.exists(os.path.join(spec["work"], item["sha256"]))
    ]
    if not missing or spec.get("dry"):
        return {"changed": bool(missing), "data": {"files": [item["name"] for item in missing]}}
    state: dict[str, tuple[int, int]] = {item["name"]: (0, item.get("size") or 0) for item in missing}
    lock = threading.Lock()

    def one(item: Spec) -> None:
        def tell(event: Event) -> None:
            with lock:
                state[item["name"]] = (event["done"], event.get("total") or 0)
                done, total = (sum(column) for column in zip(*state.values()))
                progress(emit, ", ".join(state), done, total or None)

        dest = os.path.join(spec["work"], item["sha256"])
        fetch(item["url"], dest, item["sha256"], tell, mirror=spec.get("mirror", ""), size=item.get("size"))

    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        for future in [pool.submit(one, item) for item in missing]:
            future.result()
    return {"changed": True, "data": {"files": [item["name"] for item in missing]}}


def many_outliving(spec: Spec, emit: Emit) -> Result:
    """`many` in a unit of its own, so that it goes on when the connection ends.

    spec: also run_dir, manager, unit, runner.
    """
    inner = {key: spec[key] for key in ("files", "work", "mirror", "run_dir")}
    before = many({**inner, "dry": True}, emit)
    if not before["changed"] or spec.get("dry"):
        return before
    return outlive("fetch.many", inner, spec["manager"], spec["unit"], spec["runner"], emit)


def reachable(spec: Spec, emit: Emit) -> Result:
    """Which of the named https hosts answer. spec: hosts. Used by the preflight."""
    answers = {}
    for host in spec["hosts"]:
        try:
            request = urllib.request.Request(f"https://{host}/", method="HEAD", headers={"User-Agent": "ownstack"})
            urllib.request.urlopen(request, timeout=spec.get("timeout", 5)).close()  # noqa: S310
            answers[host] = ""
        except urllib.error.HTTPError:
            answers[host] = ""
        except OSError as error:
            answers[host] = str(getattr(error, "reason", error)) or type(error).__name__
    return {"changed": False, "data": answers}


STEPS = {"file": file, "many": many, "many_outliving": many_outliving, "reachable": reachable}
