"""Node programs: `npm ci` from a lock file into a release, without install scripts, and without dead weight."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fnmatch
import hashlib
import http.client
import json
import os
import platform
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

from .artifacts import complete, making, switch
from .core import Emit, Result, Spec, StepError, heartbeat, progress
from .fetch import sha256_of
from .managers import call
from .python_env import BUNDLES

Lock = dict[str, Any]
# npm refuses to look for a package's address when the lock names one; this one never resolves
NOWHERE = "https://npm.invalid/"
CPU = {"x86_64": "x64", "aarch64": "arm64"}
BINARIES = (".node", ".dll", ".exe", ".dylib", ".so")
SYSTEMS = {"darwin", "macos", "win32", "windows", "android", "freebsd", "openbsd", "sunos", "aix", "musl", "linuxmusl"}
MACHINES = {
    "x64",
    "x86_64",
    "amd64",
    "arm64",
    "aarch64",
    "arm",
    "armv7l",
    "ia32",
    "riscv64",
    "ppc64",
    "s390x",
    "loong64",
}
SAME = {"x64": {"x64", "x86_64", "amd64"}, "arm64": {"arm64", "aarch64"}}


def cpu() -> str:
    """This machine's processor in npm's words."""
    return CPU.get(platform.machine(), platform.machine())


def install(spec: Spec, emit: Emit) -> Result:
    """Make one release from a package.json and its lock, and point `current` at it.

    spec: name, version, release, current, work (a folder for temporary things), node (the release of Node with npm),
    package_json and package_lock (paths), addons ([{path, to}]), prune ({packages, suffixes, keep}) and mirror.
    """
    held = complete(spec["release"])
    linked = os.path.islink(spec["current"]) and os.path.realpath(spec["current"]) == os.path.realpath(spec["release"])
    if (held and linked) or spec.get("dry"):
        return {"changed": not (held and linked), "data": {"needs_files": not held}}
    os.umask(0o022)  # services under accounts of their own read it
    data: dict[str, Any] = {"release": spec["release"]}
    if not held:
        about = {"name": spec["name"], "version": spec["version"], "sha256": [sha256_of(spec["package_lock"])]}
        with making(spec["release"], about) as folder:
            data.update(fill(folder, spec, emit))
    switch(spec["current"], spec["release"])
    return {"changed": True, "data": data}


def fill(folder: str, spec: Spec, emit: Emit) -> dict[str, Any]:
    """Fill an empty folder with the packages, the add-ons beside them, and nothing that never runs."""
    with open(spec["package_lock"], encoding="utf-8") as stream:
        lock = json.load(stream)
    shutil.copyfile(spec["package_json"], os.path.join(folder, "package.json"))
    with working(spec["work"]) as cache:
        if spec.get("mirror"):
            from_mirror(lock, spec["mirror"], cache, emit)
            ci(folder, located(lock, NOWHERE), cache, spec, emit, ["--offline"])
        else:
            from_registry(folder, lock, cache, spec, emit)
    shutil.copyfile(spec["package_lock"], os.path.join(folder, "package-lock.json"))
    for addon in spec.get("addons", []):
        target = os.path.join(folder, addon["to"])
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(addon["path"], target)
        os.chmod(target, 0o755)  # noqa: S103 - every account may run it
    progress(emit, f"leaving out what {spec['name']} never uses")
    return prune(os.path.join(folder, "node_modules"), spec.get("prune", {}))


@contextlib.contextmanager
def working(parent: str) -> Any:
    """An empty folder for npm's cache, gone afterwards."""
    os.makedirs(parent, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="npm-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------- npm


def npm(spec: Spec) -> list[str]:
    """npm's command line: its own script, run by exactly this Node."""
    node = spec["node"]
    return [os.path.join(node, "bin", "node"), os.path.join(node, "lib", "node_modules", "npm", "bin", "npm-cli.js")]


def environment(spec: Spec, cache: str) -> dict[str, str]:
    return {
        "PATH": f"{spec['node']}/bin:/usr/bin:/bin",
        "npm_config_cache": cache,
        "npm_config_update_notifier": "false",
        "npm_config_audit": "false",
        "npm_config_fund": "false",
        "npm_config_logs_max": "0",
        **trust(),
    }


def trust() -> dict[str, str]:
    """The machine's own certificates, which Node does not read by itself: a company's index or proxy may need them."""
    found = os.environ.get("NODE_EXTRA_CA_CERTS") or next((path for path in BUNDLES if os.path.exists(path)), "")
    return {"NODE_EXTRA_CA_CERTS": found} if found else {}


def located(lock: Lock, base: str) -> Lock:
    """The lock with an address for each package, so that npm asks for no package's list of versions."""
    packages = {}
    for key, row in lock["packages"].items():
        if key:
            name = row.get("name") or key.rpartition("node_modules/")[2]
            row = {**row, "resolved": f"{base}{name}/-/{name.rpartition('/')[2]}-{row['version']}.tgz"}
        packages[key] = row
    return {**lock, "packages": packages}


def ci(folder: str, lock: Lock, cache: str, spec: Spec, emit: Emit, extra: list[str]) -> None:
    """Run `npm ci`: exactly the lock's packages, each verified by its integrity hash, no script of theirs run.

    --legacy-peer-deps: the lock is made with it, and without it npm would ask for packages that are not in it.
    """
    with open(os.path.join(folder, "package-lock.json"), "w", encoding="utf-8") as stream:
        json.dump(lock, stream)
    rule = ["ci", "--ignore-scripts", "--omit=dev", "--legacy-peer-deps", "--no-progress", "--loglevel=error"]
    with heartbeat(emit, f"installing {spec['name']} {spec['version']} and {len(lock['packages']) - 1} packages"):
        call([*npm(spec), *rule, "--prefix", folder, *extra], env=environment(spec, cache))


def from_registry(folder: str, lock: Lock, cache: str, spec: Spec, emit: Emit) -> None:
    """From the registry that this host's npm is set up for, by direct addresses where it has the usual ones."""
    registry = call(
        [*npm(spec), "config", "get", "registry", "--loglevel=silent"], env=environment(spec, cache)
    ).strip()
    try:
        ci(folder, located(lock, registry.rstrip("/") + "/"), cache, spec, emit, [])
    except StepError as error:
        if "404" not in error.message:
            raise network(error, spec) from error
        shutil.rmtree(os.path.join(folder, "node_modules"), ignore_errors=True)
        try:
            ci(folder, lock, cache, spec, emit, [])
        except StepError as again:
            raise network(again, spec) from again


def network(error: StepError, spec: Spec) -> StepError:
    """Say what npm's failure means."""
    if "EINTEGRITY" in error.message:
        hint = "a package is not the one that the lock names: nothing was installed; do not use this registry"
        return StepError(error.message, hint=hint, code="fetch-hash")
    if "ENOSPC" in error.message:
        return StepError(
            f"no space left while installing {spec['name']}", hint="free disk space and run again", code="disk-full"
        )
    hint = "check that this host reaches a package registry (npm ping), or use --mirror; then run again"
    return StepError(error.message, hint=hint, code="fetch-network")


# ------------------------------------------------------------------------------------------------------- mirror


def content(integrity: str) -> str:
    """Where npm's cache holds the bytes with this hash, relative to the cache."""
    kind, _, text = integrity.split()[0].partition("-")
    import base64

    digest = base64.b64decode(text).hex()
    return f"content-v2/{kind}/{digest[:2]}/{digest[2:4]}/{digest[4:]}"


def meant_for(row: dict[str, Any], machine: str) -> bool:
    """Whether npm would install this package on glibc Linux with the given processor."""
    for key, mine in (("os", "linux"), ("cpu", machine), ("libc", "glibc")):
        wanted = row.get(key) or []
        if f"!{mine}" in wanted or ([w for w in wanted if not w.startswith("!")] and mine not in wanted):
            return False
    return True


def from_mirror(lock: Lock, mirror: str, cache: str, emit: Emit) -> None:
    """Put the lock's packages from a mirror's `npm/` into a cache that npm then reads offline.

    A mirror holds them by content, as npm's own cache does: `npm/content-v2/sha512/...`.
    """
    rows = [row for key, row in lock["packages"].items() if key and meant_for(row, cpu())]
    wanted = {content(row["integrity"]): row for row in rows}
    target = os.path.join(cache, "_cacache")
    done = 0
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(bring, mirror.rstrip("/") + "/npm", name, target, row) for name, row in sorted(wanted.items())
        ]
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
                done += 1
                if done % 200 == 0:
                    progress(emit, "packages from the mirror (count)", done, len(jobs))
        except StepError:
            pool.shutdown(cancel_futures=True)  # the others would be missing too, one after the other
            raise


