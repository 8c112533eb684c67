"""What every step shares: events, errors, atomic files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Event = dict[str, Any]
Emit = Callable[[Event], None]
Spec = dict[str, Any]
Result = dict[str, Any]


class StepError(Exception):
    """A step failed: what, and how to go on."""

    def __init__(self, message: str, *, hint: str = "", code: str = "step-failed") -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = "then run again: it goes on where it stopped"
FORBIDDEN = "let this account write there (`ls -ld`, `lsattr -d` and `mount` show what forbids it)"
# what the machine refuses, wherever in a step: no fault of ours. Error number -> code, and what its owner has to do
REFUSED = {
    errno.ENOSPC: ("disk-full", "free disk space"),
    errno.EDQUOT: ("disk-full", "free disk space, or raise the quota"),
    errno.EROFS: ("read-only", "make the folder writable"),
    errno.EACCES: ("not-permitted", FORBIDDEN),
    errno.EPERM: ("not-permitted", FORBIDDEN),
    errno.EFBIG: ("file-too-large", "take a file system that holds files of this size (FAT32 ends at 4 GiB)"),
    errno.EIO: ("disk-error", "the disk may be failing: `journalctl -k` says more"),
}


def refused(what: str, error: BaseException) -> StepError | None:
    """An error that the machine's owner has to mend, as one that says so; None for all others."""
    code, hint = REFUSED.get(error.errno or 0, ("", "")) if isinstance(error, OSError) else ("", "")
    return StepError(f"{what}: {error}", hint=f"{hint}, {AGAIN}", code=code) if code else None


def progress(emit: Emit, what: str, done: int = 0, total: int | None = None) -> None:
    """Report progress in bytes, or in items where `what` says so."""
    emit({"event": "progress", "what": what, "done": done, "total": total})


@contextlib.contextmanager
def heartbeat(emit: Emit, what: str, every_s: float = 5.0) -> Iterator[None]:
    """Say that a long silent piece of work is still going on."""
    stop = threading.Event()
    began = time.monotonic()

    def beat() -> None:
        while not stop.wait(every_s):
            progress(emit, f"{what} ({int(time.monotonic() - began)} s)")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def sync_folder(path: str) -> None:
    """Make a rename in `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: str, data: bytes, mode: int = 0o600, uid: int = -1, gid: int = -1) -> None:
    """Write `data` under a temporary name, with its final mode and owner, then rename it into place."""
    folder = os.path.dirname(path) or "."
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".ownstack-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if uid >= 0 or gid >= 0:
            os.chown(temporary, uid, gid)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(folder)


def read_json(path: str, default: Any = None) -> Any:
    """The JSON in `path`, or `default` where there is none or it is cut short."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return default


def write_json(path: str, value: Any, mode: int = 0o644) -> None:
    write_file(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode(), mode)


def lay_ahead(path: str, value: Any) -> None:
    """Write the next state beside the one of now, while there is space for it."""
    write_json(f"{path}.next", value)


def take_ahead(path: str) -> bool:
    """Let the state that was laid ahead be that of now, by a rename: a full disk is no hindrance. False without one."""
    try:
        os.replace(f"{path}.next", path)
    except FileNotFoundError:
        return False
    sync_folder(os.path.dirname(path))
    return True


def ids(owner: str = "", group: str = "") -> tuple[int, int]:
    """uid and gid of the named account and group; -1 where no name is given."""
    import grp
    import pwd

    try:
        uid = pwd.getpwnam(owner).pw_uid if owner else -1
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        raise StepError(f"no such account: {error}", hint="run `ownstack up` again: it makes the accounts") from error
    return uid, gid
