"""The test command itself: without a terminal, with an empty environment, and honest about failure."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(*arguments: str, command: str = "tests/run", **extra: str) -> subprocess.CompletedProcess[str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "XDG_CACHE_HOME") if name in os.environ}
    return subprocess.run(
        [ROOT / command, "--quick", *arguments], cwd="/", env={**keep, **extra}, text=True, capture_output=True,
        stdin=subprocess.DEVNULL, start_new_session=True, timeout=300, check=False,
    )  # fmt: skip


def test_options_go_to_pytest_and_times_are_shown() -> None:
    run = start("tests/unit", "-k", "no_such_test or test_errors", "-p", "no:cacheprovider")
    assert run.returncode == 5, run.stdout + run.stderr  # pytest's status when nothing was selected
    run = start("-q", "tests/style/test_docs.py", "-k", "first_screen", command=".ci/run")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "tests/style" in run.stdout
    assert "1 passed" in run.stdout.splitlines()[-1]


def test_a_failing_test_fails_the_command(tmp_path: Path) -> None:
    (tmp_path / "test_wrong.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    run = start(str(tmp_path), "-c", str(ROOT / "pyproject.toml"))
    assert run.returncode == 1
    assert "1 failed" in run.stdout


def test_settings_of_the_caller_stay_out(tmp_path: Path) -> None:
    (tmp_path / "test_environment.py").write_text(
        "import os\n\ndef test_environment():\n    assert [n for n in os.environ if n.startswith('OWNSTACK_')] == []\n"
    )
    run = start(str(tmp_path), "-c", str(ROOT / "pyproject.toml"), OWNSTACK_CONFIG="/somewhere", OWNSTACK_N8N__PORT="1")
    assert run.returncode == 0, run.stdout


def test_end_to_end_tests_are_not_quick() -> None:
    run = start("--collect-only", "-q", "tests/e2e")
    assert run.returncode == 5, run.stdout
    assert "deselected" in run.stdout
