"""Rendering of templates on the controller. An undefined name is an error, never an empty string."""

from __future__ import annotations

import functools
import json
from typing import Any

import jinja2

from ..errors import ConfigError
from ..kit import kit_root


def env_value(value: object) -> str:
    """A value for a KEY=VALUE line: quoted so that systemd and our own reader agree on it."""
    text = str(value)
    if any(ord(char) < 32 for char in text):
        raise ConfigError(f"a value with a line break or control character cannot be set: {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@functools.cache
def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(kit_root() / "templates")),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
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
