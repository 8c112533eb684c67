"""docs/reference/hardware.md: what detection sees, which classes are proved by what, and every problem's id."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ownstack.hardware.cards import support
from ownstack.hardware.problems import CATALOGUE, NVIDIA_DRIVER
from ownstack.hardware.report import Gpu

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"

INTRODUCTION = """\
# Hardware

`ownstack detect` says what a machine is, and where each value came from. It changes nothing, needs no root, and
writes nothing on the machine. `--host user@server` asks another machine over SSH. `--json` prints everything.

It works in two steps. A probe observes: one POSIX shell script of about a tenth of a second, and, where NVIDIA's
driver is seen, one question to its library NVML. Then the observations are interpreted on the machine where you
typed the command. `detect --raw FILE` saves the observations, `detect --from FILE` interprets them again. Such a
file belongs to a bug report. It holds the names of host and user, listening ports, the cards' UUIDs and a hash of the
machine-id; look into it before you publish it.

Over an open SSH connection it takes 0.1 to 0.2 s without a card, 0.2 s with one asked by `nvidia-smi` and 0.4 s by
NVML, whose reader is sent along (test hosts on two busy cores, November 2026). The tests hold it below the time of 500
starts of a small program on the same host, which is half a second on an idle one of that kind.

**A device that is visibly there and cannot be read stops the run.** It never quietly becomes "CPU only". The error
has an id from the list below and a way out; `--cpu-only` is the way to go on knowingly.

Every value has a source (`nvml`, `nvidia-smi`, `sysfs`, `kfd`, `sysctl`, `procfs`, `command`, `table`, `override`)
or is unknown with a reason. `table` is the kit's own list of cards. `override` is what you said in `[hardware]` of
`ownstack.toml`; the report lists such values apart.
"""

READING = """\
## How memory is read

* **NVIDIA cards**: total, free and reserved from NVML. Without Python on the target, from nvidia-smi. Where both speak
  and disagree, NVML is believed and the report says so.
* **MIG**: the instances count, each with its own memory. The card they are cut from does not, and need not be readable.
* **Unified NVIDIA parts** (GB10, Thor, Jetson): the machine's RAM, and what the kernel calls available of it. Only for
  parts known to be such: a card with memory of its own whose driver answers "not supported" is a fault.
* **AMD cards**: VRAM from the driver amdgpu; the LLVM target from the kernel's kfd. A target is never guessed.
* **AMD processors**: VRAM (carved out of the RAM) and GTT (borrowed from it) are told apart. The pool is the larger of
  the two, since the driver serves a model from one of them, and GTT counts for no more than the RAM.
* **Intel Arc**: all tiles of xe, the local memory of i915, else the table. The drivers do not tell what is free.
* **Apple**: the share of the RAM that Metal may wire: `iogpu.wired_limit_mb` where it is set, else 2/3 up to 36 GB and
  3/4 above, which is a little less than newer systems allow.
* **RAM**: total and available, with the tightest limit of the control groups (v1 and v2) on the way up.

## Which devices count

Integrated graphics beside a card are dropped. Alone they are dropped as well, unless the engine uses them by itself
({integrated}). Software renderers (llvmpipe, SwiftShader) are named and never counted; `[hardware] allow_software_gpu`
lets them, for tests. Displays of virtual machines and of servers' management chips compute nothing.

A card of a laptop that is asleep is not woken when its size is in the table. Then `usable` says what is expected of
such a card, each value says that it is from the table or the driver's files, and what only the card knows is unknown.
`detect --wake` wakes and measures it.

| what the engine needs | |
| --- | --- |
| NVIDIA compute capability | {capability} or newer |
| NVIDIA driver | {driver}; {old_driver} for compute capability up to {old_capability} |
| AMD by ROCm | {gfx} |
| AMD and Intel otherwise | Vulkan, with the system's Vulkan driver installed |
| Jetson | system releases {jetson} |
"""

WATCH = """\
## A card that is lost later

