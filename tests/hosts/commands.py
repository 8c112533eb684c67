"""Running programs without a terminal, and the folders that the test hosts use."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Result = subprocess.CompletedProcess[str]


class CommandError(RuntimeError):
    """A program that had to succeed did not; carries what it said."""

    def __init__(self, argv: list[str], result: Result) -> None:
        said = (result.stdout + result.stderr)[-4000:]
        super().__init__(f"{' '.join(argv)} -> exit status {result.returncode}\n{said}")
        self.result = result


def run(
    *argv: str | Path,
    check: bool = True,
    data: str | None = None,
    timeout_s: float | None = 600,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Result:
    """Run a program with `data` (or nothing) on its standard input; never a terminal.

    `env` replaces the environment. Raises CommandError on failure when `check` is true.
    """
    words = [str(word) for word in argv]
    result = subprocess.run(
        words,
        input=data if data is not None else "",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        env=env if env is not None else environment(),
        cwd=cwd,
        start_new_session=True,  # so that nothing finds a terminal to ask
        check=False,
    )
    if check and result.returncode:
        raise CommandError(words, result)
    return result


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with the system folders on PATH, whatever it was started with."""
    here = dict(os.environ)
    found = here.get("PATH", "").split(":")
    missing = [folder for folder in PATH.split(":") if folder not in found]
    return {**here, "PATH": ":".join([*filter(None, found), *missing]), **extra}


def cache() -> Path:
    """`<user's cache>/ownstack/hosts`: images, keys, and the state of living hosts."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "ownstack" / "hosts"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
