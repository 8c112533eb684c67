"""Environments as releases, made by the real uv from a small wheel in a folder that stands for the package index."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import python_env
from ownstack.runner.core import StepError

INSTALL = python_env.STEPS["install"]
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def quiet(event: dict[str, Any]) -> None:
    """Nobody listens."""


def wheel(folder: Path) -> str:
    """Make `speaker-1.0`: a module, a program, a source map, and a file of Python 2. Returns the wheel's sha256."""
    files = {
        "speaker/__init__.py": "def main():\n    print('I speak from ' + __file__)\n",
        "speaker/old.py": "print 'of Python 2'\n",
        "speaker/page/app.js": "//# sourceMappingURL=app.js.map\n",
        "speaker/page/app.js.map": "{}\n",
        "speaker-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: speaker\nVersion: 1.0\n",
        "speaker-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "speaker-1.0.dist-info/entry_points.txt": "[console_scripts]\nspeak = speaker:main\n",
    }
    record = "".join(f"{name},sha256={_record(text)},{len(text)}\n" for name, text in files.items())
    path = folder / "speaker-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {
            **files,
            "speaker-1.0.dist-info/RECORD": record + "speaker-1.0.dist-info/RECORD,,\n",
        }.items():
            archive.writestr(name, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _record(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    if UV is None:
        pytest.fail("uv is part of the development environment and is not there")
    index = tmp_path / "mirror" / "pypi"
    index.mkdir(parents=True)
    digest = wheel(index)
    return {
        "name": "speaker", "version": "1.0", "release": str(tmp_path / "opt/speaker/releases/1.0-abc"),
        "current": str(tmp_path / "opt/speaker/current"), "lock_text": f"speaker==1.0 --hash=sha256:{digest}\n",
        "python": sys.executable, "uv": UV, "mirror": str(tmp_path / "mirror"), "cache": str(tmp_path / "cache"),
    }  # fmt: skip


def releases(spec: dict[str, Any]) -> list[str]:
    parent = Path(spec["release"]).parent
    return sorted(path.name for path in parent.iterdir()) if parent.exists() else []


def test_an_environment_works_under_its_final_name_only(spec: dict[str, Any]) -> None:
    assert INSTALL(spec, quiet)["changed"] is True
    assert releases(spec) == ["1.0-abc"]
    said = subprocess.run([f"{spec['current']}/bin/speak"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"I speak from {spec['release']}/lib/python3.")
    compiled = list(Path(spec["release"]).rglob("speaker/__pycache__/__init__.*.pyc"))
    assert len(compiled) == 1
    assert f"{spec['release']}/lib/python3.".encode() in compiled[0].read_bytes()
    assert list(Path(spec["release"]).rglob("*.js.map")) == []
    assert len(list(Path(spec["release"]).rglob("*.js"))) == 1


def test_others_may_run_what_root_made_under_a_strict_mask(spec: dict[str, Any]) -> None:
    before = os.umask(0o077)
    try:
        INSTALL(spec, quiet)
    finally:
        os.umask(before)
    closed = [p for p in Path(spec["release"]).rglob("*") if not p.is_symlink() and not p.stat().st_mode & 0o004]
    assert closed == []


def test_a_second_run_changes_nothing(spec: dict[str, Any]) -> None:
    assert INSTALL(spec | {"dry": True}, quiet) == {"changed": True, "data": {"needs_files": True}}
    assert releases(spec) == []
    INSTALL(spec, quiet)
    made = os.stat(spec["release"]).st_ino
    assert INSTALL(spec | {"dry": True}, quiet) == {"changed": False, "data": {"needs_files": False}}
    assert INSTALL(spec, quiet)["changed"] is False
    assert os.stat(spec["release"]).st_ino == made


def test_a_wrong_hash_leaves_nothing_behind(spec: dict[str, Any]) -> None:
    spec["lock_text"] = f"speaker==1.0 --hash=sha256:{'0' * 64}\n"
    with pytest.raises(StepError, match=r"(?i)hash mismatch"):
        INSTALL(spec, quiet)
    assert releases(spec) == []
    assert not Path(spec["current"]).is_symlink()


def test_what_was_fetched_stays_until_the_environment_is_complete(spec: dict[str, Any]) -> None:
    right = spec["lock_text"]
    spec["lock_text"] = right + f"other==1.0 --hash=sha256:{'0' * 64}\n"
    with pytest.raises(StepError):
        INSTALL(spec, quiet)
    assert Path(spec["cache"]).exists()
    INSTALL(spec | {"lock_text": right}, quiet)
    assert not Path(spec["cache"]).exists()


def test_a_package_that_the_mirror_lacks_is_an_error_with_a_hint(spec: dict[str, Any]) -> None:
    spec["lock_text"] = f"other==1.0 --hash=sha256:{'0' * 64}\n"
    with pytest.raises(StepError, match="other") as caught:
        INSTALL(spec, quiet)
    assert "package index" in caught.value.hint


def test_an_environment_whose_python_is_gone_is_made_again(spec: dict[str, Any]) -> None:
    INSTALL(spec, quiet)
    python = Path(spec["release"]) / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert INSTALL(spec | {"dry": True}, quiet)["changed"] is True
    assert INSTALL(spec, quiet)["changed"] is True
    subprocess.run([f"{spec['current']}/bin/python", "-c", "import speaker"], check=True)
    assert releases(spec) == ["1.0-abc"]


def test_a_run_that_was_killed_leaves_nothing_for_the_next(spec: dict[str, Any]) -> None:
    left = Path(spec["release"]).parent / ".1.0-abc.zz"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    INSTALL(spec, quiet)
    assert releases(spec) == ["1.0-abc"]


@pytest.mark.parametrize("place", ["environment", "file"])
def test_the_index_that_pip_is_set_up_for_is_used(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    address = "https://packages.example/simple"
    if place == "environment":
        monkeypatch.setenv("PIP_INDEX_URL", address)
    file = tmp_path / "pip.conf"
    file.write_text(f"[global]\nindex-url = {address if place == 'file' else 'https://other.example'}\n")
    monkeypatch.setattr(python_env, "PIP_FILES", (str(file), str(tmp_path / "none")))
    assert python_env._index() == {"UV_DEFAULT_INDEX": address}
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine.example")
    assert python_env._index() == {}
