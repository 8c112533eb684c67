"""Holds a box for the run at the other end of standard input, and writes its journal (see engine/hold.py).

Runs as `python3 -I -c TEXT PREFIX JOURNAL WHO SILENCE_S MOST KEPT`, before there is a runner: it stands alone. Each
line is answered: `ok` once it is on the disk, or `no` and the reason. A line `b ...` may make the journal's folder, a
line `e ...` may not: the last step of `down --purge` takes it away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import time


def lock_path(prefix: str, uid: int) -> str:
    own = f"/run/user/{uid}"
    if uid == 0:
        return f"/run/{prefix}.lock"
    return f"{own}/{prefix}.lock" if os.access(own, os.W_OK) else f"/tmp/{prefix}-{uid}.lock"  # noqa: S108


def say(text: str) -> None:
    sys.stdout.write(text.replace("\n", " ") + "\n")
    sys.stdout.flush()


def taken(handle: int) -> bool:
    """Get the lock; one that a dying run is about to let go is waited for."""
    for _ in range(30):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def cut(journal: str, most: int, kept: int) -> None:
    """Leave the newer part of a journal that has grown long."""
    if not os.path.exists(journal) or os.path.getsize(journal) <= most:
        return
    with open(journal, "rb") as stream:
        stream.seek(-kept, os.SEEK_END)
        text = stream.read()
    with open(journal + ".part", "wb") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())  # otherwise a power cut after the rename may leave none of it
    os.replace(journal + ".part", journal)


def answer(line: bytes, journal: str) -> str:
    kind, _, text = line.partition(b" ")
    if kind == b"beat":
        return "ok"
    try:
        if kind == b"b":
            os.makedirs(os.path.dirname(journal), exist_ok=True)
        elif not os.path.isdir(os.path.dirname(journal)):
            return "ok"
        with open(journal, "ab") as stream:
            stream.write(text + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return f"no {error.strerror or error}"
    return "ok"


def main(prefix: str, journal: str, who: str, silence: str, most: str, kept: str) -> None:
    os.umask(0o022)
    path = lock_path(prefix, os.getuid())
    try:
        # in /tmp anybody can lay a link under this name: to a file that would be emptied
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError:
        return say(f"missing {path}")
    if not taken(handle):
        return say("busy " + os.read(handle, 500).decode(errors="replace"))
    os.ftruncate(handle, 0)
    os.write(handle, f"{who} since {time.strftime('%Y-%m-%d %H:%M')}\n".encode())
    with contextlib.suppress(OSError):  # a disk that is full or read-only is told at the first line
        cut(journal, int(most), int(kept))
    say("held")
    buffer = b""
    while select.select([0], [], [], float(silence))[0]:
        data = os.read(0, 65536)
        if not data:
            break
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            say(answer(line, journal))
    os.ftruncate(handle, 0)
    return None


if __name__ == "__main__":
    main(*sys.argv[1:7])
