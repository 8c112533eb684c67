"""The lab mirror: vendors' files in vendors' layouts, made of what package registries hold.

`build(root)` fills `root/mirror/<host>/<path>` for every vendor row of the kit's artifact tables that has a
registry variant beside it, and makes `root/kit`: a copy of the kit whose rows carry the versions and hashes
of these files. So the code that fetches, verifies and unpacks vendors' archives runs for real, and the
product's own locks and floors stay as they are. Archives are made once per content, in the user's cache.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker

from ownstack.data import version_key
from ownstack.engine import carry
from ownstack.kit import FOLDERS
from ownstack.plan import ChosenArtifact
from ownstack.runner import npm
from ownstack.runner.unpack import unpack

from . import gguf_file
from .commands import cache, run
from .registry import Registry

KIT = Path(__file__).parents[2]
PLATFORM = "linux-x86_64"
Row = dict[str, Any]

# The folder in which everything lies inside a vendor's archive, by the archive's name.
TOPS: dict[str, Callable[[str], str]] = {
    "node-": lambda stem: stem,
    "uv-": lambda stem: stem,
    "cpython-": lambda stem: "python",
    "qdrant-": lambda stem: "",
    "ollama-": lambda stem: "",
    "sqlite3-": lambda stem: "",
}
PACKERS = {"tar.gz": ("gzip", "-1", "-n"), "tar.xz": ("xz", "-1", "-T0"), "tar.zst": ("zstd", "-3", "-T0", "-q")}
MODELS = ("smollm2-135m", "all-minilm")
# one thread each: engine threads that wait for each other on busy processors take many times longer; and an end,
# which a model as small as this one does not always find
ONE_THREAD = {"num_thread": 1}
CHAT = {"stop": ["<|im_start|>", "<|im_end|>"], "num_predict": 200, **ONE_THREAD}
CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
DEBIAN12 = {"python_version": "3.11", "python_full_version": "3.11.2"}
NODE = {"format": "tar.xz", "strip": 1}
# What the vendor's Ollama archive holds beside the CPU engine: there to be left out.
OLLAMA_GPU_PARTS = ("cuda_v12/libggml-cuda.so", "cuda_v13/libggml-cuda.so", "vulkan/libggml-vulkan.so")


@dataclass(frozen=True)
class Made:
    """One archive of the lab and the row that it stands for."""

    url: str
    version: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Lab:
    """`mirror`: the folder to serve or to name as mirror. `kit`: the value for OWNSTACK_KIT."""

    mirror: Path
    kit: Path
    made: dict[str, Made]  # by the product's own URL
    missing: tuple[str, ...]  # vendor rows that no registry variant can stand for


def build(root: Path, say: Callable[[str], None] = print) -> Lab:
    """Make mirror and kit copy below `root` (an existing, empty folder on the cache's file system)."""
    tables = [table(path) for path in sorted((KIT / "roles").glob("*/artifacts.toml"))]
    made: dict[str, Made] = {}
    missing = []
    for artifact, row in _vendor_rows(tables):
        source = registry_row(artifact)
        if source is None:
            missing.append(row["url"])
        elif row["url"] not in made:
            made[row["url"]] = archive(artifact["name"], row, source, say)
    mirror = root / "mirror"
    for one in made.values():
        place = mirror / place_of(one.url)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(one.path)
    _by_hash(tables, mirror, say)
    return Lab(mirror, _kit(root / "kit", made), made, tuple(missing))


def _by_hash(tables: list[list[Row]], mirror: Path, say: Callable[[str], None]) -> None:
    """What has no vendor's address (the small models) lies in a mirror by its hash."""
    (mirror / "sha256").mkdir(parents=True)
    for artifacts in tables:
        for artifact in artifacts:
            row = next((row for row in artifact["variant"] if fits(row)), None)
            if row and "url" not in row and "lock" not in row and (row.get("sha256") or row.get("result")):
                carried = carry.obtain(chosen(artifact["name"], row), say)
                (mirror / "sha256" / carried.sha256).hardlink_to(carried.path)


def table(path: Path) -> list[Row]:
    artifacts: list[Row] = tomllib.loads(path.read_text())["artifact"]
    for artifact in artifacts:
        for row in artifact["variant"]:
            if row["kind"] == "build":
                row["inputs_sha256"] = carry.inputs_hash(row, path.parent)
    return artifacts


def _vendor_rows(tables: list[list[Row]]) -> Iterator[tuple[Row, Row]]:
    for artifacts in tables:
        for artifact in artifacts:
            for row in artifact["variant"]:
                if row.get("url") and fits(row):
                    yield artifact, row


def fits(row: Row) -> bool:
    """Whether the row is for the hosts of the lab, which have no GPU."""
    return row["platform"] in (PLATFORM, "any") and "cpu" in row.get("engines", ["cpu"])


def registry_row(artifact: Row) -> Row | None:
    for row in artifact["variant"]:
        if row.get("unpack") and not row.get("url") and fits(row):
            return dict(row)
    return None


def place_of(url: str) -> Path:
    """Where a mirror keeps the file of an address, its name as a person would write it."""
    parts = urllib.parse.urlsplit(url)
    return Path(parts.netloc, urllib.parse.unquote(parts.path).lstrip("/"))


def archive(name: str, vendor: Row, source: Row, say: Callable[[str], None]) -> Made:
    """The vendor's archive out of the registry's content, from the cache when it was made before."""
    carried = carry.obtain(chosen(name, source), say)
    version = str(source["version"])
    url = vendor["url"].replace(vendor["version"], version)
    recipe = inspect.getsource(_repack) + inspect.getsource(_like_vendors_ollama) + repr(vendor["unpack"]) + url
    key = hashlib.sha256(f"{carried.sha256}\n{recipe}\n{source.get('unpack')}".encode()).hexdigest()[:16]
    path = cache().parent / "lab" / f"{key}-{place_of(url).name}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        say(f"lab: making {path.name}")
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            _repack(carried.path, Path(work), vendor["unpack"], source["unpack"], path)
    with path.open("rb") as stream:
        return Made(url, version, path, hashlib.file_digest(stream, "sha256").hexdigest())


def chosen(name: str, row: Row) -> ChosenArtifact:
    """A row of an artifact table as the engine takes it to obtain it here."""
    return ChosenArtifact(
        name=name, variant=row["id"], version=row["version"], platform=PLATFORM, kind=row["kind"], way="carry",
        source=row["source"], sha256=row.get("sha256", ""), size_bytes=row.get("size"), details=row,
    )  # fmt: skip


def _repack(payload: Path, work: Path, vendor: Row, source: Row, out: Path) -> None:
    """Undo the registry variant's unpack rule and do the vendor's the other way round."""
    tree = work / "tree"
    unpack(str(payload), str(tree), source)
    if out.name.partition("-")[2].startswith("ollama-"):
        _like_vendors_ollama(tree)
    name = out.name.partition("-")[2].removesuffix(f".{vendor['format']}")
    top = next(folder(name) for prefix, folder in TOPS.items() if name.startswith(prefix))
    if int(vendor.get("strip", 0)) != (1 if top else 0):
        raise ValueError(
            f"{name}: the vendor's archive has the top folder {top!r}, the row strips {vendor.get('strip', 0)}"
        )
    inside = tree / vendor.get("to", "")
    part = work / "archive"
    with part.open("wb") as target:
        packer = subprocess.Popen([*PACKERS[vendor["format"]], "-c"], stdin=subprocess.PIPE, stdout=target)
        assert packer.stdin is not None
        with packer.stdin as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            for path in sorted(inside.rglob("*")):
                if path.is_symlink() or not path.is_dir():
                    tar.add(path, str(Path(top) / path.relative_to(inside)), recursive=False, filter=_plain)
        if packer.wait():
            raise RuntimeError(f"{packer.args!r} failed")
    os.replace(part, out)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
    return member


def _like_vendors_ollama(tree: Path) -> None:
    """Everything below bin/ and lib/ollama/, as in the vendor's archive, with its GPU folders.

    The engine's own libc must not lie in a folder that Ollama searches for backends (those directly
    below lib/ollama), hence one level deeper.
    """
    library = tree / "lib/ollama"
    (library / "llama-lab").mkdir()
    (tree / "engine").rename(library / "llama-lab/engine")
    for wrapper in library.iterdir():
        if wrapper.is_file():
            wrapper.write_text(wrapper.read_text().replace("/../../engine", "/llama-lab/engine"))
    for name in OLLAMA_GPU_PARTS:
        (library / name).parent.mkdir()
        (library / name).write_text("stands for a GPU backend; a host without that GPU must not get it\n")
    (tree / "build.json").unlink()


def languages(lab: Lab, say: Callable[[str], None] = print, roles: Path = KIT / "roles") -> None:
    """Put the packages of all Python locks in the mirror's `pypi/`, for the Python of Debian 12 (3.11).

    Packages with a lock of their own are gathered once per content of the lock.
    """
    for lock in sorted(roles.glob("*/*.lock")):
        if lock.name.endswith("-full.lock"):
            continue
        folder = cache().parent / "lab" / f"wheels-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
        if not folder.exists():
            say(f"lab: gathering the packages of {lock.parent.name}/{lock.name}")
            with tempfile.TemporaryDirectory(dir=cache().parent) as work:
                plain = Path(work, "lock")
                plain.write_text(for_debian12(lock.read_text()))
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
                rule = ["--require-hashes", "--only-binary=:all:", "-r", str(plain)]
                run(*pip, *rule, "--dest", Path(work, "got"), timeout_s=1800)
                Path(work, "got").rename(folder)
        place = lab.mirror / "pypi"
        place.mkdir(parents=True, exist_ok=True)
        for wheel in folder.iterdir():
            if not (place / wheel.name).exists():
                (place / wheel.name).hardlink_to(wheel)


def for_debian12(lock: str) -> str:
    """The lock's lines for the target's Python, without their conditions: pip would judge them by its own Python."""

    def judged(found: re.Match[str]) -> str:
        return f"{found[1]} \\\n{found[3]}" if Marker(found[2]).evaluate(DEBIAN12) else ""

    return re.sub(r"(?m)^(\S+==\S+) ; (.*) \\\n((?:    --hash=.*\n?)+)", judged, lock)


def packages_of_n8n(lab: Lab, say: Callable[[str], None] = print, role: Path = KIT / "roles/n8n") -> None:
    """Put n8n's packages in the mirror's `npm/`: gathered once per content of its lock."""
    digest = hashlib.sha256((role / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = cache().parent / "lab" / f"npm-{digest}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache().parent) as name:
            work = Path(name)
            unpack(str(next(one.path for one in lab.made.values() if "/node-" in one.url)), f"{name}/node", NODE)
            spec = {
                "node": f"{name}/node", "package_json": str(role / "package.json"), "out": f"{name}/out",
                "package_lock": str(role / "package-lock.json"), "work": f"{name}/work",
                "name": "n8n", "version": "lab",
            }  # fmt: skip
            npm.collect(spec, lambda event: say(f"lab: {event.get('what', '')}"))
            (work / "out").rename(folder)
    (lab.mirror / "npm").mkdir(exist_ok=True)
    run("cp", "-alf", f"{folder}/npm/.", lab.mirror / "npm")


def models(lab: Lab, root: Path) -> Registry:
    """A model registry with the two models of the kit's own artifacts, the chat model in two other precisions.

    It serves `smollm2:135m-q8_0`, `smollm2:135m-q4_0` and `all-minilm:22m`; the precision is changed with the engine's
    own tool. `snowflake-arctic-embed:22m` has the weights of all-minilm: another name for the same 384 dimensions.
    """
    files = {name: _model(name) for name in MODELS}
    registry = Registry(root)
    for kind in ("q8_0", "q4_0"):
        weights = _quantised(lab, files["smollm2-135m"], kind)
        registry.add("smollm2", f"135m-{kind}", weights, template=CHATML, parameters=CHAT)
    registry.add("all-minilm", "22m", files["all-minilm"].path, parameters=ONE_THREAD)
    registry.add("snowflake-arctic-embed", "22m", files["all-minilm"].path, parameters=ONE_THREAD)
    return registry


def deep_model(lab: Lab, registry: Registry, times: int) -> str:
    """Add the chat model with `times` its blocks, as slow as models that people chat with; its name for a pull."""
    source = _quantised(lab, _model("smollm2-135m"), "q8_0")
    made = gguf_file.deeper(source, registry.root / "deep.gguf", times)
    # a short context: each block keeps its own part of it
    registry.add("smollm2", "deep-q8_0", made, template=CHATML, parameters={**CHAT, "num_ctx": 1024})
    return "smollm2:deep-q8_0"


def _model(name: str) -> Any:
    """A model's file of the kit's own artifacts."""
    tables = {artifact["name"]: artifact for artifact in table(KIT / "roles/models/artifacts.toml")}
    return carry.obtain(chosen(name, tables[name]["variant"][0]), print)


def _quantised(lab: Lab, model: Any, kind: str) -> Path:
    """The chat model in another precision, kept in the cache."""
    made = cache().parent / "lab" / f"{kind}-{model.sha256[:16]}.gguf"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=cache().parent) as work:
            archive = next(one.path for one in lab.made.values() if "ollama-linux-amd64.tar" in one.url)
            unpack(str(archive), work, {"format": "tar.zst"})
            tool, part = Path(work, "lib/ollama/llama-quantize"), Path(work, "part.gguf")
            run(tool, "--allow-requantize", model.path, part, kind.upper())
            part.rename(made)
    return made


def _kit(target: Path, made: dict[str, Made]) -> Path:
    """A copy of the kit whose vendor rows name the lab's files, and floors that let them in."""
    for folder in FOLDERS:
        shutil.copytree(KIT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(KIT / "deploy.py", target / "deploy.py")
    floors = tomllib.loads((target / "roles/floors.toml").read_text())
    for path in (target / "roles").glob("*/artifacts.toml"):
        table = tomllib.loads(path.read_text())
        for artifact in table.get("artifact", []):
            for row in artifact["variant"]:
                one = made.get(row.get("url", ""))
                if one is not None:
                    row.update(url=one.url, version=one.version, sha256=one.sha256, size=one.path.stat().st_size)
                    lower(floors["floor"], artifact["name"], one.version)
        path.write_text(toml(table))
    (target / "roles/floors.toml").write_text(toml(floors))
    return target


def lower(floors: dict[str, str], name: str, version: str) -> None:
    if name in floors and version_key(version) < version_key(floors[name]):
        floors[name] = version


def toml(table: Row) -> str:
    """A table as TOML; tables inside are written inline (JSON's strings are TOML's basic strings)."""
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items())


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, datetime.date):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False)


def certificate(folder: Path, names: list[str]) -> Path:
    """One PEM with key and certificate for `names`: trusted by a host that takes it among its authorities."""
    path = folder / "lab.pem"
    key, text = folder / "lab.key", folder / "lab.crt"
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
        "-subj", "/CN=ownstack test lab", "-addext", "subjectAltName=" + ",".join(f"DNS:{name}" for name in names),
        "-keyout", key, "-out", text,
    )  # fmt: skip
    path.write_text(key.read_text() + text.read_text())
    path.chmod(0o600)
    return path
