"""Asks NVML about every NVIDIA device and prints one JSON object.

Runs on the target inside a zipapp beside nvidia-ml-py's `pynvml.py`, with whatever Python 3.6 or
newer is there: standard library only, no imports of ours. Each call is wrapped on its own, because
old libraries lack the newer calls and a MIG parent may refuse some: a failed one becomes
`{"error": code, "text": ...}`, never a missing device.
"""

import json
import sys
from typing import Any

import pynvml as nvml


def failure(error: Any) -> Any:
    """An NVML error (or anything else raised while asking) as a JSON value."""
    return {"error": getattr(error, "value", -1), "text": str(error)}


def ask(function: Any, *arguments: Any, **named: Any) -> Any:
    try:
        value = function(*arguments, **named)
    except Exception as error:
        return failure(error)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def call(name: str, *arguments: Any) -> Any:
    """`ask` by name: nvidia-ml-py itself may be older than the call."""
    function = getattr(nvml, name, None)
    if function is None:
        return {"error": 13, "text": "nvidia-ml-py lacks " + name}
    return ask(function, *arguments)


def memory(handle: Any) -> Any:
    """Bytes total, free, used and, from version 2 of the call on, reserved by the driver."""
    answer = ask(nvml.nvmlDeviceGetMemoryInfo, handle, version=getattr(nvml, "nvmlMemory_v2", None))
    if isinstance(answer, dict):
        first = answer
        answer = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        if isinstance(answer, dict):
            return first if first["error"] not in (13, 25) else answer
        return {"total": answer.total, "free": answer.free, "used": answer.used, "reserved": first}
    return {"total": answer.total, "free": answer.free, "used": answer.used, "reserved": answer.reserved}


def pci(handle: Any) -> Any:
    answer = ask(nvml.nvmlDeviceGetPciInfo, handle)
    if isinstance(answer, dict):
        return answer
    bus = answer.busId
    return {
        "bus": bus.decode() if isinstance(bus, bytes) else bus,
        "device": format(answer.pciDeviceId, "08x"),
        "subsystem": format(answer.pciSubSystemId, "08x"),
    }


def instances(handle: Any) -> Any:
    """The MIG instances of a card; those that are not there answer NOT_FOUND."""
    count = call("nvmlDeviceGetMaxMigDeviceCount", handle)
    found = []
    for index in range(count if isinstance(count, int) else 0):
        part = ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if isinstance(part, dict):
            if part["error"] != 6:
                found.append(part)
            continue
        found.append(
            {
                "name": ask(nvml.nvmlDeviceGetName, part),
                "uuid": ask(nvml.nvmlDeviceGetUUID, part),
                "memory": memory(part),
            }
        )
    return found


def device(index: int) -> Any:
    handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
    if isinstance(handle, dict):
        return {"index": index, "error": handle["error"], "text": handle["text"]}
    mig = call("nvmlDeviceGetMigMode", handle)
    return {
        "index": index,
        "name": ask(nvml.nvmlDeviceGetName, handle),
        "uuid": ask(nvml.nvmlDeviceGetUUID, handle),
        "pci": pci(handle),
        "memory": memory(handle),
        "compute_capability": call("nvmlDeviceGetCudaComputeCapability", handle),
        "memory_clock_mhz": call("nvmlDeviceGetMaxClockInfo", handle, getattr(nvml, "NVML_CLOCK_MEM", 2)),
        "bus_width_bits": call("nvmlDeviceGetMemoryBusWidth", handle),
        "power_limit_mw": call("nvmlDeviceGetEnforcedPowerLimit", handle),
        "display_active": call("nvmlDeviceGetDisplayActive", handle),
        "virtualisation": call("nvmlDeviceGetVirtualizationMode", handle),
        "addressing_mode": call("nvmlDeviceGetAddressingMode", handle),
        "mig": mig if isinstance(mig, dict) else list(mig),
        "instances": instances(handle) if not isinstance(mig, dict) and mig[0] == 1 else [],
    }


def report() -> Any:
    started = ask(nvml.nvmlInit)
    if isinstance(started, dict):
        return started
    count = ask(nvml.nvmlDeviceGetCount)
    if isinstance(count, dict):
        return count
    answer = {
        "driver": call("nvmlSystemGetDriverVersion"),
        "nvml": call("nvmlSystemGetNVMLVersion"),
        "cuda": call("nvmlSystemGetCudaDriverVersion_v2"),
        "devices": [device(index) for index in range(count)],
    }
    ask(nvml.nvmlShutdown)
    return answer


if __name__ == "__main__":
    json.dump(report(), sys.stdout, default=str)
    sys.stdout.write("\n")
