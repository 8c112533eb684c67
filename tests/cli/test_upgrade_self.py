"""`ownstack upgrade --self` from a file, a folder, an address and the mirror; what it says, asks, and refuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ownstack.bundle.source import NAME, SIGNATURE
from ownstack.cli import run
from ownstack.data import load_data
from ownstack.kit import bundles, data_in_use, forget, own_data
from ownstack.settings import ROLE_NAMES
from tests.cli.standing import Box, stand
from tests.fixtures.bundles import SERIAL, Files, Publisher, data, replaced
from tests.hosts.serve import Answer, Fault, FileServer, folder
from tests.unit import machines

ROOT = Path(__file__).parents[2]
OLLAMA = "roles/ollama/artifacts.toml"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    forget()
    yield
    forget()


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    found = Publisher(tmp_path / "published")
    found.publish(newer())
    return found


@pytest.fixture
def served(publisher: Publisher) -> Iterator[FileServer]:
    with FileServer(folder(publisher.folder)) as server:
        yield server


def newer(serial: int = SERIAL) -> Files:
    return replaced(OLLAMA, '"0.40.2"', '"0.41.7"', data(serial))


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and envelope of `upgrade --self`."""
    capsys.readouterr()
    code = run(["upgrade", "--self", "--json", *words])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(answer) == {"schema", "ok", "data", "error"}
    return code, answer


