"""The kit's own operations on a real host (this one, in a folder of their own): they change once, then nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import sys
import tarfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyinfra.api.command import QuoteString, StringCommand
from pyinfra.api.deploy import deploy
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation
from pyinfra.context import host

from ownstack.engine import carry, operations, role_tasks, units
from ownstack.engine.apply import RunResult, execute, preview
from ownstack.engine.operations import Directory
from ownstack.engine.session import Session, Target
from ownstack.errors import RunError
from ownstack.plan import ChosenArtifact, ConfigFile, Plan
from ownstack.settings import load
from roles import role
from tests.unit import machines

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files are given to other accounts")


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(Target()) as opened:
        yield opened


def plan_below(root: Path) -> Plan:
    """A plan whose runner is started by the Python of the tests."""
    made = machines.plan(flags={"roles": ["qdrant"], "root": str(root), "prefix": "optest"})
    base = made.role("base")
    base = base.model_copy(update={"settings": {**base.settings, "runner_python": sys.executable}})
    return made.model_copy(update={"roles": (base, *made.roles[1:])})


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_below(tmp_path_factory.mktemp("box"))


@deploy("one")
def carry_out(plan: Plan, action: Callable[[], Any], **_: Any) -> None:
    action()


def run(session: Session, plan: Plan, action: Callable[[], Any]) -> RunResult:
    return execute(session, carry_out, lambda event: None, plan=plan, action=action)


def changes_once(session: Session, plan: Plan, action: Callable[[], Any]) -> RunResult:
    """Carry out `action`; the second time nothing changes, and a preview says so beforehand."""
    first = run(session, plan, action)
    assert first.changed > 0
    assert preview(session, carry_out, plan=plan, action=action).changed == 0
    assert run(session, plan, action).changed == 0
    return first


@pytest.fixture(scope="module")
def with_runner(session: Session, plan: Plan) -> Plan:
    """A host with folders and the runner: what all steps need."""
    run(session, plan, lambda: role("base").tasks.bring_runner(plan))
    return plan


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_directories(session: Session, plan: Plan, tmp_path: Path) -> None:
    wanted = [
        Directory(f"{tmp_path}/a b/$(c)"),
        Directory(f"{tmp_path}/closed", "0700", "nobody", "daemon"),
    ]
    changes_once(session, plan, lambda: operations.directories(name="f", wanted=wanted))
    assert mode(tmp_path / "a b/$(c)") == 0o755
    assert mode(tmp_path / "closed") == 0o700
    assert ((tmp_path / "closed").owner(), (tmp_path / "closed").group()) == ("nobody", "daemon")
    (tmp_path / "closed").chmod(0o755)
    changes_once(session, plan, lambda: operations.directories(name="f", wanted=wanted))
    assert mode(tmp_path / "closed") == 0o700


def test_a_folder_that_others_use_too_is_left_as_it_is(session: Session, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(0o700)
    wanted = [Directory(f"{tmp_path}/theirs", shared=True), Directory(f"{tmp_path}/new", shared=True)]
    changes_once(session, plan, lambda: operations.directories(name="f", wanted=wanted))
    assert (mode(tmp_path / "theirs"), mode(tmp_path / "new")) == (0o700, 0o755)


def test_a_deep_folder_changes_hands_with_all_that_is_in_it(session: Session, plan: Plan, tmp_path: Path) -> None:
    inner = tmp_path / "data/deep/file"
    inner.parent.mkdir(parents=True)
    inner.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    inner.with_name("link").symlink_to(elsewhere)
    wanted = [Directory(f"{tmp_path}/data", "0700", "nobody", "daemon", deep=True)]
    changes_once(session, plan, lambda: operations.directories(name="f", wanted=wanted))
    assert (inner.owner(), inner.group(), elsewhere.owner()) == ("nobody", "daemon", "root")


def test_config_files(session: Session, plan: Plan, tmp_path: Path) -> None:
    Path(plan.layout.var).mkdir(parents=True, exist_ok=True)
    path = tmp_path / 'it\'s "one" $file.conf'
    wanted = [
        ConfigFile(path=str(path), content="ä {{ x }} $(id)\n", mode="0640", owner="nobody", group="daemon"),
        ConfigFile(path=f"{tmp_path}/plain", content="1\n"),
        ConfigFile(path=f"{tmp_path}/group-only", content="1\n", mode="0640", group="daemon"),
    ]
    changes_once(session, plan, lambda: operations.config_files(name="c", plan=plan, wanted=wanted))
    assert path.read_text() == "ä {{ x }} $(id)\n"
    assert (mode(path), path.owner(), path.group()) == (0o640, "nobody", "daemon")
    assert (mode(tmp_path / "plain"), (tmp_path / "plain").owner()) == (0o644, "root")
    assert (tmp_path / "group-only").group() == "daemon"
    damages: list[Callable[[], object]] = [
        lambda: path.chmod(0o666),
        lambda: os.chown(path, 0, 0),
        lambda: os.chown(tmp_path / "group-only", -1, 0),
        path.unlink,
    ]
    action = lambda: operations.config_files(name="c", plan=plan, wanted=wanted)  # noqa: E731
    for damage in damages:
        damage()
        assert changes_once(session, plan, action).changed == 1
    assert not [*tmp_path.glob("*.ownstack-new"), *tmp_path.glob("*.part")]


def test_a_file_that_somebody_edited_is_kept(session: Session, plan: Plan, tmp_path: Path) -> None:
    """Ours lies beside it, also a newer one; who may read it stays ours to say."""
    path = tmp_path / 'it\'s "one" $file.conf'
    new = path.with_name(path.name + ".ownstack-new")

    def wanted(content: str) -> Any:
        file = ConfigFile(path=str(path), content=content, mode="0640")

        def action() -> None:
            operations.config_files(name="c", plan=plan, wanted=[file])

        return action

    changes_once(session, plan, wanted("ours\n"))
    changes_once(session, plan, wanted("ours 2\n"))
    assert (path.read_text(), new.exists()) == ("ours 2\n", False)
    path.write_text("theirs\n")
    path.chmod(0o666)
    changes_once(session, plan, wanted("ours 2\n"))
    assert (path.read_text(), new.read_text()) == ("theirs\n", "ours 2\n")
    assert (mode(path), mode(new)) == (0o640, 0o640)
    changes_once(session, plan, wanted("ours 3\n"))
    assert (path.read_text(), new.read_text()) == ("theirs\n", "ours 3\n")
    new.rename(path)  # they take ours
    assert preview(session, carry_out, plan=plan, action=wanted("ours 3\n")).changed == 0
    changes_once(session, plan, wanted("ours 4\n"))
    assert (path.read_text(), new.exists()) == ("ours 4\n", False)
    path.write_text("theirs again\n")
    changes_once(session, plan, wanted("ours 4\n"))
    with Path(plan.layout.written).open("a") as record:
        record.write(f"{'-' * 64}  {path}\n")  # they give it up
    changes_once(session, plan, wanted("ours 4\n"))
    assert (path.read_text(), new.exists()) == ("ours 4\n", False)
    path.write_text("theirs again\n")
    changes_once(session, plan, wanted("ours 4\n"))
    path.unlink()  # who deletes it wants it anew
    changes_once(session, plan, wanted("ours 4\n"))
    assert (path.read_text(), new.exists()) == ("ours 4\n", False)


def test_a_file_in_the_place_of_a_link_leaves_what_it_led_to(session: Session, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("not ours")
    (tmp_path / "ours").symlink_to(tmp_path / "theirs")
    wanted = [ConfigFile(path=f"{tmp_path}/ours", content="ours\n")]
    changes_once(session, plan, lambda: operations.config_files(name="c", plan=plan, wanted=wanted))
    assert (tmp_path / "theirs").read_text() == "not ours"
    assert (tmp_path / "ours").read_text() == "ours\n"


def test_the_runner(session: Session, tmp_path: Path) -> None:
    plan = plan_below(tmp_path)
    changes_once(session, plan, lambda: role("base").tasks.bring_runner(plan))
    assert session.step("box.ports", {})["listening"] is not None
    with pytest.raises(RunError) as caught:
        session.step("box.nonsense", {})
    assert "box.nonsense" in caught.value.message
    assert mode(units.runner_python(plan)) == 0o755
    assert mode(plan.layout.secrets) == 0o700
    again = plan.model_copy(update={"kit_version": "99"})
    assert run(session, again, lambda: role("base").tasks.bring_runner(again)).changed == 1
    assert os.readlink(plan.layout.current("base")).startswith("releases/99-")


def test_a_step_that_has_nothing_to_do_is_no_change(session: Session, with_runner: Plan, tmp_path: Path) -> None:
    plan = with_runner
    spec = {"path": f"{tmp_path}/manifest.json", "values": {"key": 'it\'s $(id) `id` "x" \\ {{ y }} %h ;'}}
    action = lambda: operations.step(name="s", plan=plan, step_name="box.write_manifest", spec=spec)  # noqa: E731
    changes_once(session, plan, action)
    assert json.loads((tmp_path / "manifest.json").read_text()) == spec["values"]


def test_an_upload_that_fails_says_why_in_the_hosts_words(session: Session, plan: Plan, tmp_path: Path) -> None:
    path = f"{tmp_path}/there is none/file"
    action = lambda: operations.config_files(name="c", wanted=[ConfigFile(path=path, content="1\n")])  # noqa: E731
    with pytest.raises(RunError) as caught:
        run(session, plan, action)
    assert f"{path}.part cannot be written: " in caught.value.message
    assert "nonexistent" in caught.value.message
    assert "run again" in caught.value.hint


def test_a_step_that_fails_says_why_in_its_own_words(session: Session, with_runner: Plan, tmp_path: Path) -> None:
    plan = with_runner
    spec = role_tasks.secret_spec(plan, [ConfigFile(path=f"{tmp_path}/x", content="@@secret:never_made@@")])
    with pytest.raises(RunError) as caught:
        run(session, plan, lambda: operations.step(name="Fill", plan=plan, step_name="secrets.fill", spec=spec))
    assert caught.value.code == "secret-missing"
    assert caught.value.message.startswith("Fill: the secret never_made")
    assert not (tmp_path / "x").exists()


def test_secrets_are_written_as_they_are_and_never_shown(session: Session, with_runner: Plan, tmp_path: Path) -> None:
    """pyinfra's own way, a hidden value in a template, writes its mask into the file."""
    plan = with_runner
    secrets = {"secrets_dir": plan.layout.secrets, "secrets": [secret.model_dump() for secret in plan.secrets]}
    changes_once(session, plan, lambda: operations.step(name="m", plan=plan, step_name="secrets.ensure", spec=secrets))
    value = Path(plan.layout.secrets, "qdrant_api_key").read_text().strip()
    assert mode(f"{plan.layout.secrets}/qdrant_api_key") == 0o600
    file = ConfigFile(path=f"{tmp_path}/filled", content="key: @@secret:qdrant_api_key@@\n", mode="0600")
    spec = role_tasks.secret_spec(plan, [file])
    seen: list[str] = []
    action = lambda: operations.step(name="f", plan=plan, step_name="secrets.fill", spec=spec)  # noqa: E731
    execute(session, carry_out, lambda event: seen.append(json.dumps(event)), plan=plan, action=action)
    for op_hash in session.state.ops[session.host]:
        meta = session.state.ops[session.host][op_hash].operation_meta
        seen.append(meta.stdout + meta.stderr)
    assert (tmp_path / "filled").read_text() == f"key: {value}\n"
    assert value not in "\n".join(seen)
    assert run(session, plan, action).changed == 0


