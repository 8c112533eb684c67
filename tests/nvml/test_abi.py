"""The real way to NVML: the zipapp with the real nvidia-ml-py, a library loaded by the real linker."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ownstack.hardware import collect as collecting
from ownstack.hardware.collect import LocalTarget, ask_nvml, nvml_zipapp
from ownstack.hardware.facts import RawProbe, load
from ownstack.hardware.interpret import interpret
from ownstack.hardware.report import HardwareReport
from tests.fixtures.machines import PROBES

MIB = 1 << 20
Ask = Callable[..., dict[str, Any]]


class Machine(LocalTarget):
    """This machine with another python."""

    def __init__(self, python: str = sys.executable) -> None:
        self.python = python


def base(name: str) -> RawProbe:
    return load(PROBES / f"{name}.json").model_copy(update={"nvml": None, "smi": None, "smi_fields": ()})


@pytest.fixture
def ask(libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Ask:
    def run(variant: str, library: str = "new", machine: Machine | None = None) -> dict[str, Any]:
        monkeypatch.setenv("FAKE_NVML", variant)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries[library]))
        before = set(Path(tempfile.gettempdir()).iterdir())
        fields = ask_nvml(machine or Machine(), base("rtx-4090"))
        left = {path.name for path in set(Path(tempfile.gettempdir()).iterdir()) - before}
        assert not [name for name in left if "nvml" in name], "nothing is written on the target"
        return fields

    return run


def report(name: str, fields: dict[str, Any]) -> HardwareReport:
    return interpret(base(name).model_copy(update=fields))


def test_one_card(ask: Ask) -> None:
    (gpu,) = report("rtx-4090", ask("ok")).gpus
    assert gpu.name == "NVIDIA GeForce RTX 4090"
    assert gpu.memory_total_bytes.value == 24564 * MIB
    assert gpu.memory_free_bytes.value == (24564 - 482) * MIB
    assert gpu.memory_reserved_bytes.value == 400 * MIB
    assert gpu.compute_capability.value == "8.9"
    assert gpu.driver_version.value == "580.95.05"
    assert gpu.runtime_version.value == "CUDA 13.0"
    assert gpu.pci_id == "0000:01:00.0"
    assert gpu.power_limit_watts.value == 450
    assert gpu.display_attached.value is True
    assert gpu.bandwidth_bytes_per_s.value == pytest.approx(1008e9, rel=0.001)


def test_several_different_cards(ask: Ask) -> None:
    found = report("5090-and-3090", ask("several"))
    assert [(g.name, (g.memory_total_bytes.value or 0) // MIB) for g in found.gpus] == [
        ("NVIDIA GeForce RTX 4090", 24564),
        ("NVIDIA GeForce RTX 3090", 24576),
    ]
    assert found.problems == ()


def test_mig_counts_instances_though_the_parent_may_not_be_read(ask: Ask) -> None:
    found = report("mig-in-container", ask("mig"))
    assert [(g.kind, (g.memory_total_bytes.value or 0) // MIB) for g in found.gpus] == [("mig", 4864), ("mig", 4864)]
    assert len({g.uuid for g in found.gpus}) == 2
    assert found.fatal == ()


def test_mig_without_an_instance(ask: Ask) -> None:
    assert [p.id for p in report("mig-empty", ask("mig-empty")).fatal] == ["HW-NVIDIA-MIG-EMPTY"]


@pytest.mark.parametrize("variant", ["unsupported", "odd"])
def test_unified_memory_is_the_machines(ask: Ask, variant: str) -> None:
    found = report("gb10", ask(variant))
    (gpu,) = found.gpus
    assert gpu.kind == "unified"
    assert gpu.memory_total_bytes.value == found.memory.total_bytes
    assert gpu.memory_free_bytes.value == found.memory.available_bytes


def test_vgpu(ask: Ask) -> None:
    assert [g.kind for g in report("vgpu", ask("vgpu")).gpus] == ["vgpu"]


@pytest.mark.parametrize(
    ("variant", "machine", "id"),
    [
        ("no-permission", "nodes-forbidden", "HW-NVIDIA-NO-PERMISSION"),
        ("mismatch", "driver-mismatch", "HW-NVIDIA-DRIVER-MISMATCH"),
        ("not-loaded", "no-device-node", "HW-NVIDIA-NO-DEVICE-NODE"),
        ("lost", "gpu-lost", "HW-NVIDIA-LOST"),
    ],
)
def test_failures_have_their_own_ids(ask: Ask, variant: str, machine: str, id: str) -> None:
    assert [p.id for p in report(machine, ask(variant)).fatal] == [id]


def test_an_old_library_lacks_calls_and_still_tells_the_memory(ask: Ask) -> None:
    fields = ask("ok", "old")
    device = fields["nvml"]["devices"][0]
    assert device["bus_width_bits"]["error"] == 13
    assert device["mig"]["error"] == 13
    (gpu,) = report("rtx-4090", fields).gpus
    assert gpu.memory_total_bytes.value == 24564 * MIB
    assert gpu.memory_free_bytes.value == (24564 - 482) * MIB
    assert gpu.memory_reserved_bytes.value is None
    assert gpu.memory_reserved_bytes.reason
    assert gpu.runtime_version.value is None


def test_a_hanging_driver_is_left_after_the_time_limit(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "NVML_TIMEOUT_S", 3)
    start = time.monotonic()
    fields = ask("hang")
    assert time.monotonic() - start < 6
    assert fields["nvml_error"].startswith("no answer")
    assert [p.id for p in report("driver-hangs", fields).fatal] == ["HW-NVIDIA-HANG"]


def test_a_crash_in_the_library_does_not_take_us_down(ask: Ask) -> None:
    fields = ask("crash")
    assert "nvml" not in fields
    assert "status" in fields["nvml_error"]
    assert [p.id for p in report("driver-hangs", fields).fatal] == ["HW-NVIDIA-UNREADABLE"]


def test_no_library_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has NVIDIA's driver: its own library would be found")
    fields = ask_nvml(Machine(), base("library-missing"))
    assert fields["nvml"]["error"] == 12
    assert [p.id for p in report("library-missing", fields).fatal] == ["HW-NVIDIA-LIBRARY-MISSING"]


def test_other_pythons_of_this_machine_run_it_too(ask: Ask) -> None:
    """A target's python is not ours: every complete one that is here must do."""
    seen = []
    for path in [*Path("/usr/bin").glob("python3.*"), *Path("/usr/local/bin").glob("python3.*")]:
        if (
            path.suffix[1:].isdigit()
            and subprocess.run([path, "-c", "import json, ctypes, zipfile"], check=False).returncode == 0
        ):
            assert "devices" in ask("ok", machine=Machine(str(path)))["nvml"], path
            seen.append(path)
    if not seen:
        pytest.skip("no complete system python here")


def test_the_zipapp_is_small_and_holds_only_two_modules() -> None:
    data = nvml_zipapp()
    assert len(data) < 100_000
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["__main__.py", "pynvml.py"]
    assert nvml_zipapp() == data


@pytest.mark.gpu
def test_a_real_card_is_read_as_nvidia_smi_reads_it() -> None:
    """On a machine with a card: NVML's path and nvidia-smi must agree."""
    raw = collecting.collect(wake=True, both=True)
    assert raw.nvml is not None
    found = interpret(raw)
    assert found.gpus
    assert "HW-NVIDIA-DISAGREE" not in {p.id for p in found.problems}
    again = interpret(raw.model_copy(update={"nvml": None, "nvml_error": "not asked"}))
    assert [g.memory_total_bytes.value for g in again.gpus] == [g.memory_total_bytes.value for g in found.gpus]