def bring(source: str, name: str, target: str, row: dict[str, Any]) -> None:
    """One package's archive from the mirror, verified by the hash that names it."""
    path = os.path.join(target, name)
    try:
        data = read_file(source, name)
    except OSError as error:
        if not (isinstance(error, FileNotFoundError) or getattr(error, "code", 0) == 404):
            raise StepError(
                f"{source}/{name} cannot be read: {error}",
                hint="the mirror does not answer as it should; run again",
                code="fetch-network",
            ) from error
        if row.get("optional"):
            return
        raise StepError(
            f"the mirror has no {source}/{name}", hint="complete the mirror (docs: offline use)", code="fetch-missing"
        ) from error
    kind, wanted = name.split("/")[1], "".join(name.split("/")[2:])
    if hashlib.new(kind, data).hexdigest() != wanted:
        raise StepError(
            f"{source}/{name} is damaged: its {kind} differs from its name",
            hint="nothing was installed; copy this file into the mirror again",
            code="fetch-hash",
        )
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as out:
        out.write(data)


def read_file(source: str, name: str) -> bytes:
    """A file of the mirror; a URL is tried three times."""
    if source.startswith("/"):
        with open(os.path.join(source, name), "rb") as stream:
            return stream.read()
    for attempt in (1, 2, 3):
        try:
            with urllib.request.urlopen(f"{source}/{name}", timeout=60) as answer:  # noqa: S310
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            error.close()  # it is kept as long as what it is the cause of
            raise
        except (OSError, http.client.HTTPException) as error:
            if attempt == 3:
                raise OSError(str(error) or type(error).__name__) from error
            time.sleep(attempt)
    raise OSError(f"{source}/{name}")