def archive(tmp_path: Path, name: str = "tool") -> tuple[str, bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.mode, info.size = 0o755, 4
        tar.addfile(info, io.BytesIO(b"tool"))
    place = tmp_path / "mirror/vendor.example/tool.tar.gz"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(out.getvalue())
    return hashlib.sha256(out.getvalue()).hexdigest(), out.getvalue()


def artifact(sha256: str, version: str = "1.0", name: str = "tool") -> ChosenArtifact:
    return ChosenArtifact(
        name=name, variant="vendor", version=version, platform="linux-x86_64", kind="file", way="target",
        source="vendor.example", url="https://vendor.example/tool.tar.gz", sha256=sha256,
        details={"unpack": {"format": "tar.gz", "to": "bin"}},
    )  # fmt: skip


def test_a_release_is_verified_before_anything_has_its_name(
    session: Session, with_runner: Plan, tmp_path: Path
) -> None:
    """pyinfra's own download moves a file into place and checks it afterwards."""
    plan = with_runner.model_copy(update={"mirror": str(tmp_path / "mirror")})
    digest, _ = archive(tmp_path)
    changes_once(session, plan, lambda: operations.release(name="r", plan=plan, artifact=artifact(digest)))
    current = Path(plan.layout.current("tool"))
    assert (current / "bin/tool").read_text() == "tool"
    before = sorted(current.parent.rglob("*"))
    wrong = artifact("f" * 64, "2.0")
    with pytest.raises(RunError) as caught:
        run(session, plan, lambda: operations.release(name="Tool: program", plan=plan, artifact=wrong))
    assert caught.value.code == "fetch-hash"
    assert caught.value.message.startswith("Tool: program:")
    assert "nothing was installed" in caught.value.hint
    assert sorted(current.parent.rglob("*")) == before
    assert os.listdir(f"{plan.layout.var}/work") == []


def test_a_carried_release_is_uploaded_once_and_taken_away(
    session: Session, with_runner: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, data = archive(tmp_path)
    file = tmp_path / "carried"
    file.write_bytes(data)
    asked: list[str] = []

    def held(wanted: ChosenArtifact) -> carry.Carried:
        asked.append(wanted.name)
        return carry.Carried(file, digest)

    monkeypatch.setattr(carry, "held", held)
    plan = with_runner
    carried = artifact(digest, name="carried").model_copy(update={"way": "carry", "url": ""})
    changes_once(session, plan, lambda: operations.release(name="r", plan=plan, artifact=carried))
    assert set(asked) == {"carried"}
    assert os.listdir(f"{plan.layout.var}/work") == []
    count = len(asked)
    os.unlink(plan.layout.current("carried"))
    changes_once(session, plan, lambda: operations.release(name="r", plan=plan, artifact=carried))
    assert len(asked) == count, "a lost link needs no upload"


def test_what_cannot_be_obtained_here_is_told_and_nothing_is_sent(
    session: Session, with_runner: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mirror").mkdir()
    carry.configure(lambda text: None, str(tmp_path / "mirror"))
    plan = with_runner.model_copy(update={"mirror": str(tmp_path / "mirror")})
    missing = artifact("a" * 64, name="missing").model_copy(update={"way": "carry"})
    with pytest.raises(RunError) as caught:
        run(session, plan, lambda: operations.release(name="r", plan=plan, artifact=missing))
    assert caught.value.code == "fetch-missing"
    assert "missing 1.0: the mirror has no" in caught.value.message
    assert not Path(plan.layout.opt, "missing").exists()
    assert list((tmp_path / "cache").rglob("*.part")) == []


def test_purge_takes_what_was_kept_aside_on_another_disk(session: Session, with_runner: Plan, tmp_path: Path) -> None:
    """What an upgrade that was taken back had replaced there; its record is in the box's own folder."""
    plan, disk = with_runner, tmp_path / "disk"
    aside, theirs = disk / "n8n.replaced-one", disk / "theirs"
    for path in (aside, theirs):
        path.mkdir(parents=True)
        (path / "file").write_text("x")
    room = Path(plan.layout.var, "snapshots/one.replaced")
    room.mkdir(parents=True)
    about = {"id": "one", "kind": "upgrade", "role": "n8n", "created": 1.0, "paths": [str(aside)]}
    (room / "replaced.json").write_text(json.dumps(about))
    base = role("base").tasks
    run(session, plan, lambda: base.remove(plan, False, []))
    assert aside.exists()
    run(session, plan, lambda: base.bring_runner(plan))
    run(session, plan, lambda: base.remove(plan, True, []))
    assert sorted(path.name for path in disk.iterdir()) == ["theirs"]
    assert not Path(plan.layout.var).exists()


@pytest.mark.parametrize("other", [False, True])
def test_purge_takes_what_it_made_on_the_way_in_a_home(other: bool, session: Session, tmp_path: Path) -> None:
    made = plan_below(tmp_path)
    layout = load({"root": str(tmp_path), "prefix": "optest"}, None, {}).layout(str(tmp_path), 1000)
    plan = made.model_copy(update={"layout": layout, "manager": "systemd-user", "system": False})
    for path in (layout.opt, layout.secrets, layout.data("qdrant"), layout.units):
        Path(path).mkdir(parents=True)
    if other:
        (tmp_path / ".config/mine").write_text("x")
    run(session, plan, lambda: operations.farewell(name="x", plan=plan, purge=True, accounts=[], packages=[]))
    assert [path.name for path in tmp_path.rglob("*")] == ([".config", "mine"] if other else [])


def test_purge_leaves_empty_folders_that_were_there_before(session: Session, tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = plan_below(tmp_path)
    layout = load({"root": str(home), "prefix": "optest"}, None, {}).layout(str(home), 1000)
    plan = made.model_copy(update={"layout": layout, "manager": "systemd-user", "system": False})
    for path in (".local/state", ".config"):
        (home / path).mkdir(parents=True)
    changes_once(session, plan, lambda: operations.note_the_way(name="x", plan=plan, seen={}))
    for path in (layout.opt, layout.secrets, layout.data("qdrant"), layout.units):
        Path(path).mkdir(parents=True)
    run(session, plan, lambda: operations.farewell(name="x", plan=plan, purge=True, accounts=[], packages=[]))
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*")) == [".config", ".local", ".local/state"]


def test_the_journal_of_the_first_run_is_on_the_way_too(tmp_path: Path) -> None:
    """A run that holds the box writes into it before its first operation looks."""
    home = tmp_path / "home"
    home.mkdir()
    made = plan_below(tmp_path)
    layout = load({"root": str(home), "prefix": "optest"}, None, {}).layout(str(home), 1000)
    plan = made.model_copy(update={"layout": layout, "manager": "systemd-user", "system": False})
    with Session(Target()) as opened:
        opened.hold(layout, "up")
        run(opened, plan, lambda: operations.note_the_way(name="x", plan=plan, seen={}))
    assert (Path(layout.var) / "journal.jsonl").exists()
    assert Path(layout.var, "on-the-way").read_text().split() == list(operations.ON_THE_WAY)


def test_down_leaves_data_and_purge_leaves_nothing(session: Session, tmp_path: Path) -> None:
    plan = plan_below(tmp_path)
    for path in (plan.layout.data("qdrant"), plan.layout.secrets, f"{plan.layout.opt}/qdrant"):
        Path(path).mkdir(parents=True)
    Path(plan.layout.data("qdrant"), "notes").write_text("kept")
    arguments: dict[str, Any] = {"plan": plan, "accounts": [], "packages": []}
    run(session, plan, lambda: operations.farewell(name="Base: remove", purge=False, **arguments))
    assert not Path(plan.layout.opt).exists()
    assert Path(plan.layout.data("qdrant"), "notes").read_text() == "kept"
    assert Path(plan.layout.secrets).is_dir()
    run(session, plan, lambda: operations.farewell(name="Base: remove", purge=True, **arguments))
    assert not Path(plan.layout.var).exists()
    assert not Path(plan.layout.etc).exists()


class Breaking(FactBase[Any]):
    def command(self, mark: str) -> StringCommand:
        return StringCommand("test", "!", "-e", QuoteString(mark))


@operation()
def breaks(mark: str) -> Generator[Any, None, None]:
    yield StringCommand("touch", QuoteString(mark))


@operation()
def asks(mark: str) -> Generator[Any, None, None]:
    host.get_fact(Breaking, mark=mark)
    yield StringCommand("true")


def test_a_host_that_no_longer_answers_in_the_middle_is_told_once(
    session: Session, plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(RunError):
        run(session, plan, lambda: (breaks(mark=str(mark), name="it goes"), asks(mark=str(mark), name="asked")))
    assert mark.exists()
    assert "Traceback" not in capfd.readouterr().err
