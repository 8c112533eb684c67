"""The watch over the graphics card: cards vanish after suspend, idle time or a driver update, and the engine
goes on without them, on the CPU, sometimes while it still says otherwise.

A timer and a resume hook run `gpu.watch`. It looks at the card, at the engine's process, and at the speed of a
short real answer; then it tries the known remedies in order, and writes down what it saw and did.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from . import ollama
from . import ollama_api as api
from .core import Emit, Result, Spec, StepError, progress, read_json, write_json
from .http import wait_ready
from .managers import call, manager
from .timers import arm, disarm

Finding = dict[str, Any]
DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/renderD", "/dev/dxg")
SLOW = 0.5  # of the slow end of the plan's interval; twice in a row counts
MEASURE_EVERY_S = 3600
REMEDY_EVERY_S = 6 * 3600
EVENTS = 40
TOKENS = 24


def watch(spec: Spec, emit: Emit) -> Result:
    """Look once, and repair where it is needed.

    spec: url, manager, supervisor, unit (of the engine), backend (cuda, rocm, vulkan), model (tag), cards (how many),
    planned_tps (the slow end of the plan's interval, tokens per second; null: unknown), state (file), measure
    (auto: a loaded model once an hour; always: load it; never), remedies (true), timeout (of the engine's start).
    data: ok, code, what, tps, remedies: [{remedy, outcome}].
    """
    with only_one(spec["state"] + ".lock") as alone:
        if not alone:
            return {"changed": False, "data": {"ok": True, "code": "", "what": "another look is going on"}}
        before = read_json(spec["state"], {})
        found = examine(spec, before, emit)
        tried: list[dict[str, str]] = []
        if not found["ok"] and spec.get("remedies", True) and may_repair(before, found):
            found, tried = repair(spec, before, found, emit)
        record(spec, before, found, tried)
        return {"changed": bool(tried), "data": {**found, "remedies": tried}}


def state(spec: Spec, emit: Emit) -> Result:
    """What the watch saw last. spec: state. data: the file's content; empty where it never ran."""
    return {"changed": False, "data": read_json(spec["state"], {})}


def settled(spec: Spec, emit: Emit) -> Result:
    """Wait until no look is going on; then say when the watch last tried a remedy. Changes nothing.

    spec: state, seconds (to wait at most). data: time (of this machine), remedied (seconds since 1970; 0: never),
    busy (a look still goes on).
    """
    end = time.monotonic() + spec.get("seconds", 0)
    while (busy := looking(spec["state"] + ".lock")) and time.monotonic() < end:
        time.sleep(0.2)
    events = read_json(spec["state"], {}).get("events", [])
    remedied = max((event.get("time", 0) for event in events if event.get("remedies")), default=0)
    return {"changed": False, "data": {"time": now(), "remedied": remedied, "busy": busy}}


def looking(path: str) -> bool:
    """Whether a watch holds its lock."""
    try:
        with open(path) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def loop(spec: Spec, emit: Emit) -> Result:
    """`watch` for ever, where no timers are (supervisord). spec: as for watch, and every_s."""
    while True:
        with contextlib.suppress(StepError, OSError):
            watch(spec, emit)
        time.sleep(spec.get("every_s", 600))


# -- looking ---------------------------------------------------------------------------------------


def examine(spec: Spec, before: dict[str, Any], emit: Emit) -> Finding:
    """The first thing that is wrong, in the order of causes; or that all is well."""
    try:
        loaded = loaded_models(spec)
    except StepError as error:
        return finding(False, "GPU-NO-ANSWER", f"the engine runs and does not answer: {error.message}")
    if loaded is None:
        return finding(True, "", "the engine is stopped: nothing to look at")
    if not loaded and asleep("0x10de" if spec["backend"] == "cuda" else ""):
        return finding(True, "", "no model is loaded and the card is asleep: it was not woken")
    gone = missing_cards(spec)
    if gone:
        return finding(False, "GPU-GONE", gone)
    name = api.parse(spec["model"]).short
    if not loaded and spec.get("measure", "auto") != "always":
        return finding(True, "", "the card is there, no model is loaded")
    measuring = due(spec, before) or (bool(loaded) and not has_children(engine_pid(spec)))
    if measuring and (name in loaded or spec.get("measure") == "always"):
        answer = measured(spec, before, emit)
        if answer is not None:
            return answer
        loaded = loaded_models(spec) or {}
    return placed(spec, loaded, before)


def placed(spec: Spec, loaded: dict[str, Any], before: dict[str, Any]) -> Finding:
    """Whether what is loaded lies on the card: by the engine's word, then by its process."""
    tps = before.get("tps")
    for name, model in loaded.items():
        if model.get("size", 0) and not model.get("size_vram", 0):
            return finding(False, "GPU-UNUSED", f"{name} lies in the machine's memory, none of it on the card", tps)
    if loaded and holds_device(engine_pid(spec)) is False:
        return finding(False, "GPU-NOT-HELD", "the engine says it uses the card, but no process of it has it open", tps)
    return finding(True, "", "the model is on the card" if loaded else "the card is there", tps)


def measured(spec: Spec, before: dict[str, Any], emit: Emit) -> Finding | None:
    """A short real answer. A finding where it fails or is slow twice; None where the speed is right."""
    planned = spec.get("planned_tps")
    speeds = []
    for _ in range(2):
        progress(emit, f"measuring {spec['model']}")
        try:
            ask = {"url": spec["url"], "model": spec["model"], "tokens": TOKENS, "timeout": 300}
            data = ollama.chat_check(ask, emit)["data"]
        except StepError as error:
            return finding(False, "GPU-NO-ANSWER", f"a short question got no answer: {error.message}")
        speeds.append(data["tps"])
        before["tps"], before["measured_at"] = data["tps"], now()
        if not planned or data["tps"] >= SLOW * planned:
            return None
    what = f"{max(speeds):.1f} tokens per second, planned were at least {planned:.1f}"
    return finding(False, "GPU-SLOW", what, max(speeds))


def due(spec: Spec, before: dict[str, Any]) -> bool:
    """Whether to measure: asked for, never done, the last look was bad, or an hour ago."""
    how = spec.get("measure", "auto")
    if how in ("always", "never"):
        return bool(how == "always")
    last = before.get("measured_at") or 0
    return bool(not before.get("ok", True) or now() - last >= MEASURE_EVERY_S or before.get("boot") != boot_id())


def loaded_models(spec: Spec) -> dict[str, Any] | None:
    """What the engine has loaded; None where the service is stopped. Raises StepError where it runs and is silent.

    An engine that is just starting (`up`, a boot) is silent for a moment: it gets `patience` seconds.
    """
    try:
        return asked(spec)
    except StepError:
        if not running(spec):
            return None
        with contextlib.suppress(StepError):
            wait_ready(spec["url"] + "/api/version", spec.get("patience", 20), "ollama")
    try:
        return asked(spec)
    except StepError:
        if running(spec):
            raise
        return None


def asked(spec: Spec) -> dict[str, Any]:
    return {str(k): v for k, v in ollama.ps({"url": spec["url"]}, _silent)["data"]["models"].items()}


def running(spec: Spec) -> bool:
    status = manager(spec).status([spec["unit"]])
    return bool(status and status[0]["active"])


def missing_cards(spec: Spec) -> str:
    """In words, what of the planned cards is not there; empty where all are."""
    wanted = int(spec.get("cards", 1))
    if spec["backend"] == "cuda":
        answer = run(["nvidia-smi", "-L"], 15)
        if answer is None:
            seen = len(glob.glob("/dev/nvidia[0-9]*")) or (1 if os.path.exists("/dev/dxg") else 0)
            return "" if seen >= wanted else f"{seen} of {wanted} NVIDIA cards are there"
        status, text = answer
        seen = len(re.findall(r"^\s*(?:GPU|MIG) .*UUID", text, re.MULTILINE))
        if status == 124:
            return "the NVIDIA driver does not answer"
        if status != 0 or seen < wanted:
            return f"{seen} of {wanted} NVIDIA cards are there: {' '.join(text.split())[:200]}"
    if spec["backend"] == "rocm":
        seen = len(glob.glob("/sys/class/drm/card[0-9]*/device/mem_info_vram_total"))
        if seen < wanted or not os.path.exists("/dev/kfd"):
            return f"{seen} of {wanted} AMD GPUs are there"
    return ""


def asleep(vendor: str) -> bool:
    """Whether every display device of the vendor (empty: of any) that can sleep does so.

    A laptop's integrated graphics are awake while its screen is on: they say nothing of the card beside them.
    """
    states = []
    for path in glob.glob("/sys/bus/pci/devices/*/class"):
        with contextlib.suppress(OSError):
            folder = os.path.dirname(path)
            if read(path).startswith("0x03") and vendor in ("", read(os.path.join(folder, "vendor"))):
                states.append(read(os.path.join(folder, "power/runtime_status")))
    return bool(states) and "suspended" in states and "active" not in states


def engine_pid(spec: Spec) -> int:
    status = manager(spec).status([spec["unit"]])
    return int(status[0]["pid"]) if status else 0


def has_children(main: int) -> bool:
    """A loaded model has a process of its own. The engine goes on listing one whose process died."""
    return not main or len(family(main)) > 1


def holds_device(main: int) -> bool | None:
    """Whether a process of the engine has a GPU open; None where that cannot be seen, or no device node is here."""
    if not main or not any(glob.glob(f"{prefix}*") for prefix in DEVICES):
        return None
    seen = False
    for pid in family(main):
        for link in glob.glob(f"/proc/{pid}/fd/*"):
            with contextlib.suppress(OSError):
                seen = True
                if os.readlink(link).startswith(DEVICES):
                    return True
    return False if seen else None


def family(main: int) -> list[int]:
    """A process and everything it started."""
    parents: dict[int, int] = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(path.split("/")[2])] = int(read(path).rpartition(")")[2].split()[1])
    found = [main]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    return found


# -- repairing -------------------------------------------------------------------------------------


def may_repair(before: dict[str, Any], found: Finding) -> bool:
    """Not again and again: after remedies that did not help, only after six hours, a reboot, or another fault."""
    gave_up = before.get("gave_up")
    if not gave_up:
        return True
    return bool(
        before.get("code") != found["code"] or before.get("boot") != boot_id() or now() - gave_up > REMEDY_EVERY_S
    )


def repair(spec: Spec, before: dict[str, Any], found: Finding, emit: Emit) -> tuple[Finding, list[dict[str, str]]]:
    """The known remedies in order, until the card serves again."""
    tried = []
    for name, remedy in (("reload nvidia_uvm", reload_uvm), ("restart the engine", restart_engine)):
        progress(emit, f"{found['what']}: {name}")
        try:
            outcome = remedy(spec)
        except (StepError, OSError, subprocess.SubprocessError) as error:
            outcome = f"failed: {error}"
        if not outcome:
            continue
        check = {**spec, "measure": "always"}
        try:
            found = examine(check, before, emit)
        except StepError as error:
            found = finding(False, "GPU-NO-ANSWER", error.message)
        tried.append({"remedy": name, "outcome": "it helped" if found["ok"] else f"{outcome}; then: {found['what']}"})
        if found["ok"]:
            break
    return found, tried


def reload_uvm(spec: Spec) -> str:
    """After suspend the driver's memory module may have to be loaded anew. Empty where that is not for us to do."""
    if spec["backend"] != "cuda" or os.geteuid() != 0 or not uvm_loaded():
        return ""
    boss = manager(spec)
    boss.stop([spec["unit"]])
    try:
        call(["rmmod", "nvidia_uvm"])
        call(["modprobe", "nvidia_uvm"])
        outcome = "reloaded"
    except StepError as error:
        outcome = f"not possible: {error.message}"
    finally:
        start_engine(spec)
    return outcome


def uvm_loaded() -> bool:
    return any(line.startswith("nvidia_uvm ") for line in read("/proc/modules").splitlines())


def restart_engine(spec: Spec) -> str:
    manager(spec).restart([spec["unit"]])
    wait_ready(spec["url"] + "/api/version", spec.get("timeout", 120), "ollama")
    return "restarted"


def start_engine(spec: Spec) -> None:
    manager(spec).start([spec["unit"]])
    wait_ready(spec["url"] + "/api/version", spec.get("timeout", 120), "ollama")


# -- writing down ----------------------------------------------------------------------------------


def record(spec: Spec, before: dict[str, Any], found: Finding, tried: list[dict[str, str]]) -> None:
    """The state that `status` and `verify` read: the last look, and what happened when."""
    events = list(before.get("events", []))
    turned = found["ok"] != before.get("ok", True) or found["code"] != before.get("code", "")
    if tried or turned:
        what = found["what"] if not found["ok"] else f"well again: {found['what']}"
        events.append(
            {"time": now(), "code": found["code"], "what": what, "remedies": tried, "was": before.get("what", "")}
        )
    kept = before.get("gave_up") if before.get("code") == found["code"] else None
    after = {
        "schema": 1,
        "checked": now(),
        "boot": boot_id(),
        "measured_at": before.get("measured_at"),
        "planned_tps": spec.get("planned_tps"),
        "gave_up": None if found["ok"] else (now() if tried else kept),
        "events": events[-EVENTS:],
        **found,
        "tps": found["tps"] if found["tps"] is not None else before.get("tps"),
    }
    os.makedirs(os.path.dirname(spec["state"]), exist_ok=True)
    write_json(spec["state"], after)


def finding(ok: bool, code: str, what: str, tps: float | None = None) -> Finding:
    return {"ok": ok, "code": code, "what": what, "tps": tps}


@contextlib.contextmanager
def only_one(path: str) -> Iterator[bool]:
    """The timer and the resume hook may meet: the second one leaves."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def run(command: list[str], seconds: float) -> tuple[int, str] | None:
    """Status and output of a tool, 124 where it hangs, None where it is not there."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return 124, ""
    return done.returncode, done.stdout


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def boot_id() -> str:
    return read("/proc/sys/kernel/random/boot_id")


def now() -> int:
    return int(time.time())


def _silent(event: dict[str, Any]) -> None:
    pass


STEPS = {"arm": arm, "disarm": disarm, "loop": loop, "settled": settled, "state": state, "watch": watch}
