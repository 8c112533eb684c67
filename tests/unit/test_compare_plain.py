"""The comparison with the vendors' plain way: what its page says. The measurement itself takes a quiet machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tools.compare_plain import Side, cuda, family, page, pss, table, this_machine

MIB = 2**20
OURS = Side(60.0, 1500 * MIB, {"qdrant": 30 * MIB, "n8n": 300 * MIB})
PLAIN = Side(100.0, 2000 * MIB, {"qdrant": 60 * MIB, "n8n": 340 * MIB})
VERSIONS = {"open-webui": "0.1", "n8n": "2.0", "qdrant": "1.0", "ollama": "0.3", "node": "24.1", "torch": "2.0+cpu"}


def test_the_table_holds_ratios_and_says_which_goals_were_met() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(OURS, PLAIN).splitlines()[2:]]
    assert rows == [
        ["**wall time**, s", "60", "100", "0.60", "0.75, met"],
        ["**disk of programs**, MiB", "1500", "2000", "0.75", "0.75, met"],
        ["**idle memory**, MiB", "330", "400", "0.82", "0.75, missed"],
        ["of it qdrant, MiB", "30", "60", "0.50", ""],
        ["of it n8n, MiB", "300", "340", "0.88", ""],
    ]


def test_the_page_says_what_was_compared_and_where() -> None:
    text = page(table(OURS, PLAIN), VERSIONS, "abc1234", this_machine())
    assert "PyTorch is 2.0+cpu, a CPU build." in " ".join(text.split())
    other = page("", {**VERSIONS, "torch": "2.15.0"}, "abc1234", this_machine())
    assert "PyTorch is 2.15.0, for CUDA: pip found no CPU build here." in " ".join(other.split())
    for words in ("commit abc1234", "n8n 2.0", "open-webui 0.1", "qdrant 1.0", "ollama 0.3"):
        assert words in " ".join(text.split())
    assert f"on {os.cpu_count()} processors and" in text.replace("\n", " ")
    assert "| **wall time**, s | 60 | 100 | 0.60 | 0.75, met |" in text
    assert max(map(len, (text + other).splitlines())) <= 120


def test_what_is_for_cuda_alone_is_known(tmp_path: Path) -> None:
    packages = tmp_path / "venv/lib/python3.11/site-packages"
    for name in ("nvidia/cublas/x", "triton/x", "torch/lib/libtorch_cuda.so", "torch/lib/libtorch_cpu.so", "numpy/x"):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).touch()
    assert {path.name for path in cuda(tmp_path)} == {"nvidia", "triton", "libtorch_cuda.so"}
    for path in cuda(tmp_path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert cuda(tmp_path) == []


def test_memory_is_that_of_a_process_and_all_below_it() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 60 & wait"])
    try:
        while len(family(child.pid)) < 2:
            assert child.poll() is None
        assert child.pid in family(os.getpid())
        assert pss(os.getpid()) > pss(child.pid) > 0
    finally:
        for pid in family(child.pid):
            os.kill(pid, 9)
        child.wait()
