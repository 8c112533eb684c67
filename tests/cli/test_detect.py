"""`ownstack detect` over saved probes: what people and programs see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ownstack.cli import run
from tests.fixtures.machines import PROBES


def test_a_card_is_shown_with_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["detect", "--from", str(PROBES / "rtx-4090.json")]) == 0
    assert (
        capsys.readouterr().out
        == """\
host        box: Ubuntu 26.04 LTS, kernel 7.0.0-15-generic
cpu         AMD Ryzen 7 7800X3D 8-Core Processor, 8 cores, 16 threads, x86_64
memory      30.8 GiB, 25.3 GiB available
disk        450.0 GiB free of 500.0 GiB on /  (/)
init        systemd, sudo: password
gpu         NVIDIA GeForce RTX 4090  [discrete]  0000:01:00.0
            memory      24.0 GiB (nvml), free 23.5 GiB (nvml)
            bandwidth   1008 GB/s (nvml)
            target      8.9 (nvml)
            driver      595.58.03 (nvml), CUDA 13.2; the engine needs 550
            usable      yes: compute capability 8.9, driver 595.58.03
fingerprint 093462f3ab306abc
"""
    )


def test_a_failure_is_an_error_with_its_id_and_never_cpu_only(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(PROBES / "driver-mismatch.json")
    assert run(["detect", "--from", path]) == 3
    seen = capsys.readouterr()
    assert "HW-NVIDIA-DRIVER-MISMATCH" in seen.out
    assert "gpu         not known" in seen.out
    assert "fix       reboot the machine" in seen.out
    assert "error: `ownstack up` stops here: HW-NVIDIA-DRIVER-MISMATCH" in seen.err
    assert "--cpu-only" in seen.err
    both = seen.out + seen.err
    assert both.count("reboot the machine") == both.count("have different versions") == 1, "told once, not twice"
    assert run(["detect", "--from", path, "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "ownstack/detect/1"
    assert answer["ok"] is False
    assert answer["error"]["code"] == "HW-NVIDIA-DRIVER-MISMATCH"
    assert answer["data"]["problems"][0]["fix"] == "reboot the machine"


def test_cpu_only_is_the_way_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["detect", "--from", str(PROBES / "driver-mismatch.json"), "--cpu-only"]) == 0
    seen = capsys.readouterr().out
    assert "override    cpu_only = True" in seen
    assert "note        HW-NVIDIA-DRIVER-MISMATCH" in seen


def test_a_sleeping_card_is_shown_with_what_is_known_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["detect", "--from", str(PROBES / "hybrid-laptop-asleep.json")]) == 0
    seen = capsys.readouterr().out
    assert "memory      8.0 GiB (table), free unknown (asleep, and not woken to ask)" in seen
    assert "target      8.9 (table)" in seen
    assert "usable      expected: compute capability 8.9, driver 610.43.02; from the table" in seen
    assert "usable      yes" not in seen


def test_raw_saves_what_from_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    assert run(["detect", "--raw", str(path), "--json", "--cpu-only"]) == 0
    direct = json.loads(capsys.readouterr().out)["data"]
    assert run(["detect", "--from", str(path), "--json", "--cpu-only"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == direct


def test_a_file_that_is_no_probe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text("[]")
    assert run(["detect", "--from", str(path)]) == 2
    assert "is not a saved probe" in capsys.readouterr().err
