"""What is asked before anything changes: becoming root, which sources answer, what stands on the box."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli.site import sudo_password
from ownstack.engine import preflight
from ownstack.engine.session import PLACEHOLDER, Session, Target, read_result
from ownstack.errors import ConfigError, OwnstackError, RunError, UnreachableError
from ownstack.plan import Layout
from ownstack.settings import load
from tests.plan.fake import FakeSession, bare
from tests.unit import machines

ROOT = Path(__file__).parents[2]
PASSWORD = "s; $(e) 'c' \"r\" e\\t %h"


# -- becoming root --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["root", "passwordless"])
def test_root_without_a_password(kind: str) -> None:
    with FakeSession() as session:
        preflight.become_root(session, machines.changed("bare-server", host={"sudo": kind}), None)
        session.shell("true")
        assert session.seen.commands[-1].startswith("sudo ") == (kind == "passwordless")


@pytest.mark.parametrize(("kind", "words"), [("none", "cannot use sudo"), ("password", "needs a password for sudo")])
def test_no_way_to_become_root_is_told_before_anything(kind: str, words: str) -> None:
    with FakeSession() as session, pytest.raises(RunError) as caught:
        preflight.become_root(session, machines.changed("bare-server", host={"sudo": kind}), None)
    assert caught.value.code == "no-sudo"
    assert words in caught.value.message
    assert session.seen.files == []


@pytest.mark.parametrize("right", [True, False])
def test_a_password_is_tried_once_and_stays_out_of_sight(right: bool) -> None:
    def answer(command: str) -> list[str] | None:
        if "mktemp" in command:
            return ["/run/user/1/ownstack-x"]
        if "sudo -A -k true" in command:
            return [] if right else ["__ownstack_rc=1"]
        return None

    with FakeSession(answer) as session:
        report = machines.changed("bare-server", host={"sudo": "password", "user": "me"})
        if right:
            preflight.become_root(session, report, PASSWORD)
        else:
            with pytest.raises(RunError) as caught:
                preflight.become_root(session, report, PASSWORD)
            assert caught.value.code == "wrong-sudo-password"
            assert PASSWORD not in caught.value.message + caught.value.hint
        tried = [command for command in session.seen.commands if "sudo -A -k true" in command]
    assert len(tried) == 1
    assert "LC_ALL=C" in tried[0]
    for command in session.seen.commands:
        assert PASSWORD not in command
        assert PLACEHOLDER not in command
    modes = [command for command in session.seen.commands if "chmod 600 /run/user/1/ownstack-x/word" in command]
    assert len(modes) == 1


def test_the_askpass_answers_once_while_it_is_tried_and_always_afterwards(tmp_path: Path) -> None:
    """sudo asks it three times: a wrong password must not count three times towards a lock-out."""
    with Session(Target()) as session:
        session.use_sudo(PASSWORD)
        folder = Path(session.askpass)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "word").stat().st_mode & 0o777 == 0o600

        def ask() -> tuple[int, str]:
            rc, out, _ = session.shell(shlex.quote(str(folder / "ask")), root=False)
            return rc, out

        assert ask() == (0, PASSWORD)
        (folder / "once").touch()
        assert ask() == (0, PASSWORD)
        assert ask()[0] == 1
        assert ask()[0] == 1
        (folder / "never").unlink()
        assert ask() == (0, PASSWORD)
    assert not folder.exists()


ASK = """
from ownstack.cli.site import sudo_password
from tests.unit import machines
report = machines.changed("bare-server", host={"sudo": "password", "user": "me"})
print("length", len(sudo_password(report, None)))
"""


def test_a_password_is_asked_once_at_a_terminal_and_not_echoed() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-c", ASK], {**os.environ, "PYTHONPATH": "src:."})  # noqa: S606
    seen, sent = b"", False
    while True:
        try:
            part = os.read(terminal, 1000)
        except OSError:  # the terminal's other end is gone
            break
        if not part:
            break
        seen += part
        if b"Password" in seen and not sent:
            sent = True
            os.write(terminal, b"correct horse 42\n")
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0, seen
    assert b"sudo on box asks for the password of me." in seen
    assert seen.count(b"Password") == 1
    assert b"length 16" in seen
    assert b"horse" not in seen


def test_a_password_comes_from_a_file_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = machines.changed("bare-server", host={"sudo": "password"})
    monkeypatch.setattr("click.prompt", lambda *_, **__: pytest.fail("asked without a terminal"))
    monkeypatch.setattr("sys.stdin", io.StringIO("of stdin\nmore\n"))
    assert sudo_password(asking, None) is None
    assert sudo_password(asking, Path("-")) == "of stdin"
    (tmp_path / "word").write_text("of a file\n")
    assert sudo_password(asking, tmp_path / "word") == "of a file"
    for kind in ("root", "passwordless", "none"):
        assert sudo_password(machines.changed("bare-server", host={"sudo": kind}), tmp_path / "word") is None


# -- sources --------------------------------------------------------------------------------------


def hosts_in(command: str) -> list[str]:
    return re.findall(r"https?://[a-z0-9.:]+/(?=['\s]|$)", command.rpartition("wait")[2])


def asked(command: str, reasons: dict[str, str]) -> list[str] | None:
    if "ask()" not in command:
        return None
    hosts = hosts_in(command)
    return [f"{host}\t{reasons.get(host, '')}" for host in hosts if reasons.get(host) != "silent"]


def sources(flags: dict[str, Any], **reasons: str) -> Any:
    found = {f"https://{name.replace('_', '.')}/": reason for name, reason in reasons.items()}
    with FakeSession(lambda command: asked(command, found)) as session:
        made = preflight.ask_sources(session, machines.data(), load(flags, None, {}))
        assert not any(command.startswith("sudo") for command in session.seen.commands)
    return made, session.seen


def test_each_vendor_is_asked_and_silence_is_no_answer() -> None:
    made, _ = sources({}, github_com="silent")
    assert made.target == {"github.com": "no answer", "nodejs.org": ""}
    assert made.models == ""
    assert not made.restricted
    assert not made.answers("github.com")
    assert made.answers("nodejs.org")
    assert made.answers("pypi")
    assert not made.answers("elsewhere")
    made, _ = sources({}, github_com="timed out", nodejs_org="timed out", registry_ollama_ai="refused")
    assert made.restricted
    assert made.models == "refused"


def test_hosts_are_asked_side_by_side_and_say_why_they_do_not_answer() -> None:
    together = threading.Barrier(3)

    class Waiting(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            together.wait(30)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Waiting) as server, socket.socket() as closed:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        closed.bind(("127.0.0.1", 0))
        there = [f"http://127.0.0.1:{server.server_port}/{n}" for n in range(3)]
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        done = subprocess.run(
            ["sh", "-c", preflight.ASK, "sh", *there, gone], capture_output=True, text=True, check=True
        )
        server.shutdown()
    found = dict(line.split("\t") for line in done.stdout.splitlines())
    assert found == {**dict.fromkeys(there, ""), gone: "Connection refused"}


def test_with_a_mirror_nothing_else_is_asked() -> None:
    made, seen = sources({"sources.mirror": "/mnt/mirror"})
    assert (made.target, made.controller, seen.commands) == ({}, {}, [])
    assert "ollama.registry" in made.models
    made, seen = sources({"sources.mirror": "/m", "ollama.registry": "reg.lan:5000", "ollama.registry_insecure": True})
    assert hosts_in(seen.commands[0]) == ["http://reg.lan:5000/"]


# -- what stands ----------------------------------------------------------------------------------


def test_a_bare_host_has_no_state(tmp_path: Path) -> None:
    layout = Layout(opt=f"{tmp_path}/opt", etc=f"{tmp_path}/etc", var=f"{tmp_path}/var")
    with Session(Target()) as session:
        state = preflight.read_state(session, layout)
        assert (state.stands, state.has_data) == (False, False)
        (tmp_path / "var").mkdir()
        manifest: dict[str, Any] = {"versions": {"qdrant": {"version": "1"}}, "plan": None, "installed": True}
        Path(layout.manifest).write_text(json.dumps(manifest))
        state = preflight.read_state(session, layout)
        assert (state.stands, state.has_data, state.versions()) == (False, True, manifest["versions"])
        assert state.gone, "as a plain `down` leaves it"
        Path(layout.manifest).write_text('{"plan": ')
        with pytest.raises(ConfigError) as caught:
            preflight.read_state(session, layout)
    assert layout.manifest in caught.value.message
    assert "damaged" in caught.value.message


@pytest.mark.parametrize("manifest", [None, '{"plan": {"schema": 1}}', '{"plan": '])
@pytest.mark.parametrize("answers", ["answers", "says nothing", "is broken"])
def test_what_the_runner_says_counts_and_without_it_the_manifest(
    tmp_path: Path, manifest: str | None, answers: str
) -> None:
    layout = Layout(opt=f"{tmp_path}/opt", etc=f"{tmp_path}/etc", var=f"{tmp_path}/var")
    runner = Path(layout.current("base"), "runner")
    runner.parent.mkdir(parents=True)
    (tmp_path / "var").mkdir()
    if manifest is not None:
        Path(layout.manifest).write_text(manifest)
    read = {"plan": {"schema": 1}} if manifest == '{"plan": {"schema": 1}}' else None
    said = {"manifest": read, "releases": {}, "services": {"n8n": {"active": True}}, "work": {}, "edited": ["/a"]}
    event = json.dumps({"event": "result", "changed": False, "data": said})
    script = {"answers": f"echo {shlex.quote(event)}", "says nothing": "true", "is broken": "python3 -c '('"}[answers]
    runner.write_text(f"#!/bin/sh\n{script}\n")
    runner.chmod(0o755)
    with Session(Target()) as session:
        if manifest and read is None:
            with pytest.raises(ConfigError, match="damaged"):
                preflight.read_state(session, layout)
            return
        state = preflight.read_state(session, layout)
        assert session.layout_runner == str(runner)
    assert state.stands == (manifest is not None)
    assert not state.gone
    assert bool(state.edited) == (state.stands and answers == "answers")


def test_an_error_of_the_runner_is_told(tmp_path: Path) -> None:
    layout = Layout(opt=f"{tmp_path}/opt", etc=f"{tmp_path}/etc", var=f"{tmp_path}/var")
    runner = Path(layout.current("base"), "runner")
    runner.parent.mkdir(parents=True)
    event = json.dumps({"event": "error", "code": "not-permitted", "message": "no", "hint": ""})
    runner.write_text(f"#!/bin/sh\necho {shlex.quote(event)}; exit 1\n")
    runner.chmod(0o755)
    with Session(Target()) as session, pytest.raises(RunError) as caught:
        preflight.read_state(session, layout)
    assert caught.value.code == "not-permitted"


# -- the connection -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "user", "hostname", "port"),
    [
        ("server", "", "server", None),
        ("me@server", "me", "server", None),
        ("me@server:2222", "me", "server", 2222),
        ("me@corp@server", "me@corp", "server", None),
        ("me@fe80::1", "me", "fe80::1", None),
        ("10.0.0.7:22", "", "10.0.0.7", 22),
    ],
)
def test_targets(text: str, user: str, hostname: str, port: int | None) -> None:
    target = Target.parse(text)
    assert (target.user, target.hostname, target.port, target.local) == (user, hostname, port, False)
    assert str(target) == text
    assert str(Target.parse("local")) == "this machine"
    assert Target.parse("").local
    assert Target.parse("local").local


def test_commands_give_their_status_and_output_whatever_they_print() -> None:
    with Session(Target()) as session:
        assert session.shell("echo one; echo two >&2; exit 3") == (3, "one", "two")
        assert session.shell("printf 'no line end'") == (0, "no line end", "")
        assert session.shell("echo '__ownstack_rc=9'; false")[0] == 1
        assert session.shell("sleep 5", timeout=1)[0] == 124


def test_files_are_written_whole_and_with_their_mode(tmp_path: Path) -> None:
    path = tmp_path / "it's $x"
    with Session(Target()) as session:
        session.put(b"\x00bytes\xff", str(path), "0640")
        with pytest.raises(RunError) as caught:
            session.put(b"x", str(tmp_path / "none/file"))
    assert str(tmp_path / "none/file") in caught.value.message
    assert path.read_bytes() == b"\x00bytes\xff"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == [path.name]


def test_what_goes_to_root_over_a_connection_is_readable_to_nobody_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyinfra lays it down as the login user, by sftp's own mode, before root takes it: a database, or n8n's key."""
    ways: list[Any] = []

    def put(source: Any, path: str, remote_temp_filename: Any = None, **_: Any) -> bool:
        ways.append(remote_temp_filename)
        return True

    with FakeSession(lambda command: ["/var/tmp/ownstack-x"] if "mktemp -d" in command else bare(command)) as session:
        monkeypatch.setattr(session.host.connector, "put_file", put)
        session.put(b"x", "/var/lib/ownstack/work/import.tar", "0600")
        session.use_sudo()
        session.put(b"x", "/var/lib/ownstack/work/import.tar", "0600")
    assert ways == [None, "/var/tmp/ownstack-x/file"]
    (made,) = [command for command in session.seen.commands if "mktemp -d" in command]
    assert "umask 077" in made
    assert "sudo" not in made
    assert any("rm -rf /var/tmp/ownstack-x" in command for command in session.seen.without_sudo)


