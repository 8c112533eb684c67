"""A Plan for people: what will be done, and why."""

from __future__ import annotations

from collections.abc import Iterator

from ..plan import ModelChoice, Plan
from .output import size

NETWORK = {
    "closed": "reaches only this machine",
    "lan": "reaches the local network",
    "internet": "reaches the internet",
}


def plan_lines(plan: Plan, changes: list[str] | None = None) -> Iterator[str]:
    """The plan in words: hardware, services, models, sources, needs, warnings."""
    gpus = ", ".join(plan.gpu_names) or "no GPU that can be used"
    yield f"Box on {plan.host.hostname} ({plan.os_name}), {gpus}, profile {plan.profile}"
    yield f"  services run by {plan.manager}, programs in {plan.layout.opt}, data in {plan.layout.var}"
    yield ""
    yield "Services"
    for role in plan.roles:
        for key, port in role.ports.items():
            label = role.name if key == "port" else f"{role.name} ({key.removesuffix('_port')})"
            yield f"  {label:<18} 127.0.0.1:{port:<6} {NETWORK[role.network]}"
    yield ""
    yield "Models"
    for model in plan.models:
        yield from model_lines(model)
    if plan.deferred_model is not None:
        yield f"  this hardware deserves {plan.deferred_model.tag}, which cannot be fetched from here"
    yield ""
    yield "Sources"
    for role in plan.roles:
        for item in role.artifacts:
            taken = f", {size(item.size_bytes)}" if item.size_bytes else ""
            below = "  BELOW ITS SECURITY FLOOR" if item.below_floor else ""
            yield f"  {item.name:<18} {item.version:<12} {item.source} ({item.variant}{taken}){below}"
    yield ""
    yield f"Needs {size(plan.disk_needed_bytes)} of disk and about {size(plan.memory_needed_bytes)} of memory"
    yield from section("Why", plan.reasons)
    yield from section("Note", plan.warnings)
    yield from section("Not protected here", plan.absent_protections)
    if changes is not None:
        yield from section("Will change", changes) if changes else iter(["", "Nothing will change."])


def section(title: str, lines: tuple[str, ...] | list[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield title
        for line in lines:
            yield f"  {line}"


def model_lines(model: ModelChoice) -> Iterator[str]:
    parts = [f"{model.tag}"]
    if model.quant:
        parts.append(model.quant)
    if model.context:
        parts.append(f"context {model.context}")
    taken = model.predicted_gpu_bytes + model.predicted_host_bytes
    if taken:
        parts.append(f"{size(taken)} of memory")
    if model.predicted_tps:
        parts.append(f"about {model.predicted_tps[1]:.0f} tokens/s")
    yield f"  {model.use:<12} {', '.join(parts)}"
    for reason in model.reasons:
        yield f"  {'':<12}   {reason}"
