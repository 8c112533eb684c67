"""The source itself: lint, format, types. A failure shows what the tool said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TOOLS = {
    "lint": ["-m", "ruff", "check", "--quiet"],
    "format": ["-m", "ruff", "format", "--check", "--quiet", "--diff"],
    "types": ["-m", "mypy", "--no-error-summary"],
}


@pytest.mark.parametrize("tool", TOOLS)
def test_source_is_clean(tool: str) -> None:
    run = subprocess.run([sys.executable, *TOOLS[tool]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{tool}:\n{run.stdout}{run.stderr}"


def test_shell_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    scripts = ["ownstack", "tests/run", ".ci/run", "tools/environment.sh", "tests/hosts/prerequisites.sh"]
    scripts.append("src/ownstack/hardware/probe.sh")
    run = subprocess.run(
        [shellcheck, "-s", "sh", "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
