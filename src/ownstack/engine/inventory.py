"""pyinfra's inventory of the one host that a session works on, and how commands run on this machine."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

from pyinfra.connectors.util import CommandOutput, OutputLine, run_local_process


def connector_for(local: bool) -> Any:
    """What pyinfra works on a host with."""
    if local:
        module: Any = importlib.import_module("pyinfra.connectors.local")
        module.run_local_process = run_here
        return module.LocalConnector
    found = importlib.import_module("pyinfra.connectors.ssh").SSHConnector
    # Python sets this where it imports a submodule, which was before the real paramiko
    vars(sys.modules["paramiko"])["ssh_exception"] = sys.modules["paramiko.ssh_exception"]
    return found


def run_here(
    command: str, stdin: Any = None, timeout: int | None = None, print_output: bool = False, print_prefix: str = ""
) -> tuple[int, CommandOutput]:
    """What pyinfra does by itself takes four times as long; it is needed where somebody listens to a command."""
    if stdin or print_output:
        return run_local_process(command, stdin, timeout, print_output, print_prefix)
    process = subprocess.Popen(
        ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise TimeoutError from None
    lines = []
    for name, data in zip(("stdout", "stderr"), said, strict=True):
        parts = data.decode("utf-8", "replace").split("\n")
        lines += [OutputLine(name, part) for part in (parts if parts[-1] else parts[:-1])]
    return process.returncode, CommandOutput(lines)


def inventory_of(connector: Any, name: str, data: dict[str, Any]) -> Any:
    """pyinfra's Inventory of one host. It would load all its connectors, and look through all packages for more."""
    module: Any = importlib.import_module("pyinfra.api.inventory")
    connectors = {"ssh": connector, name[1:].partition("/")[0]: connector}
    real = module.get_all_connectors, module.get_execution_connectors
    module.get_all_connectors = module.get_execution_connectors = lambda: connectors
    try:
        made = module.Inventory(([(name, data)], {}))
    finally:
        module.get_all_connectors, module.get_execution_connectors = real
    for host in made:  # each operation looks for some thirty names in each of seven places; only one holds anything
        vars(host.data)["datas"] = (host.data.override_datas, host.data.dict())
    return made
