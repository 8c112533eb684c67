"""Hostile text in every setting that takes text: refused with its key, or rendered without any effect."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from ownstack.engine import carry, units
from ownstack.engine.apply import execute
from ownstack.errors import ConfigError, OwnstackError
from ownstack.plan import ConfigFile, Plan
from ownstack.runner.box import read_environment
from ownstack.settings import Base, load, role_models
from roles import roles_of
from tests.plan.fake import FakeSession
from tests.unit import machines

SHORT = ("$(id)", "`id`", "';id;'", '"|id|"', "a&&id||b", "*?[a]{b,c}")  # short enough for every name
TEXTS = (
    "; touch /tmp/ownstack-canary",
    "$(touch /tmp/ownstack-canary)",
    "`touch /tmp/ownstack-canary`",
    "' || touch /tmp/ownstack-canary || '",
    '" && touch /tmp/ownstack-canary && "',
    "\nExecStartPre=/bin/touch /tmp/ownstack-canary",
    "x\r\nINJECTED=1",
    "{{ 7 * 7 }}{% for x in range(9) %}",
    "%h %n %i",
    "${HOME} $HOME $$",
    "a\\",
    *SHORT,
    "../../etc/passwd",
    "@@secret:n8n_encryption_key@@",
    "\x00",
    "\x1b[2J\x1b]0;title\x07",
    "-rf",
    "a b:c,d;e|f>g<h*?~#",
    "\u202egnp.exe \u2028\u00a0\u0430",
    "x" * 10_000,
)
# what stands before a hostile text, so that it passes a look at the beginning
STARTS = ("", "/", "http://h/", "user@", "qwen3:")
HARMLESS = {"folders.docs.path": "/srv/plain", "sources.mirror": "/plain", "sources.bundle": "/plain"}


def text_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key, shape) of every setting that takes text, found by the models themselves."""
    for name, field in model.model_fields.items():
        key, kind = prefix + name, field.annotation
        if kind is str:
            yield key, "text"
        elif get_origin(kind) is tuple and get_args(kind)[0] is str:
            yield key, "list"
        elif get_origin(kind) is dict and get_args(kind)[1] is str:
            yield f"{key}.OLLAMA_DEBUG", "text"
            yield key, "key"
        elif get_origin(kind) is dict:
            yield from text_fields(get_args(kind)[1], f"{key}.docs.")
            yield key, "key"
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from text_fields(kind, f"{key}.")


FIELDS = [*text_fields(Base), *(f for name, model in role_models().items() for f in text_fields(model, f"{name}."))]


def flags(key: str, shape: str, text: str) -> dict[str, Any]:
    if key.startswith("folders.docs."):
        return {"folders.docs.service": "n8n", "folders.docs.path": "/srv/x", key: text}
    if shape == "list":
        return {key: [text]}
    if shape == "key":
        inner: Any = {"path": "/srv/x", "service": "n8n"} if key == "folders" else "1"
        return {key: {text: inner}}
    return {key: text}


def refusal(given: dict[str, Any]) -> ConfigError | None:
    try:
        load(given, None, {})
    except ConfigError as error:
        return error
    return None


@functools.cache
def sorted_out() -> tuple[dict[str, list[str]], int]:
    """What is accepted for each key, and how many values were tried. A refusal must name the key and be printable."""
    accepted: dict[str, list[str]] = {}
    count = 0
    for (key, shape), start, text in itertools.product(FIELDS, STARTS, TEXTS):
        count += 1
        error = refusal(flags(key, shape, start + text))
        if error is not None:
            assert key.partition(".")[0] in error.message, error.message
            assert error.message.isprintable(), f"{key}: {error.message!r}"
            assert len(error.message) < 1000, f"{key}: {error.message[:300]}"
        elif shape != "key":
            accepted.setdefault(key, []).append(start + text)
    return accepted, count


def test_every_text_setting_is_tried() -> None:
    keys = {key for key, _ in FIELDS}
    for key in (
        "host", "root", "prefix", "timezone", "sources.mirror", "folders.docs.path", "models.chat", "ollama.url",
        "ollama.extra_env", "open_webui.admin_name", "open_webui.hosts", "n8n.owner_email", "n8n.allow_addresses",
    ):  # fmt: skip
        assert key in keys
    _, count = sorted_out()
    assert count >= 200


FREE = {
    "folders.docs.path", "sources.mirror", "sources.bundle", "open_webui.admin_name", "n8n.owner_first_name",
    "n8n.owner_last_name",
}  # fmt: skip


def test_what_is_taken_as_it_is_are_few_settings_known_by_name() -> None:
    """Names of people, and paths: all others take only text that means nothing to any program."""
    accepted, _ = sorted_out()
    bold = {key for key, texts in accepted.items() if not all(re.fullmatch(r"[\w.@:/+-]*", t, re.A) for t in texts)}
    assert bold == FREE


def hostile_plan(values: dict[str, str], machine: str) -> Plan:
    given: dict[str, Any] = {"folders.docs.service": "n8n", "folders.docs.write": True}
    given |= values
    return machines.plan(machine, given, machines.sources())