def test_it_is_shown_asked_and_taken(
    publisher: Publisher, served: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"{served.url}/{NAME}"
    words = ("--from", place, "--set", publisher.trust)
    code, answer = told(capsys, *words)
    assert (code, answer["error"]["code"]) == (2, "usage"), "nobody is there to ask"
    assert answer["data"]["changes"]["versions"][0]["new"] == "0.41.7"
    assert data_in_use().folder is None
    code, answer = told(capsys, *words, "--check")
    assert (code, answer["data"]["taken"]) == (0, False)
    assert data_in_use().folder is None
    assert run(["upgrade", "--self", *words, "--yes"]) == 0
    seen = capsys.readouterr()
    assert f"asking {place}" in seen.err
    assert f"signed with the key {publisher.key.public.name}: of a test" in seen.err
    assert "ollama 0.40.2 -> 0.41.7 (vendor, vendor-aarch64)" in seen.err
    assert f"the data {SERIAL} are in use; no box was changed" in seen.out
    assert data_in_use().serial == SERIAL
    code, answer = told(capsys, *words, "--yes")
    assert (code, answer["schema"], answer["data"]["taken"]) == (0, "ownstack/upgrade-self/1", False)
    assert set(served.paths()) == {f"/{NAME}", f"/{NAME}{SIGNATURE}"}


def test_places(publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file, a folder, the settings, an address that ends with a slash, and the mirror, which comes before them."""
    mirror = Publisher(tmp_path / "mirror" / "ownstack", publisher.key)
    mirror.publish(newer(SERIAL + 1))
    trust = ("--set", publisher.trust)
    places = [
        (str(publisher.folder / NAME), ("--from", str(publisher.folder / NAME))),
        (str(publisher.folder / NAME), ("--from", str(publisher.folder))),
        (str(publisher.folder / NAME), ("--set", f"sources.bundle={publisher.folder}")),
        (str(mirror.folder / NAME), ("--mirror", str(tmp_path / "mirror"), "--set", "sources.bundle=https://no.example/")),
        (str(publisher.folder / NAME), ("--mirror", str(tmp_path / "mirror"), "--from", str(publisher.folder))),
    ]  # fmt: skip
    for place, words in places:
        code, answer = told(capsys, *trust, *words, "--check")
        assert (code, answer["data"]["from"]) == (0, place), words
    with FileServer(folder(tmp_path / "mirror")) as server:
        code, answer = told(capsys, *trust, "--check", "--mirror", server.url)
        assert (code, answer["data"]["serial"]) == (0, SERIAL + 1)
        code, answer = told(capsys, *trust, "--check", "--from", f"{server.url}/ownstack/")
        assert (code, answer["data"]["serial"]) == (0, SERIAL + 1)


def test_without_a_key_or_a_place_it_says_how_to_name_one(
    publisher: Publisher, served: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = told(capsys, "--from", served.url, "--yes")
    assert (code, answer["error"]["code"]) == (2, "bundle-keys")
    assert '[sources] bundle_keys = ["RW..."]' in answer["error"]["hint"]
    code, answer = told(capsys, "--set", publisher.trust)
    assert (code, answer["error"]["code"]) == (2, "bundle-source")
    assert "[sources] bundle = " in answer["error"]["hint"]
    code, answer = told(capsys, "--set", 'sources.bundle_keys=["RWshort"]')
    assert (code, "sources.bundle_keys" in answer["error"]["message"]) == (2, True)
    assert served.paths() == [], "nothing was asked"


def test_what_is_wrong_changes_nothing(
    publisher: Publisher, served: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--from", f"{served.url}/", "--set", publisher.trust, "--yes")

    def refused() -> str:
        code, answer = told(capsys, *words)
        assert code == 1
        assert answer["error"]["hint"]
        assert data_in_use().folder is None
        return str(answer["error"]["code"])

    for path, fault, expected in (
        (NAME, Fault(status=404), "bundle-source"),
        (f"{NAME}{SIGNATURE}", Fault(status=404), "bundle-source"),
        (NAME, Fault(flip=True), "bundle-signature"),
        (NAME, Fault(cut_after=1000), "bundle-source"),
    ):
        served.faults = {f"/{path}": fault}
        assert refused() == expected, path
    served.faults = {}
    plain = served.resolve
    endless = bytes(17 << 20)
    served.resolve = lambda host, path: Answer(endless)
    assert refused() == "bundle-large"
    served.resolve = plain
    stranger = Publisher(publisher.folder)
    stranger.publish(newer())
    assert refused() == "bundle-signature"
    served.close()
    assert refused() == "bundle-source"


def test_an_older_one_is_refused_and_undo_goes_back(publisher: Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--from", str(publisher.folder), "--set", publisher.trust, "--yes")
    publisher.publish(newer(SERIAL + 1))
    assert told(capsys, *words)[0] == 0
    publisher.publish(newer(SERIAL))
    code, answer = told(capsys, *words)
    assert (code, answer["error"]["code"]) == (1, "bundle-older")
    assert "--undo" in answer["error"]["hint"]
    assert told(capsys, "--undo")[1]["error"]["code"] == "usage", "it asks before"
    code, answer = told(capsys, "--undo", "--yes")
    assert (code, answer["data"]) == (0, {"from": SERIAL + 1, "serial": own_data()["serial"], "folder": ""})
    assert told(capsys, "--undo", "--yes")[1]["error"]["code"] == "bundle-none"


def test_plan_config_and_status_say_what_is_used(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box: Box = stand(monkeypatch)
    monkeypatch.setattr(machines, "data", lambda: load_data(ROLE_NAMES))  # as each process reads them
    assert run(["config"]) == 0
    assert f"the program's own data {own_data()['serial']} are in use" in capsys.readouterr().err
    code, answer = told(capsys, "--from", str(publisher.folder), "--set", publisher.trust, "--yes")
    assert code == 0
    words = f"the data {SERIAL} of `ownstack upgrade --self` are in use"
    assert run(["config"]) == 0
    assert words in capsys.readouterr().err
    assert run(["status"]) == 0
    assert words in capsys.readouterr().out
    assert run(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["data"]["folder"] == answer["data"]["folder"]
    assert run(["plan"]) == 0
    assert "ollama 0.40.2 is installed, the lock has 0.41.7: upgrade available" in capsys.readouterr().out
    assert box.seen.files == []
    (bundles() / str(SERIAL) / OLLAMA).unlink()
    forget()
    assert run(["config"]) == 0
    assert "the program's own data are used" in capsys.readouterr().err


def test_the_tool_of_maintainers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tool(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools/bundle.py"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    made = tool("key", "key")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert tool("key", "key").returncode == 1, "a key is never overwritten"
    assert tool("key", str(ROOT / "key")).returncode == 1, "nor put where it could be committed"
    assert not (ROOT / "key").exists()
    done = tool("make", "out", "--key", "key", "--comment", "of the tool")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == [NAME, f"{NAME}{SIGNATURE}"]
    trust = f'sources.bundle_keys=["{made.stdout.strip()}"]'
    code, answer = told(capsys, "--from", "out", "--set", trust, "--yes")
    assert (code, answer["data"]["comment"], answer["data"]["taken"]) == (0, "of the tool", False)
