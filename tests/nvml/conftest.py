"""Builds the stand-in for NVIDIA's library, once, with the machine's C compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("fake_nvml.c")


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that hold a libnvidia-ml.so.1: `new` with all calls, `old` without the newer ones."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: the stand-in for libnvidia-ml.so.1 cannot be built")
    folders = {}
    for name, flags in (("new", []), ("old", ["-DOLD"])):
        folder = tmp_path_factory.mktemp(f"nvml-{name}")
        library = folder / "libnvidia-ml.so.1"
        options = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libnvidia-ml.so.1", *flags]
        subprocess.run([compiler, *options, "-o", str(library), str(SOURCE)], check=True)
        folders[name] = folder
    return folders
