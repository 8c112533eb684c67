"""pyinfra, imported without what is not used here: that takes as long as the rest of it.

This comes before any other import of pyinfra, see `__init__`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

STANDING_IN: dict[str, dict[str, Any]] = {
    "unittest.mock": {"Mock": type("Mock", (), {}), "patch": None},
    "packaging.markers": {"Marker": None},
    "packaging.requirements": {"Requirement": None},
    "packaging.specifiers": {"SpecifierSet": None},
    "packaging.version": {"Version": None},
}


def load() -> type[Exception]:
    """Import pyinfra while names stand for the modules that it would import and that nothing needs:

    * paramiko, where no connection is made. Of it pyinfra's core uses an error's class, which is the real one, and a
      class in annotations. A connection over SSH imports the real paramiko then.
    * Mock: typeguard lets one pass as anything. With it comes the whole of asyncio.
    * packaging: it reads what a deploy of pyinfra's own command may require of pyinfra.

    Gives paramiko's error.
    """
    if "pyinfra" in sys.modules or "paramiko" in sys.modules:  # pyinfra's own command, say
        error: type[Exception] = importlib.import_module("paramiko").SSHException
        return error
    spec = importlib.util.find_spec("paramiko")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    # paramiko runs programs that an ssh configuration names through it; pyinfra gives it something else for that
    sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]
    with contextlib.ExitStack() as stack:
        for name, names in STANDING_IN.items():
            if name not in sys.modules:
                stack.enter_context(_standing_in(name, **names))
        paramiko = stack.enter_context(_standing_in("paramiko", PKey=object, __path__=folders))
        error = paramiko.SSHException = importlib.import_module("paramiko.ssh_exception").SSHException
        importlib.import_module("pyinfra.api.operations")
    arguments: Any = importlib.import_module("pyinfra.api.arguments")
    # it evaluates the same annotations anew for each operation
    arguments.all_global_arguments = functools.cache(arguments.all_global_arguments)
    return error


@contextlib.contextmanager
def _standing_in(name: str, **names: Any) -> Iterator[Any]:
    """For a while a module that has nothing but these names."""
    module = ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module
    try:
        yield module
    finally:
        del sys.modules[name]


SSHException = load()
