"""Hash-locked Python requirements: how the lock files of roles/ are made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import RunError

# Only what can run here: Linux, both machines, the Pythons that a target may have.
PROJECT = """[project]
name = "lock"
version = "0"
requires-python = ">=3.11,<3.13"
[tool.uv]
environments = ["sys_platform == 'linux' and implementation_name == 'cpython' and python_full_version < '3.13'"]
required-environments = [
    "sys_platform == 'linux' and platform_machine == 'x86_64'",
    "sys_platform == 'linux' and platform_machine == 'aarch64'",
]
"""
HEAD = "# Made by tools/refresh-locks from {requirements}{overrides}. It holds hashes and no addresses.\n"


def compile_python(requirements: Path, out: Path, overrides: Path | None = None) -> None:
    """Lock `requirements` with all they need into `out`, wheels only, each with its hashes.

    A package whose override says `sys_platform == "never"` leaves no line in the lock. Raises RunError with the
    resolver's words.
    """
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        raise RunError("uv is needed to make lock files", hint="it is in requirements/dev.lock")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "pyproject.toml").write_text(PROJECT)
        rule = ["--override", str(overrides.resolve())] if overrides else []
        command = [
            uv, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-build", "--no-header",
            "--no-annotate", "--python-version", "3.11", *rule, str(requirements.resolve()),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{requirements} cannot be locked: {done.stderr.strip()}")
    head = HEAD.format(requirements=requirements.name, overrides=f" and {overrides.name}" if overrides else "")
    out.write_text(head + done.stdout)