def test_the_last_event_of_a_step_counts() -> None:
    progress = '{"event": "progress", "what": "x", "done": 1}\n'
    assert read_result("s", 0, progress + '{"event": "result", "changed": true, "data": {"a": 1}}', "")["data"] == {
        "a": 1
    }
    with pytest.raises(RunError) as caught:
        read_result("s", 1, progress + '{"event": "error", "code": "c", "message": "m", "hint": "h"}', "")
    assert (caught.value.code, caught.value.message, caught.value.hint) == ("c", "m", "h")
    with pytest.raises(RunError) as caught:
        read_result("box.state", 127, "", "sh: not found")
    assert "box.state gave no answer (exit status 127): sh: not found" in caught.value.message


def test_why_a_file_cannot_be_written_is_told_in_the_hosts_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Session(Target()) as session:
        assert session.refusal(f"{tmp_path}/it's new", 5000) == ""
        assert "nonexistent" in session.refusal(f"{tmp_path}/file/x", 5000)
        assert session.refusal(f"{tmp_path}/none/x", 5000).startswith(f"{tmp_path}/none/x cannot be written: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left of the attempt"


def test_nobody_there_is_unreachable_with_what_to_try() -> None:
    with pytest.raises(UnreachableError) as caught, Session(Target.parse("me@127.0.0.1:1")):
        pass
    error: OwnstackError = caught.value
    assert error.exit_code == 4
    assert "`ssh me@127.0.0.1:1`" in error.hint
