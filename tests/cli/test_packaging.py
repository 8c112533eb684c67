"""The wheel and the source archive: built, installed into a fresh environment, started from `/`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ownstack import __version__

ROOT = Path(__file__).parents[2]
KIT = ("deploy.py", "hardware_profiles", "inventory", "roles", "templates")


def _run(*argv: str | Path, cwd: Path = Path("/"), **extra: str) -> subprocess.CompletedProcess[str]:
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**keep, "UV_SYSTEM_CERTS": "1", **extra}
    return subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=environment, text=True, capture_output=True,
        stdin=subprocess.DEVNULL, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and source archive of the files that git knows, or would take, and nothing else.

    Built by the hatchling of the tests' own environment, so without any download.
    """
    tree = tmp_path_factory.mktemp("tree")
    listed = _run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    if listed.returncode:
        pytest.skip(f"needs a git checkout: {listed.stderr.strip()}")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    target = tmp_path_factory.mktemp("dist")
    build = _run(sys.executable, "-m", "hatchling", "build", "-d", target, cwd=tree)
    assert build.returncode == 0, build.stdout + build.stderr
    return target


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `ownstack` program as `uv tool install` puts it there, in the locked versions of its packages."""
    folder = tmp_path_factory.mktemp("installed")
    run = _run(
        sys.executable, "-m", "uv", "--no-config", "tool", "install", "--no-build", "--python", sys.executable,
        "--constraints", ROOT / "requirements/kit.lock", wheel,
        UV_TOOL_DIR=str(folder / "tools"), UV_TOOL_BIN_DIR=str(folder / "bin"),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert os.listdir(folder / "bin") == ["ownstack"]
    return (folder / "bin/ownstack").resolve()


def test_wheel_carries_the_kit_and_nothing_of_the_development(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name.split("/")[2] for name in names if name.startswith("ownstack/_kit/")}
    assert inside == set(KIT)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"ownstack", f"ownstack-{__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_every_kit_file_of_the_checkout_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = _run("git", "ls-files", "-z", *KIT, cwd=ROOT).stdout.split("\0")
    missing = [
        name for name in filter(None, tracked) if (ROOT / name).exists() and f"ownstack/_kit/{name}" not in names
    ]
    assert not missing


def test_source_archive_builds_the_same_wheel(dist: Path, wheel: Path, tmp_path: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path)  # noqa: S202  (our own archive; Debian 12 has no filter)
    (source,) = tmp_path.iterdir()
    build = _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", cwd=source)
    assert build.returncode == 0, build.stderr
    (again,) = (tmp_path / "again").glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())
    assert os.access(source / "ownstack", os.X_OK)


def test_installed_program_starts_from_the_root_folder(installed: Path) -> None:
    run = _run(installed, "--version")
    assert run.returncode == 0, run.stderr
    assert __version__ in run.stdout


def test_installed_program_plans_this_machine(installed: Path, tmp_path: Path) -> None:
    """With templates, profiles, roles and probe from the wheel; ports and folders that no box of this machine has."""
    sets = [f"root={tmp_path}", "prefix=packaging-test", "hardware.cpu_only=true"]
    keys = ("qdrant.port", "ollama.port", "open_webui.port", "n8n.port", "n8n.broker_port")
    sets += [f"{key}={port}" for key, port in zip(keys, _free_ports(len(keys)), strict=True)]
    run = _run(installed, "plan", "--json", *(word for key in sets for word in ("--set", key)))
    told = json.loads(run.stdout)
    if told["error"] and told["error"]["code"] == "unsupported":
        pytest.skip(f"this machine cannot be a box: {told['error']['message']}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert told["schema"] == "ownstack/plan/1"
    assert {"qdrant", "ollama", "open_webui"} <= {role["name"] for role in told["data"]["plan"]["roles"]}
    assert told["data"]["changed"] > 0
    assert list(tmp_path.iterdir()) == [], "plan changes nothing"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_installed_kit_is_its_own(installed: Path) -> None:
    code = (
        "from ownstack import kit; kit.activate(); import roles, deploy; print(roles.__file__); print(deploy.__file__)"
    )
    run = _run(installed.with_name("python"), "-c", code)
    assert run.returncode == 0, run.stderr
    for path in run.stdout.splitlines():
        assert Path(path).is_relative_to(installed.parent.parent)
        assert "_kit" in path


def test_declared_dependencies_are_what_the_lock_holds(installed: Path) -> None:
    """What the wheel asks for is there: nothing is used that only the development environment has."""
    check = _run(sys.executable, "-m", "uv", "pip", "check", "--python", installed.with_name("python"))
    assert check.returncode == 0, check.stderr
    everything = (
        "import importlib, pkgutil, ownstack\n"
        "from ownstack import kit\n"
        "kit.activate()\n"
        "import roles\n"
        "for package in (ownstack, roles):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        name = module.name\n"
        "        # the last one runs inside Open WebUI's own Python\n"
        "        if not name.endswith(('__main__', '.open_webui_inside')) and '._kit' not in name:\n"
        "            importlib.import_module(name)\n"
        "            print(name)\n"
    )
    run = _run(installed.with_name("python"), "-c", everything)
    assert run.returncode == 0, run.stderr
    assert "ownstack.plan" in run.stdout.split()
