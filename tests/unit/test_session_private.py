"""Files with a secret on the target: private, gone afterwards, and what a killed run left is not there for ever."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from ownstack.engine.lean import SSHException
from ownstack.engine.session import Session, Target
from ownstack.errors import ConnectionLostError
from tests.plan.fake import FakeSession, bare


def test_it_is_private_and_gone_afterwards_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name, days in (("private.0123456789", 2), ("private.abcdefghij", 0), ("mine", 2), ("0123456789", 2)):
        folder = tmp_path / f"ownstack-{name}"
        folder.mkdir()
        (folder / "word").write_text("secret")
        when = time.time() - days * 86400
        os.utime(folder, (when, when))
    with Session(Target()) as session, session.private("a word") as path:
        assert Path(path).read_text() == "a word"
        assert Path(path).parent.parent == tmp_path
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    left = ["0123456789", "mine", "private.abcdefghij"]
    assert sorted(one.name for one in tmp_path.iterdir()) == [f"ownstack-{name}" for name in left]


@pytest.mark.parametrize("error", [EOFError(), OSError("Socket is closed"), SSHException("Server connection dropped")])
def test_a_connection_that_breaks_while_a_file_is_sent(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of ours, and a run that can connect again does."""

    def put_file(*_: object, **__: object) -> bool:
        monkeypatch.setattr(FakeSession, "alive", False)
        raise error

    with FakeSession(lambda command: ["/dev/shm/one"] if "mktemp" in command else bare(command)) as session:
        monkeypatch.setattr(session.host.connector, "put_file", put_file)
        with pytest.raises(ConnectionLostError):
            session.put(b"x", "/some/file")
        with pytest.raises(ConnectionLostError):
            session.use_sudo("word")
