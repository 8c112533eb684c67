"""Reading the machine for `fit` and `bench`: this one, one at `--host`, or a saved report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..hardware.report import HardwareReport


def report_of(host: str = "", source: Path | None = None) -> HardwareReport:
    """The report of a machine. `source` is a saved raw probe, or `detect --json`'s output."""
    from pydantic import ValidationError

    from ..hardware.interpret import interpret
    from ..hardware.report import HardwareReport
    from .detect import observe

    if source is not None:
        try:
            data = json.loads(source.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{source}: {error}", hint="a file of `ownstack detect --raw` or `--json`") from error
        inner = data.get("data", data) if isinstance(data, dict) else data
        if isinstance(inner, dict) and "cpu" in inner and "memory" in inner and "host" in inner:
            try:
                return HardwareReport.model_validate(inner)
            except ValidationError as error:
                raise ConfigError(
                    f"{source}: {error.error_count()} wrong values", hint="save the report again"
                ) from error
    return interpret(observe(host, from_file=source))
