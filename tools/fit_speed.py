#!/usr/bin/env python3
"""Time `ownstack fit` over the whole catalogue and `ownstack --help`, process start included.

    tools/fit_speed.py [--runs 20]

Median of the runs; the goals are 0.25 s and 0.1 s on an idle machine of two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START = "import sys; from ownstack.cli import main; sys.exit(main())"
CASES = {
    'fit --gpu "RTX 4090" --all --json': (["fit", "--gpu", "RTX 4090", "--all", "--json"], 0.25),
    "fit --model qwen3:14b --json": (["fit", "--gpu", "RTX 4090", "--model", "qwen3:14b", "--json"], 0.25),
    "--help": (["--help"], 0.10),
}


def once(arguments: list[str]) -> float:
    """Seconds of one process."""
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", START, *arguments], env=environment, check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    print(f"load average {os.getloadavg()[0]:.1f}")
    missed = 0
    for name, (arguments, goal) in CASES.items():
        once(arguments)
        median = statistics.median(once(arguments) for _ in range(runs))
        missed += median > goal
        print(f"{name:36} {median:.3f} s  (goal {goal} s)")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
