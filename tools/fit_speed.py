#!/usr/bin/env python3
"""Time `ownstack fit` over the whole catalogue and `ownstack --help`, process start included.

    tools/fit_speed.py [--runs 20] [--peer GGUF_PARSER] [--llmfit LLMFIT]

Median of the runs, by the launcher; the goals are 0.25 s and 0.1 s on an idle machine of two cores. `--peer` and
`--llmfit` time other tools beside it in the same run (see tools/accuracy.py for how to have them).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

LAUNCHER = str(ROOT / "ownstack")
MODEL = "qwen3:14b"


def cases(file: Path, peer: Path | None, llmfit: Path | None) -> dict[str, tuple[list[str], float]]:
    """What is timed: name -> command, and the goal in seconds (0: none)."""
    fit = [LAUNCHER, "fit", "--gpu", "RTX 4090"]
    found = {
        'fit --gpu "RTX 4090" --all --json': ([*fit, "--all", "--json"], 0.25),
        f"fit --model {MODEL} --json": ([*fit, "--model", MODEL, "--json"], 0.25),
        "fit --gguf FILE --json": ([*fit, "--gguf", str(file), "--json"], 0.25),
        "--help": ([LAUNCHER, "--help"], 0.10),
    }
    if peer is not None:
        found["gguf-parser-go, one file"] = ([str(peer), str(file), "8192", "512"], 0)
    if llmfit is not None:
        machine = [str(llmfit), "--json", "--memory", "24G", "--ram", "32G"]
        found["llmfit, one model"] = ([*machine, "plan", "Qwen/Qwen3-14B", "--context", "8192"], 0)
        found["llmfit, its whole list"] = ([*machine, "fit"], 0)
    return found


def once(command: list[str]) -> float:
    """Seconds of one process."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> int:
    from tests.unit.fitting.dry_run import write_header

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--llmfit", type=Path)
    asked = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        file = write_header(Path(folder) / "model.gguf", MODEL, "Q4_K_M")
        for name, (command, goal) in cases(file, asked.peer, asked.llmfit).items():
            once(command)
            median = statistics.median(once(command) for _ in range(asked.runs))
            missed += bool(goal) and median > goal
            print(f"{name:36} {median:.3f} s" + (f"  (goal {goal} s)" if goal else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
