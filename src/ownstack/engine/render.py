"""Rendering of templates on the controller. An undefined name is an error, never an empty string."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from typing import Any

import jinja2
from jinja2.bccache import Bucket

from ..errors import ConfigError
from ..kit import kit_root
from .carry import cache_root


def env_value(value: object) -> str:
    """A value for a KEY=VALUE line: quoted so that systemd and our own reader agree on it."""
    text = str(value)
    if any(ord(char) < 32 for char in text):
        raise ConfigError(f"a value with a line break or control character cannot be set: {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


OPTIONS: dict[str, Any] = {"keep_trailing_newline": True, "trim_blocks": True, "lstrip_blocks": True}


class Compiled(jinja2.FileSystemBytecodeCache):
    """What jinja made of a template, kept in the user's cache for the next run. It counts for that text alone."""

    def get_cache_key(self, name: str, filename: str | None = None) -> str:
        return super().get_cache_key(name)  # of all checkouts of the kit

    def get_source_checksum(self, source: str) -> str:
        return super().get_source_checksum(f"{OPTIONS} {source}")

    def load_bytecode(self, bucket: Bucket) -> None:
        try:
            super().load_bytecode(bucket)
        except Exception:  # damaged: whatever pickle makes of it
            bucket.reset()

    def dump_bytecode(self, bucket: Bucket) -> None:
        with contextlib.suppress(OSError):  # a full disk, say
            os.makedirs(self.directory, exist_ok=True)
            super().dump_bytecode(bucket)


@functools.cache
def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        bytecode_cache=Compiled(str(cache_root() / "templates")),
        loader=jinja2.FileSystemLoader(str(kit_root() / "templates")),
        undefined=jinja2.StrictUndefined,
        **OPTIONS,
        autoescape=False,  # noqa: S701 - no HTML is rendered; each template quotes for its own format
    )
    made.filters["json"] = json.dumps
    made.filters["env"] = env_value
    return made


def render(name: str, **values: Any) -> str:
    """Render `templates/<name>`. Raises ConfigError that names the template and the line."""
    try:
        return environment().get_template(name).render(**values)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"templates/{error.name}:{error.lineno}: {error.message}") from error
    except jinja2.TemplateError as error:
        raise ConfigError(f"templates/{name}: {error.message}") from error
