"""Interpretation never falls over: whatever a machine prints, the answer is a report or a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ownstack.errors import DetectionError
from ownstack.hardware.facts import RawProbe, load, natural
from ownstack.hardware.host import read_ports
from ownstack.hardware.interpret import interpret
from tests.fixtures.machines import PROBES

ALL = {path.stem: load(path) for path in PROBES.glob("*.json")}
QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ODD = st.sampled_from(
    ["", "-", "0", "-1", "0x", "[N/A]", "[Unknown Error]", "9" * 30, "a b", "é", "1.5", "\x00", ":", "0000:zz:00.0"]
)


@pytest.mark.parametrize("odd", ["", "-", ":", "zz", "0100007F:", "0100007F:1F90:", "0100007G:1F90", "9" * 30])
def test_an_odd_port_line_is_passed_over(odd: str) -> None:
    lines = ("port\ttcp\t0100007F:1F90\t0", f"port\ttcp\t{odd}\t0", "port\ttcp\t0100007F:1F91")
    assert [(p.address, p.port) for p in read_ports(RawProbe(lines=lines))] == [("127.0.0.1", 8080)]


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [("12", 10, 12), ("0x1f", 16, 31), ("1F", 16, 31), ("0x1f", 10, None), ("-", 16, None), ("-1", 10, None)]
    + [(text, base, None) for text in ("", None, "0x", "²", "1_0", "9" * 30) for base in (10, 16)],
)
def test_only_plain_numbers_are_read(text: str | None, base: int, value: int | None) -> None:
    assert natural(text, base) == value


def survives(raw: RawProbe) -> None:
    try:
        report = interpret(raw)
    except DetectionError:
        return
    assert report.model_dump_json()
    for gpu in report.gpus:
        assert (gpu.memory_total_bytes.value or 0) > 0


@QUICK
@given(st.sampled_from(sorted(ALL)), st.data())
def test_lines_may_be_missing(name: str, data: st.DataObject) -> None:
    raw = ALL[name]
    kept = data.draw(st.lists(st.booleans(), min_size=len(raw.lines), max_size=len(raw.lines)))
    survives(raw.model_copy(update={"lines": tuple(line for line, keep in zip(raw.lines, kept, strict=True) if keep)}))


@QUICK
@given(st.sampled_from(sorted(ALL)), st.data())
def test_values_may_be_odd(name: str, data: st.DataObject) -> None:
    raw = ALL[name]
    lines = list(raw.lines)
    for _ in range(data.draw(st.integers(1, 6))):
        index = data.draw(st.integers(0, len(lines) - 1))
        fields = lines[index].split("\t")
        place = data.draw(st.integers(0, len(fields)))
        fields[place : place + 1] = [data.draw(ODD)]
        lines[index] = "\t".join(fields)
    survives(raw.model_copy(update={"lines": tuple(lines)}))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in leaves(item, (*path, key)))]


@QUICK
@given(st.sampled_from(sorted(n for n, raw in ALL.items() if raw.nvml)), st.data())
def test_nvml_may_answer_anything(name: str, data: st.DataObject) -> None:
    raw = ALL[name]
    answer = json.loads(json.dumps(raw.nvml))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in leaves(answer) if p]))
        place = answer
        for key in path[:-1]:
            place = place[key] if not isinstance(place, str | int | None) else {}
        odd: Any = data.draw(
            st.sampled_from([None, 0, -1, "", {"error": 3, "text": "Not Supported"}, {"error": 999}, [], {}])
        )
        if isinstance(place, dict | list) and place:
            place[path[-1]] = odd
    survives(raw.model_copy(update={"nvml": answer}))


@QUICK
@given(st.sampled_from(sorted(n for n, raw in ALL.items() if raw.smi)), st.data())
def test_nvidia_smi_may_print_anything(name: str, data: st.DataObject) -> None:
    raw = ALL[name]
    assert raw.smi is not None
    lines = list(raw.smi)
    index = data.draw(st.integers(0, len(lines) - 1))
    values = lines[index].split(", ")
    values[data.draw(st.integers(0, len(values) - 1))] = data.draw(ODD)
    lines[index] = ", ".join(values)
    survives(raw.model_copy(update={"smi": tuple(lines), "nvml": None, "nvml_error": "not asked"}))
