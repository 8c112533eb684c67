"""Notes of a download that a crash cut short: Ollama gives up on them for ever, so they are mended first.

Ollama keeps a blob that it fetches as `<blob>-partial`, and a small JSON note for each part (N, Offset, Size,
Completed) as `<blob>-partial-<N>`, rewritten in place (its server/download.go). A note that was being rewritten when
the power went is empty, and every later pull ends with `EOF`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import Any

NOTE = re.compile(r"(sha256-[0-9a-f]{64})-partial-(\d{1,4})")


def mend(blobs: str) -> list[str]:
    """Put notes right that cannot be read: their part is fetched anew, the others go on. Gives the blobs concerned.

    Where too little is known, all notes of the blob go, and it is fetched from its beginning.
    """
    found: dict[str, dict[int, str]] = {}
    for name in sorted(os.listdir(blobs)) if os.path.isdir(blobs) and not os.path.islink(blobs) else []:
        match = NOTE.fullmatch(name)
        if match:
            found.setdefault(match[1], {})[int(match[2])] = os.path.join(blobs, name)
    mended = []
    for blob, paths in found.items():
        notes = {number: read(path) for number, path in paths.items()}
        if all(notes.values()):
            continue
        mended.append(blob)
        whole = plan(notes, size(os.path.join(blobs, f"{blob}-partial")))
        for number, path in paths.items():
            if whole is None:
                os.unlink(path)
            elif notes[number] is None:
                write(path, whole[number])
    return mended


def settled(blobs: str, seconds: float = 5.0) -> bool:
    """Wait until the notes of the parts stay as they are: all whole, and none rewritten for half a second."""
    end = time.monotonic() + seconds
    before: object = None
    quiet = time.monotonic()
    while time.monotonic() < end:
        now = _notes(blobs)
        if now != before:
            before, quiet = now, time.monotonic()
        elif time.monotonic() - quiet > 0.5 and all(note for _, note in now):
            return True
        time.sleep(0.1)
    return False


def _notes(blobs: str) -> list[tuple[str, dict[str, int] | None]]:
    found = sorted(os.listdir(blobs)) if os.path.isdir(blobs) and not os.path.islink(blobs) else []
    return [(name, read(os.path.join(blobs, name))) for name in found if NOTE.fullmatch(name)]


def read(path: str) -> dict[str, int] | None:
    """A note, or None where it is none."""
    try:
        with open(path, "rb") as stream:
            note = json.loads(stream.read(4096))
        return {key: int(note[key]) for key in ("N", "Offset", "Size", "Completed")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def plan(notes: dict[int, dict[str, int] | None], total: int) -> list[dict[str, Any]] | None:
    """All notes of a blob of `total` bytes: parts are alike but for the last. None: cannot be told."""
    sizes = {note["Size"] for number, note in notes.items() if note and number < max(notes)}
    if len(sizes) != 1 or sorted(notes) != list(range(len(notes))) or total <= 0:
        return None
    (step,) = sizes
    whole: list[dict[str, Any]] = []
    for number in range(len(notes)):
        fresh = {"N": number, "Offset": number * step, "Size": min(step, total - number * step), "Completed": 0}
        note = notes[number] or fresh
        if (note["Offset"], note["Size"]) != (fresh["Offset"], fresh["Size"]):
            return None
        whole.append(note)
    return whole if sum(note["Size"] for note in whole) == total else None


def size(path: str) -> int:
    """Bytes of the half-fetched file, which has its full length from the start; 0 where there is none."""
    with contextlib.suppress(OSError):
        return os.lstat(path).st_size
    return 0


def write(path: str, note: dict[str, Any]) -> None:
    """In place, so that the owner stays; the folder belongs to another account, which may have put a link there."""
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
    with os.fdopen(handle, "w") as stream:
        json.dump(note, stream)
        stream.flush()
        os.fsync(stream.fileno())