def all_files(plan: Plan) -> list[ConfigFile]:
    found = []
    for role in roles_of(plan):
        found += role.files(plan)
        for service in role.services(plan):
            found += units.unit_files(plan, service)
    return found


def shape(file: ConfigFile, tmp_path: Path) -> object:
    """What a program makes of a file, without the values themselves."""
    if file.path.endswith(".py"):
        return [type(node).__name__ for node in ast.walk(ast.parse(file.content))]
    if file.path.endswith(".json"):
        return sorted(json.loads(file.content))
    if file.path.endswith((".service", ".conf", ".timer")):
        return [line.partition("=")[0] for line in file.content.split("\n")]
    if "env" in Path(file.path).name:
        path = tmp_path / "env"
        path.write_text(file.content, encoding="utf-8")
        return [line.partition("=")[0] for line in file.content.split("\n")], sorted(read_environment(str(path)))
    return file.content.count("\n")


def cases() -> list[dict[str, str]]:
    """The accepted values of all keys, combined so that each is used once."""
    accepted, _ = sorted_out()
    usable = {key: texts for key, texts in accepted.items() if key in FREE}
    longest = max(map(len, usable.values()))
    return [{key: texts[i % len(texts)] for key, texts in usable.items()} for i in range(longest)]


@pytest.mark.parametrize("machine", ["bare-server", "container-cgroup-v2"])
def test_files_keep_their_shape(machine: str, tmp_path: Path) -> None:
    first = cases()[0]
    plain = hostile_plan({key: HARMLESS.get(key, "plain") for key in first}, machine)
    expected = {file.path: shape(file, tmp_path) for file in all_files(plain)}
    assert len(expected) >= 8
    for values in cases():
        made = hostile_plan(values, machine)
        assert {file.path: shape(file, tmp_path) for file in all_files(made)} == expected, values


def test_names_reach_the_services_as_they_were_written(tmp_path: Path) -> None:
    for values in cases():
        made = hostile_plan(values, "bare-server")
        path = tmp_path / "env"
        for file in all_files(made):
            if file.path.endswith("open_webui/env") or file.path.endswith("open-webui/env"):
                path.write_text(file.content, encoding="utf-8")
                assert read_environment(str(path))["WEBUI_ADMIN_NAME"] == values["open_webui.admin_name"]
                break
        else:
            pytest.fail(f"no environment of Open WebUI among {[file.path for file in all_files(made)]}")


def test_commands_keep_their_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each command is one `sh -c` with one script; each value stays within one word of it."""
    file = tmp_path / "carried"
    file.write_bytes(b"carried")
    monkeypatch.setattr(carry, "held", lambda artifact: carry.Carried(file, "c" * 64))
    from deploy import apply

    def words(values: dict[str, str]) -> list[list[int]]:
        with FakeSession() as session:
            session.use_sudo()
            plan = hostile_plan(values, "bare-server")
            execute(session, apply, lambda event: None, plan=plan)
            found = []
            for command in session.seen.commands:
                if "TMPDIR" in command:  # pyinfra's own question, asked once in a process
                    continue
                outer = shlex.split(command)
                assert outer[:5] == ["sudo", "-H", "-n", "sh", "-c"]
                inner = shlex.split(outer[5])
                if "--json" in inner:
                    json.loads(inner[inner.index("--json") + 1])
                found.append([len(outer), len(inner)])
            return found

    # of a text of 10,000 characters a command holds fewer, and there are more commands
    chosen = [case for case in cases() if max(map(len, case.values())) < 200]
    expected = words({key: HARMLESS.get(key, "plain") for key in chosen[0]})
    for values in chosen[:: max(1, len(chosen) // 12)]:
        assert words(values) == expected, values
    assert not Path("/tmp/ownstack-canary").exists()


@pytest.mark.parametrize("key", sorted(FREE))
def test_no_setting_may_ask_for_a_secret(key: str) -> None:
    """In a file that is filled on the target, the mark would be replaced by the secret."""
    mark = "@@secret:n8n_encryption_key@@"
    error = refusal(flags(key, "text", f"/{mark}" if key in HARMLESS else mark))
    assert error is not None
    assert f"`{key}` may not hold" in error.message


@pytest.mark.parametrize(
    "tag",
    ["../../etc/x", "http://evil.example/a", "a b", "-h", "$(id)", "a\nb", "a:b:c", "a//b", "", "x" * 201],
)
def test_model_names_that_are_none(tag: str) -> None:
    if tag == "":
        assert load({"models.chat": tag}, None, {}).role("models").chat == ""
        return
    with pytest.raises(ConfigError):
        load({"models.chat": tag}, None, {})


@pytest.mark.parametrize(
    "host", ["a;b", "a b", "$(id)", "-oProxyCommand=x", "me@-x", "-x", "a\n", "user:pass@host/", ""]
)
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(OwnstackError):
        load({"host": host}, None, {})
