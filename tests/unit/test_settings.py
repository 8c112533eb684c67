"""Settings: the four layers, where each value came from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ownstack.errors import ConfigError
from ownstack.settings import config_path, load, parse_value

FILE = """
use = "code"          # a comment
host = "me@server"

[qdrant]
port = 7001

[ollama]
port = 7002
keep_alive = "5m"
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "box.toml"
    path.write_text(FILE)
    return str(path)


def refused(flags: dict[str, Any] | None = None, path: str | None = None, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(flags, path, environ)
    return caught.value


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    return str(path)


def test_each_layer_wins_over_the_one_before(file: str) -> None:
    environ = {"OWNSTACK_OLLAMA__PORT": "7102", "OWNSTACK_USE": "rag", "PATH": "/bin"}
    settings = load({"use": "vision"}, file, environ)
    told = {key: (value, origin) for key, value, origin in settings.flat()}
    assert told["n8n.port"] == (5678, "default")
    assert told["qdrant.port"] == (7001, file)
    assert told["ollama.keep_alive"] == ("5m", file)
    assert told["ollama.port"] == (7102, "environment")
    assert told["use"] == ("vision", "flag")
    assert settings.base.use == "vision"
    assert settings.role("ollama").port == 7102
    assert settings.base.host == "me@server"


def test_every_key_has_an_origin_and_none_is_named_twice(file: str) -> None:
    keys = [key for key, _, _ in load({}, file, {}).flat()]
    assert len(keys) == len(set(keys))
    assert {"network.n8n", "sources.mirror", "hardware.vram_gib", "models.chat"} <= set(keys)


def test_environment_variables_that_are_not_settings_are_left_alone() -> None:
    environ = {"OWNSTACK_KIT": "/x", "OWNSTACK_CONFIG": "/x", "OWNSTACK_TEST_THING": "1", "OWNSTACK": "no"}
    assert load({}, None, environ).origins == {}


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("uze = 'chat'", "uze", "`use`"),
        ("[olama]\nport = 1", "olama", "`ollama`"),
        ("[ollama]\nkeep_alife = '5m'", "ollama.keep_alife", "`keep_alive`"),
        ("[network]\nn8m = 'lan'", "network.n8m", "`n8n`"),
        ("[sources]\nmiror = '/x'", "sources.miror", "`mirror`"),
        ("[folders.docs]\npaht = '/x'\nservice = 'n8n'", "folders.docs.paht", "`path`"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest_right_one(
    text: str, key: str, near: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    error = refused(path=path)
    assert f"{path}: unknown setting `{key}`" in error.message
    assert near in error.hint
    assert error.exit_code == 2


def test_an_unknown_key_of_the_environment_is_not_passed_over() -> None:
    error = refused(OWNSTACK_QDRANT__PROT="1")
    assert "environment: unknown setting `qdrant.prot`" in error.message
    assert "`port`" in error.hint


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[qdrant]\nport = 'six'", "qdrant.port"),
        ("[qdrant]\nport = 0", "qdrant.port"),
        ("[qdrant]\nport = 65536", "qdrant.port"),
        ("[qdrant]\nport = 22", "qdrant.port"),
        ("[qdrant]\nport = -1", "qdrant.port"),
        ("[network]\nn8n = 'open'", "network.n8n"),
        ("roles = ['qdrant', 'nginx']", "roles.1"),
        ("roles = 'qdrant'", "roles"),
        ("qdrant = 3", "qdrant"),
        ("[hardware]\nvram_gib = -4", "hardware.vram_gib"),
        ("[hardware]\nreserve_gib = nan", "hardware.reserve_gib"),
        ("[folders.docs]\npath = 'relative'\nservice = 'n8n'", "folders.docs.path"),
        ("[folders.docs]\npath = '/x'\nservice = 'nginx'", "folders.docs.service"),
        ("[folders.'a b']\npath = '/x'\nservice = 'n8n'", "folders"),
        ("[sources]\nmirror = 'mirror'", "sources.mirror"),
        ("[sources]\nmirror = 'ftp://mirror'", "sources.mirror"),
        ("[n8n]\nallow_addresses = ['10.0.0.0/99']", "n8n.allow_addresses"),
        ('[n8n]\nallow_addresses = ["mail.example\\n"]', "n8n.allow_addresses"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_place(text: str, key: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    error = refused(path=path)
    assert error.message.startswith(f"{path}: `{key}`:")


def test_ports_that_collide_are_both_named() -> None:
    error = refused({"qdrant.port": 5678})
    assert "n8n.port" in error.message
    assert "qdrant.port" in error.message
    assert "5678" in error.message


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "use = 'chat'\nuse = 'code'\n")
    assert path in refused(path=path).message
    path = write(tmp_path, "use = \n")
    assert "line 1" in refused(path=path).message
    Path(path).write_bytes(b"use = '\xff'")
    assert path in refused(path=path).message


def test_a_value_where_a_table_belongs(tmp_path: Path) -> None:
    error = refused({"network.n8n": "lan"}, write(tmp_path, "network = 'lan'"))
    assert "network is a value, not a table" in error.message


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.toml")
    assert missing in refused(path=missing).message


def test_the_file_is_the_named_one_or_the_one_here_or_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OWNSTACK_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/user")
    assert config_path() == Path("/user/ownstack/ownstack.toml")
    Path("ownstack.toml").write_text("")
    assert config_path() == Path("ownstack.toml")
    monkeypatch.setenv("OWNSTACK_CONFIG", "/named")
    assert config_path() == Path("/named")
    assert config_path("/flag") == Path("/flag")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("'7'", "7"),
        ("qwen3:14b", "qwen3:14b"),
        ("", ""),
        ("http://x:1/", "http://x:1/"),
        ("1\nuse = 'code'", "1\nuse = 'code'"),
    ],
)
def test_values_of_flags_are_toml_or_the_text_itself(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_roles_keep_their_order_and_the_base_is_always_there() -> None:
    assert load({"roles": ["n8n", "qdrant"]}, None, {}).wanted_roles() == ("base", "qdrant", "n8n")
    assert load({}, None, {}).wanted_roles()[0] == "base"


def test_layouts_of_root_of_a_user_and_below_another_root() -> None:
    settings = load({}, None, {})
    assert settings.layout("/home/me", 0).opt == "/opt/ownstack"
    assert settings.layout("/home/me", 1000).etc == "/home/me/.config/ownstack"
    moved = load({"root": "/tmp/box", "prefix": "other"}, None, {})
    layout = moved.layout("/home/me", 0)
    assert layout.unit("open_webui") == "other-open-webui"
    for path in (layout.opt, layout.etc, layout.var, layout.units):
        assert path.startswith("/tmp/box/")
