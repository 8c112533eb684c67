"""Ollama from its Go module, with the llama-server of Debian's llama.cpp packages as its engine.

From 0.30 on Ollama is a Go server that starts `llama-server` for each model. The archive has the vendor's layout
(`bin/ollama`, `lib/ollama/llama-server`) and beside it `engine/`: Debian's programs with every library they need, libc
and loader included, so that they run on older systems too. `build.json` in it says what was taken from where.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
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
MODULE = "github.com/ollama/ollama"
GOARCH = {"linux-x86_64": "amd64", "linux-aarch64": "arm64"}
LOADER = {"linux-x86_64": "ld-linux-x86-64.so.2", "linux-aarch64": "ld-linux-aarch64.so.1"}
PROGRAMS = ("llama-server", "llama-quantize")
# Ollama puts every folder below lib/ollama on LD_LIBRARY_PATH, where a foreign libc would kill the host's own
# programs: so the engine lies outside. ggml looks for its backends beside the running program, which is the loader.
WRAPPER = """#!/bin/sh
here=${0%/*}/../../engine
exec "$here/LOADER" --library-path "$here" "$here/PROGRAM.bin" "$@"
"""


def build(variant: Mapping[str, Any], work: Path, out: Path, say: Say) -> None:
    """Make the archive `out`. `variant` is the variant's table of roles/ollama/artifacts.toml.

    Raises RunError when a tool or a package is missing.
    """
    role = data_path("roles/ollama")
    tree = work / "tree"
    (tree / "bin").mkdir(parents=True)
    made = _server(role, variant, work, tree / "bin" / "ollama", say)
    rule = variant["debian"]
    packages = work / "debian"
    packages.mkdir()
    root, taken = debian.packages(list(rule["packages"]), rule["suite"], variant["platform"], packages, say)
    say("laying out the engine")
    _engine(root, variant["platform"], tree)
    date = time.strftime("%Y-%m-%d")
    record = {"ollama": variant["version"], **made, "suite": rule["suite"], "debian": taken, "date": date}
    (tree / "build.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    _pack(tree, out)


def _server(role: Path, variant: Mapping[str, Any], work: Path, program: Path, say: Say) -> dict[str, str]:
    """Compile `bin/ollama`; say which compilers did it."""
    module = work / "module"
    module.mkdir()
    for name in ("go.mod", "go.sum"):
        shutil.copyfile(role / name, module / name)
    lines = (module / "go.mod").read_text().splitlines()
    minimum = next(line.split()[1] for line in lines if line.startswith("go "))
    if f"{MODULE} v{variant['version']}" not in (line.strip().removesuffix(" // indirect") for line in lines):
        raise RunError(f"roles/ollama/go.mod does not require {MODULE} v{variant['version']}")
    locks = role / "toolchain.txt"
    (work / "go").mkdir()
    (work / "zig").mkdir()
    go = toolchain.go(minimum, locks, work, say)
    compilers, words = toolchain.compiler(variant["platform"], locks, work, say)
    environment = {
        "CGO_ENABLED": "1",
        "GOOS": "linux",
        "GOARCH": GOARCH[variant["platform"]],
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        **compilers,
    }
    if not os.environ.get("HOME"):
        environment |= {"GOPATH": str(work / "gopath"), "GOCACHE": str(work / "gocache")}
    say(f"compiling Ollama {variant['version']} (one to three minutes)")
    flags = f"-s -w -X={MODULE}/version.Version={variant['version']}"
    toolchain.run([str(go), "build", "-trimpath", f"-ldflags={flags}", "-o", str(program), MODULE], environment, module)
    return {"go": toolchain.run([str(go), "version"], {"GOTOOLCHAIN": "local"}).strip(), "compiler": words}


def _engine(root: Path, platform: str, tree: Path) -> None:
    """Gather the programs, ggml's backends and every library they ask for into `engine/`."""
    library = root / "usr" / "lib" / f"{platform.removeprefix('linux-')}-linux-gnu"
    places = [library, library / "llama"]
    engine, wrappers = tree / "engine", tree / "lib" / "ollama"
    engine.mkdir()
    wrappers.mkdir(parents=True)
    waiting = [LOADER[platform]]
    for name in PROGRAMS:
        shutil.copyfile(root / "usr" / "bin" / name, engine / f"{name}.bin")
        waiting += needed(engine / f"{name}.bin")
        wrapper = wrappers / name
        wrapper.write_text(WRAPPER.replace("LOADER", LOADER[platform]).replace("PROGRAM", name))
    for backend in sorted((library / "ggml" / "backends0").glob("libggml-*.so")):
        shutil.copyfile(backend, engine / backend.name)
        waiting += needed(backend)
    while waiting:
        name = waiting.pop()
        if (engine / name).exists():
            continue
        source = next((place / name for place in places if (place / name).exists()), None)
        if source is None:
            raise RunError(f"the Debian packages taken do not hold {name}", hint="the packages have changed: report it")
        shutil.copyfile(source, engine / name)
        waiting += needed(engine / name)
    for path in [*engine.iterdir(), *wrappers.iterdir()]:
        path.chmod(0o755)


def _pack(tree: Path, out: Path) -> None:
    """One archive with neither times nor owners in it, complete or absent."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
        return member

    part = out.with_name(out.name + ".part")
    with (
        open(part, "wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, 0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(tree.rglob("*")):
            if path.is_file():
                tar.add(path, str(path.relative_to(tree)), recursive=False, filter=plain)
    part.replace(out)