Cards vanish after suspend, idle time or a driver update, and the engine goes on without them, sometimes while it still
says "100 % GPU". On a box whose engine uses a GPU a timer (every ten minutes) and a hook after resume look: is the card
there, does the engine's process hold it, does a short real answer come at half the planned speed at least. A model is
not loaded for this, and a sleeping card is not woken. A box of one user, and one without systemd, has the regular look
only: nothing tells it of a resume.

When something is wrong the known remedies are tried in order, each followed by a measured answer: load `nvidia_uvm`
anew (as root, where the module may be unloaded), then restart the engine. What did not help is not repeated for six
hours. `ownstack status` and the check `ollama-gpu-watch` say what happened and when. An engine that has just been
started is given twenty seconds to answer. `ownstack verify` waits for a look that is going on, and asks once more
where a remedy restarted the engine under a check.

| code | meaning |
| --- | --- |
| GPU-GONE | the card is not there, or its driver does not answer |
| GPU-UNUSED | the model lies in the machine's memory |
| GPU-NOT-HELD | the engine says it uses the card, and no process of it has it open |
| GPU-NO-ANSWER | the engine runs and does not answer |
| GPU-SLOW | two answers in a row came at less than half the planned speed |
"""


def page() -> str:
    rules = support()
    nvidia, amd = rules["nvidia"], rules["amd"]
    reading = READING.format(
        integrated=", ".join(amd["integrated_gfx"]),
        capability=nvidia["compute_capability"],
        driver=nvidia["driver"],
        old_driver=nvidia["old_driver"],
        old_capability=nvidia["old_compute_capability"],
        gfx=", ".join(amd["gfx"]),
        jetson=", ".join(f"R{number}" for number in nvidia["jetson_releases"]) + "; Thor as an ordinary card",
    )
    return "\n".join([INTRODUCTION, reading, WATCH, *classes(), *problems(), *drivers(), *fields()])


def classes() -> Iterator[str]:
    rows: list[dict[str, Any]] = tomllib.loads((FIXTURES / "classes.toml").read_text(encoding="utf-8"))["class"]
    count = len(list((FIXTURES / "probes").glob("*.json")))
    yield "## Classes of machines, and what stands behind each\n"
    yield f"{count} probes are in `tests/fixtures/probes/`. Those named `real-` were recorded; the others are rebuilt"
    yield "from public logs, and their file trees are read by the real probe under dash, bash and busybox. *Seen*:"
    yield "on which real hardware this project saw the class; *fixture only*: not yet. Reports are welcome.\n"
    yield "| class | probe | built from | seen |\n| --- | --- | --- | --- |"
    for row in rows:
        source = json.loads((FIXTURES / "probes" / f"{row['probe']}.json").read_text(encoding="utf-8"))["provenance"]
        yield f"| {row['name']} | `{row['probe']}` | {source} | {row.get('real', '') or 'fixture only'} |"
    yield ""


def problems() -> Iterator[str]:
    yield "## Problems\n"
    yield "Those marked *stops* end the run with exit code 3 unless `--cpu-only` is given. `{...}` stands for words"
    yield "that depend on the system.\n"
    yield "| id | what | fix | |\n| --- | --- | --- | --- |"
    for id, (meaning, fix, fatal) in CATALOGUE.items():
        text = fix.replace("|", "\\|")
        yield f"| `{id}` | {meaning} | {text} | {'stops' if fatal else 'note'} |"
    yield ""


def drivers() -> Iterator[str]:
    yield "NVIDIA's driver by system:\n"
    for family, command in NVIDIA_DRIVER.items():
        yield f"* {family or 'others'}: {command}"
    yield ""


def fields() -> Iterator[str]:
    yield "## What is told of a device\n"
    yield ", ".join(f"`{name}`" for name in Gpu.model_fields) + "."
    yield ""
