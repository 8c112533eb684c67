"""Every vendor row of the artifact tables, through the real code that fetches, verifies and unpacks.

The archives are synthetic, with the members of the vendor's documented layout.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import lzma
import subprocess
import tarfile
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.kit import load_toml
from ownstack.runner import artifacts
from tests.hosts.serve import FileServer, folder

ROLES = Path(__file__).parents[2] / "roles"
Row = dict[str, Any]

# Members of the vendors' archives, by the start of the file's name; `->` names a link, `{stem}` is the name
# without its ending.
LAYOUTS = {
    "ollama-linux-amd64-rocm": ["lib/ollama/rocm/libggml-hip.so", "lib/ollama/rocm/librocblas.so.4"],
    "ollama-": [
        *("bin/ollama", "lib/ollama/llama-server", "lib/ollama/llama-quantize", "lib/ollama/libggml-base.so"),
        *("lib/ollama/cuda_v12/libggml-cuda.so", "lib/ollama/cuda_v13/libggml-cuda.so"),
        "lib/ollama/vulkan/libggml-vulkan.so",
    ],
    "qdrant-": ["qdrant"],
    "node-": [
        *("{stem}/bin/node", "{stem}/bin/npm->../lib/node_modules/npm/bin/npm-cli.js", "{stem}/README.md"),
        *("{stem}/lib/node_modules/npm/bin/npm-cli.js", "{stem}/include/node/node_api.h"),
    ],
    "cpython-": ["python/bin/python3.12", "python/bin/python3->python3.12", "python/lib/python3.12/os.py"],
    "uv-": ["{stem}/uv", "{stem}/uvx"],
    "sqlite3-": ["build/Release/node_sqlite3.node"],
}
PROGRAMS = {
    "ollama": "bin/ollama",
    "qdrant": "bin/qdrant",
    "node": "bin/node",
    "python": "bin/python3",
    "uv": "bin/uv",
    "sqlite3-addon": "build/Release/node_sqlite3.node",
}
GPU_PARTS = {"cpu": (), "cuda": ("cuda_v12", "cuda_v13"), "vulkan": ("vulkan",), "rocm": ("rocm",)}


def rows() -> Iterator[tuple[str, str, Row]]:
    for path in sorted(ROLES.glob("*/artifacts.toml")):
        for artifact in load_toml(path)["artifact"]:
            for row in artifact["variant"]:
                if row.get("url"):
                    yield path.parent.name, artifact["name"], row


CASES = [pytest.param(*case, id=f"{case[1]}-{case[2]['id']}") for case in rows()]


def archive(url: str, form: str) -> bytes:
    """The vendor's file of this address, with small members."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    members = next(members for start, members in LAYOUTS.items() if name.startswith(start))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            path, _, link = member.format(stem=name.removesuffix(f".{form}")).partition("->")
            info = tarfile.TarInfo(path)
            info.mode = 0o755
            if link:
                info.type, info.linkname = tarfile.SYMTYPE, link
                tar.addfile(info)
            else:
                info.size = len(path)
                tar.addfile(info, io.BytesIO(path.encode()))
    return COMPRESS[form](out.getvalue())


def gzip(data: bytes) -> bytes:
    return subprocess.run(["gzip", "-c"], input=data, capture_output=True, check=True).stdout


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-c", "-q"], input=data, capture_output=True, check=True).stdout


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"tar.gz": gzip, "tar.xz": lzma.compress, "tar.zst": zstd}


def parts(row: Row, engine: str, root: Path) -> list[Row]:
    """What the role asks the runner for, the archives put where a mirror keeps them."""
    rule = row["unpack"]
    if row.get("parts"):
        rule = importlib.import_module("roles.ollama").unpack_rule(row, engine)
    wanted = [{"url": row["url"], "unpack": rule}]
    if "overlay" in row:
        wanted.append({"url": row["overlay"]["url"], "unpack": row["overlay"]["unpack"]})
    for part in wanted:
        data = archive(part["url"], part["unpack"]["format"])
        split = urllib.parse.urlsplit(part["url"])
        place = root / split.netloc / urllib.parse.unquote(split.path).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        part["sha256"] = hashlib.sha256(data).hexdigest()
    return wanted


@pytest.mark.parametrize(("role", "name", "row"), CASES)
def test_a_vendor_row_gives_a_release_with_its_program(role: str, name: str, row: Row, tmp_path: Path) -> None:
    for engine in row.get("engines", ["cpu"]):
        box = tmp_path / engine
        spec = {
            "name": name, "version": row["version"], "work": str(tmp_path / "work"),
            "release": str(box / "releases" / row["version"]), "current": str(box / "current"),
            "parts": parts(row, engine, tmp_path / "mirror"),
        }  # fmt: skip
        with FileServer(folder(tmp_path / "mirror")) as server:
            assert artifacts.release({**spec, "mirror": server.url}, lambda event: None)["changed"]
            program = box / "current" / PROGRAMS[name]
            assert program.exists()
            assert program.resolve().stat().st_mode & 0o111 == 0o111
            if name == "ollama":
                library = box / "current/lib/ollama"
                assert sorted(p.name for p in library.iterdir() if p.is_dir()) == sorted(GPU_PARTS[engine])
            assert not artifacts.release({**spec, "mirror": server.url}, lambda event: None)["changed"]
    assert list((tmp_path / "work").iterdir()) == []


def test_there_are_vendor_rows_for_both_machines() -> None:
    platforms = {(case.values[1], case.values[2]["platform"]) for case in CASES if isinstance(case.values[2], dict)}
    assert {("qdrant", "linux-x86_64"), ("qdrant", "linux-aarch64"), ("ollama", "linux-aarch64")} <= platforms
