"""What installs the watch: units that systemd accepts, and nothing where there is no GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest

from roles.ollama import watch
from tests.unit.engine_plans import CHAT, plan

FAST = CHAT.model_copy(update={"predicted_tps": (41.0, 55.0, 70.0)})


def gpu_plan(**changes: Any) -> Any:
    return plan(models=(FAST,), engine="cuda", gpu_names=("NVIDIA GeForce RTX 4090",), **changes)


def test_a_box_without_a_gpu_has_no_watch() -> None:
    assert not watch.wanted(plan())
    assert watch.checks(plan()) == []
    assert not watch.wanted(gpu_plan(engine_existing=True))
    assert [check.id for check in watch.checks(gpu_plan())] == ["ollama-gpu-watch"]


def test_the_watch_is_told_what_the_plan_expects() -> None:
    told = json.loads(watch.files(gpu_plan())[0].content)
    assert told["model"] == "qwen3:14b"
    assert told["planned_tps"] == 41.0
    assert (told["backend"], told["cards"], told["unit"]) == ("cuda", 1, "ownstack-ollama")
    assert told["state"] == "/var/lib/ownstack/gpu-watch/state.json"


@pytest.mark.parametrize(
    ("manager", "names"),
    [
        ("systemd", ["gpu-watch.service", "gpu-watch.timer", "gpu-watch-resume.service"]),
        ("systemd-user", ["gpu-watch.service", "gpu-watch.timer"]),
        ("supervisord", ["gpu-watch.conf"]),
    ],
)
def test_each_manager_gets_its_own_files(manager: str, names: list[str]) -> None:
    files = watch.files(gpu_plan(manager=manager))
    assert [Path(file.path).name for file in files] == ["gpu-watch.json", *[f"ownstack-{name}" for name in names]]
    assert not any(file.secret for file in files)


@pytest.mark.parametrize(
    ("manager", "hint"),
    [
        ("systemd", "`systemctl start ownstack-gpu-watch`, or wait 10 minutes"),
        ("systemd-user", "`systemctl --user start ownstack-gpu-watch`, or wait 10 minutes"),
        ("supervisord", "wait 10 minutes"),
    ],
)
def test_where_it_has_not_looked_yet_it_is_said_how_it_does(manager: str, hint: str) -> None:
    context: Any = types.SimpleNamespace(plan=gpu_plan(manager=manager), step=lambda name, **asked: {})
    assert watch.watched(context).hint == hint


@pytest.mark.parametrize("manager", ["systemd", "systemd-user"])
def test_systemd_accepts_the_units(manager: str, tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    units = []
    for file in watch.files(gpu_plan(manager=manager))[1:]:
        path = tmp_path / Path(file.path).name
        # the programs that the units start are not on this machine
        path.write_text(file.content.replace("/opt/ownstack/base/current/runner", "/bin/true"))
        units.append(path)
    mode = ["--user"] if manager == "systemd-user" else []
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    run = subprocess.run([tool, *mode, "verify", *units], capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 0, run.stderr
    assert "Unknown" not in run.stderr, run.stderr
