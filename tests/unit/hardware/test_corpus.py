"""The corpus: every recorded or rebuilt probe is interpreted as a person expects it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ownstack.hardware.facts import RawProbe, load
from ownstack.hardware.interpret import Overrides, interpret
from ownstack.hardware.nvidia_smi import smi_rows
from ownstack.hardware.problems import CATALOGUE
from tests.fixtures.machines import PROBES, all_machines
from tests.fixtures.summary import summary

EXPECTED = tomllib.loads((PROBES.parent / "expected.toml").read_text(encoding="utf-8"))
NAMES = sorted(path.stem for path in PROBES.glob("*.json"))

CLASSES = {
    row["name"]: row["probe"]
    for row in tomllib.loads((PROBES.parent / "classes.toml").read_text(encoding="utf-8"))["class"]
}


def probe(name: str) -> RawProbe:
    return load(PROBES / f"{name}.json")


@pytest.mark.parametrize("name", NAMES)
def test_the_report_is_as_expected(name: str) -> None:
    assert summary(interpret(probe(name))) == EXPECTED[name]


def test_every_class_has_a_probe_and_every_probe_an_expectation() -> None:
    assert len(NAMES) >= 28
    assert set(EXPECTED) == set(NAMES)
    assert len(CLASSES) >= 38
    assert set(CLASSES.values()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_probe_says_where_it_came_from_and_holds_nothing_personal(name: str) -> None:
    raw = probe(name)
    assert len(raw.provenance) > 20
    text = (PROBES / f"{name}.json").read_text(encoding="utf-8")
    assert "machine_id\\t" not in text
    uuids = set(re.findall(r"(?:GPU|MIG)-[0-9a-f-]{36}", text))
    assert all(uuid[4:].startswith("00000000-0000-4000-8000-") for uuid in uuids)


@pytest.mark.parametrize("name", NAMES)
def test_a_visible_device_is_never_passed_over_in_silence(name: str) -> None:
    """Each GPU on the bus is counted, left out with a reason, or the subject of a problem."""
    raw, report = probe(name), interpret(probe(name))
    on_bus = [row for row in raw.rows("pci") if row[1] in ("0x10de", "0x1002", "0x8086")]
    told = [gpu for gpu in (*report.gpus, *report.ignored_gpus) if gpu.kind != "software"]
    assert not on_bus or told or report.fatal
    assert all(gpu.why for gpu in report.ignored_gpus)


@pytest.mark.parametrize("name", NAMES)
def test_no_value_without_a_source_and_no_unknown_without_a_reason(name: str) -> None:
    report = interpret(probe(name))
    for gpu in (*report.gpus, *report.ignored_gpus):
        for field in type(gpu).model_fields:
            reading = getattr(gpu, field)
            if hasattr(reading, "source"):
                assert (reading.value is not None) == (reading.source is not None), field
                assert reading.value is not None or reading.reason, field
    assert all(text for _, text in report.provenance)


@pytest.mark.parametrize("name", NAMES)
def test_a_pool_is_never_larger_than_the_memory_behind_it(name: str) -> None:
    report = interpret(probe(name))
    for gpu in report.gpus:
        total, free = gpu.memory_total_bytes.value, gpu.memory_free_bytes.value
        assert total
        assert free is None or free <= total
        if gpu.kind == "unified":
            carved_out = gpu.vram_bytes.value or 0
            assert total <= report.memory.usable_bytes + carved_out


@pytest.mark.parametrize("name", NAMES)
def test_cpu_only_goes_on_knowingly(name: str) -> None:
    report = interpret(probe(name), Overrides(cpu_only=True))
    assert report.gpus == ()
    assert report.fatal == ()
    assert ("cpu_only", "True") in report.overrides
    counted = interpret(probe(name)).gpus
    assert all(any(gpu.name == left.name for left in report.ignored_gpus) for gpu in counted)


@pytest.mark.parametrize("name", NAMES)
def test_nvml_and_nvidia_smi_agree_where_both_speak(name: str) -> None:
    raw = probe(name)
    if raw.nvml is None or raw.smi is None:
        assert "HW-NVIDIA-DISAGREE" not in {p.id for p in interpret(raw).problems}
        return
    first = interpret(raw)
    assert "HW-NVIDIA-DISAGREE" not in {p.id for p in first.problems}
    second = interpret(raw.model_copy(update={"nvml": None, "nvml_error": "not asked"}))
    totals = [[gpu.memory_total_bytes.value for gpu in report.gpus] for report in (first, second)]
    if any("[N/A]" not in row.get("memory.total", "") for row in smi_rows(raw)) and not raw.smi_instances:
        assert totals[0] == totals[1]


def test_a_disagreement_is_said_and_nvml_is_believed() -> None:
    raw = probe("rtx-4090")
    assert raw.smi is not None
    odd = tuple(line.replace("24564", "12282") for line in raw.smi)
    report = interpret(raw.model_copy(update={"smi": odd}))
    told = [p for p in report.problems if p.id == "HW-NVIDIA-DISAGREE"]
    assert len(told) == 1
    assert not told[0].fatal
    assert "12282" in told[0].message
    assert "24564" in told[0].message
    assert report.gpus[0].memory_total_bytes.value == 24564 << 20


def test_reports_survive_json() -> None:
    for name in NAMES:
        report = interpret(probe(name))
        assert type(report).model_validate_json(report.model_dump_json()) == report


def test_every_problem_id_is_documented_and_shown_by_a_probe_or_a_test() -> None:
    shown = {p.split()[0] for expected in EXPECTED.values() for p in expected["problems"]}
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    missing = [id for id in CATALOGUE if id not in shown and id not in sources]
    assert missing == []


def test_rebuilt_probes_are_those_of_the_machines() -> None:
    recorded = {name for name in NAMES if name.startswith("real-")}
    assert set(all_machines()) == set(NAMES) - recorded