def collect(spec: Spec, emit: Emit) -> Result:
    """Gather a lock's packages in a mirror's `npm/` folder.

    spec: name, version, node, package_json, package_lock, work, out (the mirror) and optionally `cpu`, npm's word
    for another processor than this machine's.
    """
    with open(spec["package_lock"], encoding="utf-8") as stream:
        lock = json.load(stream)
    machine = spec.get("cpu") or cpu()
    wanted = {content(r["integrity"]) for k, r in lock["packages"].items() if k and meant_for(r, machine)}
    missing = [name for name in wanted if not os.path.exists(os.path.join(spec["out"], "npm", name))]
    if not missing or spec.get("dry"):
        return {"changed": bool(missing), "data": {"packages": len(wanted)}}
    with working(spec["work"]) as cache:
        folder = os.path.join(cache, "project")
        os.makedirs(folder)
        shutil.copyfile(spec["package_json"], os.path.join(folder, "package.json"))
        other = ["--os=linux", f"--cpu={machine}", "--libc=glibc"]
        registry = call(
            [*npm(spec), "config", "get", "registry", "--loglevel=silent"], env=environment(spec, cache)
        ).strip()
        ci(folder, located(lock, registry.rstrip("/") + "/"), cache, spec, emit, other)
        for name in missing:
            there = os.path.join(cache, "_cacache", name)
            if os.path.exists(there):
                path = os.path.join(spec["out"], "npm", name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                shutil.move(there, path + ".part")
                os.replace(path + ".part", path)
    return {"changed": True, "data": {"packages": len(wanted)}}


# -------------------------------------------------------------------------------------------------------- prune


def foreign(path: str, machine: str) -> bool:
    """Whether a native file is made for another system or processor than glibc Linux on `machine`."""
    if not path.endswith(BINARIES):
        return False
    words = set(re.split(r"[^a-z0-9_]+|_(?!64)", path.lower()))
    return bool(words & SYSTEMS) or (bool(words & MACHINES) and not words & SAME.get(machine, {machine}))


def prune(modules: str, rule: dict[str, Any]) -> dict[str, Any]:
    """Take out of a tree of packages what never runs: source maps, type declarations, foreign binaries, named packages.

    rule: packages (folder names below node_modules, wherever they are nested), suffixes, keep (patterns of paths
    relative to the tree that stay). Licence texts always stay. Returns counts and bytes freed.
    """
    suffixes, keep = tuple(rule.get("suffixes", [])), list(rule.get("keep", []))
    packages = set(rule.get("packages", []))
    files = freed = 0
    for folder, names, entries in os.walk(modules):
        inner = "" if folder == modules else os.path.relpath(folder, modules)
        for name in list(names):
            path = os.path.join(folder, name)
            if owner(os.path.join(inner, name)) in packages:
                count, size = weight(path)
                files, freed = files + count, freed + size
                shutil.rmtree(path)
                names.remove(name)
        for name in entries:
            path = os.path.join(inner, name)
            if not ((name.endswith(suffixes) and suffixes) or foreign(path, cpu())) or stays(path, name, keep):
                continue
            full = os.path.join(folder, name)
            files, freed = files + 1, freed + os.lstat(full).st_size
            os.unlink(full)
    return {"pruned_files": files, "pruned_bytes": freed}


def owner(path: str) -> str:
    """The package whose own folder `path` is, or an empty word."""
    parts = ("/node_modules/" + path).rpartition("/node_modules/")[2].split("/")
    whole = 2 if parts[0].startswith("@") else 1
    return "/".join(parts) if len(parts) == whole else ""


def stays(path: str, name: str, keep: list[str]) -> bool:
    upper = name.upper()
    if upper.startswith(("LICENSE", "LICENCE", "NOTICE", "COPYING", "COPYRIGHT")):
        return True
    return any(fnmatch.fnmatch(path, pattern) for pattern in keep)


def weight(folder: str) -> tuple[int, int]:
    count = size = 0
    for base, _, names in os.walk(folder):
        count += len(names)
        size += sum(os.lstat(os.path.join(base, name)).st_size for name in names)
    return count, size


STEPS = {"install": install, "collect": collect}
