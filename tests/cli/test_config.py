"""`ownstack config` and `init`: the settings file is changed by one line, or not at all."""

from __future__ import annotations

import io
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli import run
from ownstack.cli.config import put
from ownstack.cli.models import note_folder
from ownstack.settings import load

FILE = """\
# my box
use = "chat"   # mostly

# how far
[network]
n8n = "closed"    # for now
# the rest stays closed

[qdrant]
port = 7001
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    path = tmp_path / "ownstack.toml"
    path.write_text(FILE)
    return path


def test_one_line_changes_and_comments_stay(file: Path) -> None:
    assert run(["config", "set", "network.n8n", "internet"]) == 0
    assert file.read_text() == FILE.replace('n8n = "closed"    # for now', 'n8n = "internet"    # for now')


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("use", "code", FILE.replace('use = "chat"   # mostly', 'use = "code"   # mostly')),
        ("host", "me@server", FILE.replace("mostly\n", 'mostly\nhost = "me@server"\n')),
        ("network.ollama", "lan", FILE.replace("stays closed\n", 'stays closed\nollama = "lan"\n')),
        ("qdrant.port", "7002", FILE.replace("7001", "7002")),
        ("ollama.port", "7003", FILE + "\n[ollama]\nport = 7003\n"),
        ("roles", '["qdrant"]', FILE.replace("mostly\n", 'mostly\nroles = ["qdrant"]\n')),
        ("hardware.cpu_only", "true", FILE + "\n[hardware]\ncpu_only = true\n"),
        ("models.chat", "qwen3:14b", FILE + '\n[models]\nchat = "qwen3:14b"\n'),
        ("ollama.extra_env.OLLAMA_DEBUG", '"1"', FILE + '\n[ollama.extra_env]\nOLLAMA_DEBUG = "1"\n'),
    ],
)
def test_where_a_new_line_goes(file: Path, key: str, value: str, expected: str) -> None:
    assert run(["config", "set", key, value]) == 0
    assert file.read_text() == expected
    flat = {name: found for name, found, origin in load({}, str(file), {}).flat() if origin == str(file)}
    assert key in flat or any(name.startswith(key) for name in flat)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qdrant.port", "80"),
        ("qdrant.port", "five"),
        ("qdrant.port", "5678"),
        ("network.n8n", "open"),
        ("netwrk.n8n", "lan"),
        ("models.chat", "../../etc/passwd"),
        ("n8n.owner_first_name", 'a\nb = "c"'),
        ("host", "me@server; reboot"),
        ("ollama.extra_env.LD_PRELOAD", "/tmp/x.so"),
        ('use" = 1\n[network]\n"x', "1"),
        ("use.deep", "1"),
        ("", "1"),
        ("network", "lan"),
    ],
)
def test_a_wrong_value_leaves_the_file_as_it_is(
    file: Path, key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "set", key, value]) == 2
    assert file.read_text() == FILE
    assert list(file.parent.iterdir()) == [file]
    seen = capsys.readouterr()
    assert seen.err.startswith("error: ")
    assert "hint: " in seen.err


@pytest.mark.parametrize(
    "text",
    ['network = { n8n = "closed" }\n', 'network.n8n = "closed"\n', 'use = """\nchat"""\n', "roles = [\n 'n8n',\n]\n"],
)
def test_a_file_written_another_way_is_changed_rightly_or_not_at_all(file: Path, text: str) -> None:
    file.write_text(text)
    for key, value in (("network.n8n", "lan"), ("use", "code"), ("roles", '["qdrant"]')):
        before = file.read_text()
        if run(["config", "set", key, value]) == 0:
            found = {name: value for name, value, _ in load({}, str(file), {}).flat()}
            assert found[key] == (("qdrant",) if key == "roles" else value)
        else:
            assert file.read_text() == before


def test_a_value_with_everything_in_it_comes_back_as_it_was(file: Path) -> None:
    hostile = "a'b\"c\\d $(id) `id` ; {{ x }} %h # ä\u202e [x] = y"
    assert run(["config", "set", "open_webui.admin_name", hostile]) == 0
    assert load({}, str(file), {}).role("open_webui").admin_name == hostile
    assert run(["config", "set", "open_webui.admin_name", "plain"]) == 0
    assert tomllib.loads(file.read_text())["open_webui"] == {"admin_name": "plain"}


def test_a_file_is_made_where_there_is_none(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file.unlink()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert run(["config", "set", "use", "rag"]) == 0
    made = tmp_path / "config/ownstack/ownstack.toml"
    assert made.read_text() == 'use = "rag"\n'


def test_the_files_mode_and_link_stay(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    file.rename(real)
    real.chmod(0o600)
    file.symlink_to(real)
    assert run(["config", "set", "qdrant.port", "7002"]) == 0
    assert file.is_symlink()
    assert "7002" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o600


def test_all_settings_are_shown_with_their_origin(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWNSTACK_OLLAMA__PORT", "7102")
    assert run(["config", "--origin"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["qdrant.port"].endswith("7001   # ownstack.toml")
    assert lines["ollama.port"].endswith("7102   # environment")
    assert lines["n8n.port"].endswith("5678   # default")
    assert run(["config", "--origin", "--set", "ollama.port=7103", "--set", 'folders.docs.path="/srv/docs"',
                "--set", 'folders.docs.service="n8n"']) == 0  # fmt: skip
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["ollama.port"].endswith("7103   # flag")
    assert lines["folders.docs.path"].endswith('"/srv/docs"   # flag')
    assert lines["qdrant.port"].endswith("7001   # ownstack.toml")
    assert run(["config", "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["data"]
    assert {"key": "ollama.port", "value": 7102, "origin": "environment"} in rows
    assert [row["key"] for row in rows] == [key for key, _, _ in load({}, str(file)).flat()]


# -- init -----------------------------------------------------------------------------------------


def test_init_without_a_terminal_needs_an_answer_to_everything(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.unlink()
    assert run(["init"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert run(["init", "--host", "local", "--use", "rag"]) == 2
    assert not file.exists()
    assert run(["init", "--host", "me@server", "--use", "rag", "--n8n-network", "internet"]) == 0
    settings = load({}, str(file), {})
    told = (settings.base.host, settings.base.use, settings.base.network.n8n)
    assert told == ("me@server", "rag", "internet")


def test_init_with_defaults_changes_nothing_of_what_is_planned(file: Path) -> None:
    file.unlink()
    assert run(["init", "--yes"]) == 0
    assert load({}, str(file), {}).base == load({}, "/dev/null", {}).base
    assert run(["init", "--yes"]) == 2
    assert run(["init", "--yes", "--use", "code", "--force"]) == 0
    assert load({}, str(file), {}).base.use == "code"


def test_init_refuses_a_host_that_is_none(file: Path) -> None:
    file.unlink()
    assert run(["init", "--yes", "--host", "me@server; reboot"]) == 2
    assert run(["init", "--yes", "--host", 'x"\n[network]\nn8n = "internet']) == 2
    assert not file.exists()


def test_init_asks_what_matters(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file.unlink()
    monkeypatch.setattr("sys.stdin", Terminal("me@server\ncode\ny\n"))
    assert run(["init"]) == 0
    settings = load({}, str(file), {})
    assert (settings.base.host, settings.base.use, settings.base.network.n8n) == ("me@server", "code", "internet")


@pytest.mark.parametrize(
    "before",
    [
        "",
        'use = "code"\n[folders]\nnotes = {path = "/n", service = "n8n"}\n',
        '[folders]\nmodels = {path = "/a", service = "ollama", write = true}  # the large disk\n',
        '[folders.models]\n# the large disk\npath = "/a"\nservice = "ollama"\nwrite = true\n[qdrant]\nport = 6400\n',
    ],
)
def test_the_models_folder_is_noted_however_it_stood_there(before: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(before)
    for path in ("/b", "/c d"):
        note_folder(str(file), path)
        bound = load({}, str(file)).base.folders["models"]
        assert (bound.path, bound.service, bound.write) == (path, "ollama", True)
    assert ("# the large disk" in file.read_text()) == ("# the large disk" in before)
    assert len(load({}, str(file)).base.folders) == 1 + ("notes" in before)


def test_it_is_on_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("on the disk"))
    replace = Path.replace

    def placed(self: Path, target: Path) -> None:
        done.append("in its place")
        replace(self, target)

    monkeypatch.setattr(Path, "replace", placed)
    put(tmp_path / "ownstack.toml", 'use = "code"\n')
    assert done == ["on the disk", "in its place"]
    assert (tmp_path / "ownstack.toml").read_text() == 'use = "code"\n'
