"""`ownstack detect`: what this machine (or the one at `--host`) is, and where each value came from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import emit_json, fail, say
from .site import read_settings, target_options

if TYPE_CHECKING:
    from ..hardware.facts import RawProbe
    from ..hardware.report import Gpu, HardwareReport, Reading


def observe(
    host: str, *, from_file: Path | None = None, wake: bool = False, both: bool = False, ssh_config: str = ""
) -> RawProbe:
    """The raw probe of a saved file, of this machine, or of a host over SSH."""
    from ..hardware.collect import collect
    from ..hardware.facts import load

    if from_file is not None:
        return load(from_file)
    if host in ("", "local"):
        return collect(wake=wake, both=both)
    from ..engine.session import Session, Target

    with Session(Target.parse(host, ssh_config)) as session:
        return collect(session, wake=wake, both=both)


def gib(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 2**30:.1f} GiB"


def shown(reading: Reading[Any], text: str = "") -> str:
    """A value with where it came from, or why it is not known."""
    if reading.value is None:
        return f"unknown ({reading.reason})"
    return f"{text or reading.value} ({reading.source})"


def describe_gpu(gpu: Gpu) -> list[str]:
    total, free, rate = gpu.memory_total_bytes, gpu.memory_free_bytes, gpu.bandwidth_bytes_per_s
    lines = [f"{gpu.name}  [{gpu.kind}]  {gpu.pci_id}".rstrip()]
    lines.append(f"memory      {shown(total, gib(total.value))}, free {shown(free, gib(free.value))}")
    if gpu.vram_bytes.value is not None or gpu.gtt_bytes.value is not None:
        lines.append(f"            VRAM {gib(gpu.vram_bytes.value)}, GTT {gib(gpu.gtt_bytes.value)}")
    lines.append(f"bandwidth   {shown(rate, f'{(rate.value or 0) / 1e9:.0f} GB/s')}")
    target = gpu.compute_capability if gpu.compute_capability.value else gpu.gfx_target
    if target.value:
        lines.append(f"target      {shown(target)}")
    if gpu.driver_version.value:
        runtime = f", {gpu.runtime_version.value}" if gpu.runtime_version.value else ""
        floor = f"; the engine needs {gpu.driver_floor.value}" if gpu.driver_floor.value else ""
        lines.append(f"driver      {shown(gpu.driver_version)}{runtime}{floor}")
    usable = "no" if not gpu.usable else "expected" if gpu.asleep else "yes"
    lines.append(f"usable      {usable}{': ' + gpu.why if gpu.why else ''}")
    return [lines[0], *("  " + line for line in lines[1:])]


def describe(report: HardwareReport) -> list[str]:
    """The report for people."""
    host, cpu, memory = report.host, report.cpu, report.memory
    where = ", ".join(filter(None, [host.virtualisation, host.container and f"container: {host.container}"]))
    lines = [
        f"host        {host.hostname}: {host.os_name}, kernel {host.kernel}" + (f" ({where})" if where else ""),
        f"cpu         {cpu.model}, {cpu.cores} cores, {cpu.threads} threads, {cpu.architecture}",
        f"memory      {gib(memory.total_bytes)}, {gib(memory.available_bytes)} available",
    ]
    if memory.swap_total_bytes:
        lines.append(f"swap        {gib(memory.swap_total_bytes)}")
    if memory.limit_bytes is not None:
        lines.append(f"limit       {gib(memory.limit_bytes)} (control group)")
    seen: dict[str, list[str]] = {}
    for disk in report.disks:
        seen.setdefault(
            f"{gib(disk.free_bytes)} free of {gib(disk.total_bytes)} on {disk.mount or disk.path}", []
        ).append(disk.path)
    lines += [f"disk        {text}  ({', '.join(paths)})" for text, paths in seen.items()]
    lines.append(f"init        {host.init}, sudo: {host.sudo}" + (", on battery" if host.on_battery else ""))
    for gpu in report.gpus:
        first, *rest = describe_gpu(gpu)
        lines += [f"gpu         {first}", *(f"          {line}" for line in rest)]
    if not report.gpus:
        lines.append(f"gpu         {'not known, see the problem below' if report.fatal else 'none that can be used'}")
    lines += [f"left out    {gpu.name}: {gpu.why}" for gpu in report.ignored_gpus]
    lines += [f"override    {name} = {value}" for name, value in report.overrides]
    for problem in report.problems:
        lines += [
            f"{'problem' if problem.fatal else 'note':<12}{problem.id}: {problem.message}",
            f"  fix       {problem.fix}",
        ]
    lines.append(f"fingerprint {report.fingerprint()}")
    return lines


@click.command()
@target_options
@click.option(
    "--raw", "raw_file", type=click.Path(path_type=Path), help="Save what was observed to FILE, for a bug report."
)
@click.option(
    "--from", "from_file", type=click.Path(path_type=Path), help="Interpret a saved probe instead of a machine."
)
@click.option("--wake", is_flag=True, help="Wake a sleeping graphics card and measure it.")
@click.option("--cpu-only", is_flag=True, help="Go on without the GPU, knowingly.")
def detect(
    host: str | None,
    config_file: str | None,
    sets: tuple[str, ...],
    sudo_password_file: Path | None,
    as_json: bool,
    verbose: int,
    raw_file: Path | None,
    from_file: Path | None,
    wake: bool,
    cpu_only: bool,
) -> int:
    """Say what the machine is: CPU, memory, disks, GPUs, where each value came from, and what stands in the way.

    Exit code 3 when something visibly there could not be read; `--cpu-only` goes on without it.
    """
    from ..errors import DetectionError
    from ..hardware.facts import save
    from ..hardware.interpret import interpret

    settings = read_settings(config_file, sets, host=host, cpu_only=cpu_only).base
    raw = observe(
        settings.host, from_file=from_file, wake=wake, both=raw_file is not None,
        ssh_config=os.environ.get("OWNSTACK_SSH_CONFIG", ""),
    )  # fmt: skip
    if raw_file is not None:
        save(raw, raw_file)
    report = interpret(raw, settings.hardware.overrides())
    error = None
    if report.fatal:
        first = report.fatal[0]
        error = DetectionError(first.message, hint=first.fix, code=first.id)
    if as_json:
        emit_json("detect", report.model_dump(mode="json") | {"fingerprint": report.fingerprint()}, error)
        return error.exit_code if error else 0
    for line in describe(report):
        say(line)
    if error is None:
        return 0
    # the report above has told each problem and its fix
    names = ", ".join(problem.id for problem in report.fatal)
    told = DetectionError(
        f"`ownstack up` stops here: {names}", hint="mend that, or add `--cpu-only` to go on knowingly"
    )
    return fail("detect", False, told, error.exit_code)
