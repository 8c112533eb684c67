"""An Ollama that becomes the box's engine: which one can, what it is told, and that nothing of it is left behind."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import types
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli.down import what_goes
from ownstack.engine import operations
from ownstack.engine.role_tasks import written_files
from ownstack.errors import ConfigError, OwnstackError, UnsupportedError
from ownstack.hardware.report import ExistingOllama, HardwareReport
from ownstack.kit import activate
from ownstack.plan import Adopted, Plan
from ownstack.runner import files, ollama_adopt
from ownstack.runner.core import Event, StepError
from ownstack.state import BoxState
from tests.unit import machines

activate()
from roles import role  # noqa: E402
from roles.base import tasks  # noqa: E402
from roles.models import record  # noqa: E402
from roles.ollama import adopt  # noqa: E402

UNIT = "/etc/systemd/system/ollama.service"
HELD = BoxState(existing_ollama="0.34.2", existing_models=("smollm2:135m", "nomic-embed-text:latest"))
ADOPT = {"ollama.use": "adopt"}


def seen(unit: str = UNIT, name: str = "bare-server", **host: Any) -> HardwareReport:
    report = machines.report(name)
    found = ExistingOllama(binary="/usr/local/bin/ollama", unit=unit, listening=True, version="0.34.2")
    return report.model_copy(update={"ollama": found, "host": report.host.model_copy(update=host)})


def plan(report: HardwareReport | None = None, state: BoxState = HELD, **flags: Any) -> Plan:
    wanted = {**ADOPT, **{key.replace("__", "."): value for key, value in flags.items()}}
    return machines.plan(report or seen(), wanted, state=state)


def standing(first: Plan) -> BoxState:
    """The box that `first` made, its engine as it answers now."""
    found = machines.box(first)
    return found.model_copy(update={key: getattr(HELD, key) for key in ("existing_ollama", "existing_models")})


def test_the_unit_of_the_vendors_script_is_adopted() -> None:
    made = plan()
    held = made.adopted
    assert held is not None
    assert (held.unit, held.dropin) == ("ollama.service", "/etc/systemd/system/ollama.service.d/ownstack.conf")
    assert made.engine_existing
    assert not made.has("ollama")
    told = dict(held.environment)
    assert told["OLLAMA_HOST"] == "127.0.0.1:11434"
    assert told["OLLAMA_NO_CLOUD"] == "1"
    assert told["OLLAMA_CONTEXT_LENGTH"] == "8192"
    assert "OLLAMA_MODELS" not in told, "its models stay where they are"
    chat = made.model("chat")
    assert chat is not None
    assert (chat.tag, chat.source, chat.context) == ("smollm2:135m", "existing", 8192)
    assert chat.predicted_host_bytes + chat.predicted_gpu_bytes
    assert any(text.startswith("adopted: ollama.service, Ollama 0.34.2") for text in made.reasons)
    assert any("is restarted once" in text for text in made.warnings)


def test_a_package_and_wishes_for_context_and_time() -> None:
    made = plan(seen("/usr/lib/systemd/system/ollama.service"), ollama__context=4096, ollama__keep_alive="-1")
    assert made.adopted is not None
    assert made.adopted.dropin == "/etc/systemd/system/ollama.service.d/ownstack.conf"
    told = dict(made.adopted.environment)
    assert (told["OLLAMA_CONTEXT_LENGTH"], told["OLLAMA_KEEP_ALIVE"]) == ("4096", "-1")


def test_a_user_service_goes_with_a_box_of_that_user() -> None:
    path = "/home/me/.config/systemd/user/ollama.service"
    made = plan(seen(path, uid=1000, sudo="none", user="me", home="/home/me", linger=True))
    assert made.manager == "systemd-user"
    assert made.adopted is not None
    assert made.adopted.dropin == "/home/me/.config/systemd/user/ollama.service.d/ownstack.conf"
    assert made.adopted.variables == "/home/me/.config/ownstack/adopted.env"


@pytest.mark.parametrize(
    ("report", "flags", "kind", "code"),
    [
        (seen(""), {}, UnsupportedError, "adopt-no-unit"),
        (seen("/etc/systemd/system/snap.ollama.listener.service"), {}, UnsupportedError, "adopt-no-unit"),
        (seen(name="container-cgroup-v2"), {}, UnsupportedError, "adopt-no-unit"),
        (seen("/home/me/.config/systemd/user/ollama.service"), {}, ConfigError, "adopt-scope"),
        (seen(uid=1000, sudo="none", user="me", home="/home/me"), {}, ConfigError, "adopt-scope"),
        (seen(), {"ollama__url": "http://10.0.0.7:11434", "network__open_webui": "lan", "network__n8n": "lan"},
         ConfigError, "adopt-away"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted_is_said(
    report: HardwareReport, flags: dict[str, Any], kind: type[OwnstackError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        plan(report, **flags)
    assert caught.value.code == code
    assert "existing" in caught.value.hint


def test_it_is_told_once_and_given_back_when_it_is_no_longer_wanted() -> None:
    first = plan()
    state = standing(first)
    again = plan(state=state)
    assert again.given_back is None
    assert not any("restarted" in text for text in again.warnings)
    later = plan(state=state, ollama__use="existing")
    assert later.adopted is None
    assert later.given_back == first.adopted
    assert any("is given back" in text for text in later.warnings)


@pytest.mark.parametrize("wanted", [{"ollama__use": "existing"}, {"roles": ["qdrant"]}])
def test_it_is_given_back_once_while_the_record_still_names_it(
    wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off after the new plan was recorded nobody would know of it: a purge took the file that its unit names."""
    later = plan(state=standing(plan()), **wanted)
    assert later.given_back is not None
    done: list[str] = []
    monkeypatch.setattr(operations, "step", lambda **asked: done.append(asked["step_name"]))
    for place, name in (
        (operations, "accounts"), (operations, "packages"), (tasks, "bring_runner"), (tasks, "programs"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, lambda *_, **__: None)
    tasks.install(later)
    role("models").tasks.configure(later)
    assert done.count("ollama.give_back") == 1
    assert done.index("ollama.give_back") < done.index("box.write_manifest")


def test_a_box_that_was_made_before_there_was_a_file_of_variables() -> None:
    first = plan()
    assert first.adopted is not None
    about = first.adopted.model_dump(mode="json", exclude={"variables"})
    older = Plan.model_validate({**first.model_dump(mode="json"), "adopted": about})
    assert older.adopted is not None
    assert adopt.spec(older, older.adopted) == adopt.spec(first, first.adopted), "as it is put back by a later kit"
    assert adopt.files(older) == adopt.files(first)
    assert any(
        line.startswith(f"{first.adopted.dropin}: ollama.service runs") for line in what_goes(older, False, [])[0]
    )
    state = standing(older)
    again = plan(state=state)
    assert again.adopted == first.adopted
    assert again.given_back is None
    assert any("is restarted once" in text for text in again.warnings), "it is told that it gets one"
    assert plan(state=state, ollama__use="existing").given_back == older.adopted


def test_after_a_plain_down_it_is_told_as_at_first() -> None:
    first = plan()
    state = standing(first).model_copy(update={"gone": True})
    assert plan(state=state).warnings == first.warnings
    assert not any("is given back" in text for text in plan(state=state, ollama__use="existing").warnings), "it is"


def test_what_goes_and_what_stays_is_said() -> None:
    made = plan()
    assert record(made).endswith("adopted-models.json"), "an earlier engine's pulls are not this one's"
    goes, kept = what_goes(made, False, [], ["big:1"])
    assert made.adopted is not None
    ours = f"{made.adopted.variables} and {made.adopted.dropin}"
    assert f"{ours}: ollama.service runs again as it did before" in goes
    assert any("big:1" in line for line in kept)
    goes, kept = what_goes(made, True, [], ["big:1"])
    assert any("big:1" in line for line in goes)
    assert "the Ollama that was there, and its models" in kept


@pytest.mark.parametrize("purge", [False, True])
def test_models_that_were_moved_to_another_disk_stay_and_it_is_said(purge: bool) -> None:
    folder = {"path": "/mnt/large/models", "service": "ollama", "write": True}
    moved = machines.plan(flags={f"folders.models.{key}": value for key, value in folder.items()})
    for made, said in ((moved, True), (machines.plan(), False)):
        goes, stays = what_goes(made, purge, [])
        assert any("/mnt/large/models" in line for line in stays) == said
        assert not any("/mnt/large/models" in line for line in goes)


# ------------------------------------------------------------------------------------------------------- the drop-in


def silent(event: Event) -> None:
    """Nobody listens."""


class Systemctl:
    """What the steps ask of systemd, by the rules of systemd.exec(5) for `Environment=` and `EnvironmentFile=`.

    That a real one does so is the end-to-end test's. The unit itself names `settings`; `started`: what the engine got.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.fails = folder, [], False  # type: ignore[var-annotated]
        self.told = folder.parent / "etc/adopted.env"  # the box's own folder is there before
        self.told.parent.mkdir()
        self.active = "active"
        self.settings = (folder.parent / "first.env", folder.parent / "later.env")
        self.started: dict[str, str] = {}
        self.reloaded: list[str] = []  # what was there when it was told to read its files anew

    def read(self) -> tuple[list[Path], dict[str, str], list[str]]:
        """Drop-ins, variables that they set, and files that they and the unit name: `-` where one may be missing."""
        paths = sorted(self.folder.glob("*.conf")) if self.folder.exists() else []
        variables: dict[str, str] = {}
        named = [f"-{path}" for path in self.settings]
        for line in "\n".join(path.read_text() for path in paths).splitlines():
            key, _, value = line.partition("=")
            if key == "Environment":
                variables.update([value.strip('"').partition("=")[::2]])
            elif key == "EnvironmentFile":
                named = [*named, value] if value else []
        return paths, variables, named

    def __call__(self, spec: dict[str, Any], *words: str, check: bool = True) -> str:
        paths, variables, named = self.read()
        if words[0] == "show":
            text = " ".join(f"{name}={value}" for name, value in variables.items())
            files = [f"{row.removeprefix('-')} (ignore_errors={'yes' if row[0] == '-' else 'no'})" for row in named]
            return (
                f"FragmentPath=/x/ollama.service\nDropInPaths={' '.join(map(str, paths))}\n"
                f"ActiveState={self.active}\nEnvironment={text}\nNeedDaemonReload=no\n"
                + "".join(f"EnvironmentFiles={row}\n" for row in files)
            )
        self.asked.append(words)
        if words[0] == "daemon-reload":
            self.reloaded = self.left()
        if words[0] == "restart":
            self.started = variables
            for row in named:
                path = Path(row.removeprefix("-"))
                if path.exists():
                    lines = [line for line in path.read_text().splitlines() if "=" in line and line[0] != "#"]
                    self.started |= {name: value.strip("'\"") for name, _, value in (x.partition("=") for x in lines)}
                elif row[0] != "-":
                    raise StepError(f"Failed to load environment files: {path}")
        return ""

    def left(self) -> list[str]:
        """What lies beside the unit and in the box's folder."""
        places = (self.folder.parent, self.folder, self.told.parent)
        found = {path for place in places if place.exists() for path in place.iterdir()}
        return sorted(path.name for path in found - {self.told.parent})

    def wait(self, url: str, seconds: float, what: str) -> float:
        if self.fails:
            raise StepError("it did not come up")
        return 0.1


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    found = Systemctl(tmp_path / "ollama.service.d")
    monkeypatch.setattr(ollama_adopt, "_ctl", found)
    monkeypatch.setattr(ollama_adopt, "wait_ready", found.wait)
    return found


def spec(unit: Systemctl, content: str = "", **variables: str) -> dict[str, Any]:
    environment = {"OLLAMA_HOST": "127.0.0.1:11434", **variables}
    held = Adopted(
        unit="ollama.service", path="/x/ollama.service", dropin=str(unit.folder / "ownstack.conf"),
        variables=str(unit.told), environment=tuple(environment.items()),
    )  # fmt: skip
    return {
        "manager": "systemd", "unit": held.unit, "path": held.dropin,
        "content": content or adopt.content(held.variables),
        "variables": {"path": held.variables, "content": adopt.variables(held)}, "environment": environment,
        "url": "http://127.0.0.1:1", "record": str(unit.folder.parent / "adopted.json"),
    }  # fmt: skip


def footprint(folder: Path) -> list[Any]:
    return sorted((str(p), p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in [folder, *folder.rglob("*")])


def test_the_drop_in_is_as_systemd_reads_it() -> None:
    made = plan(ollama__extra_env={"CUDA_VISIBLE_DEVICES": "0,1"})
    held = made.adopted
    assert held is not None
    assert held.variables == "/etc/ownstack/adopted.env", "with the box's own, not with the owner's"
    asked = adopt.spec(made, held)
    assert asked["content"].splitlines()[1:] == ["[Service]", "EnvironmentFile=/etc/ownstack/adopted.env"]
    assert asked["variables"]["path"] == held.variables
    assert 'CUDA_VISIBLE_DEVICES="0,1"' in asked["variables"]["content"].splitlines()
    assert "EnvironmentFile=/home/50%% me/adopted.env\n" in adopt.content("/home/50% me/adopted.env")


def test_it_is_restarted_only_when_something_changed(unit: Systemctl) -> None:
    asked = spec(unit)
    assert ollama_adopt.adopt({**asked, "dry": True}, silent)["changed"]
    assert not unit.folder.exists()
    assert ollama_adopt.adopt(asked, silent)["changed"]
    assert [path.name for path in unit.folder.iterdir()] == ["ownstack.conf"], "one file is all that is added"
    assert unit.asked == [("daemon-reload",), ("restart", "ollama.service")]
    assert not ollama_adopt.adopt(asked, silent)["changed"]
    assert len(unit.asked) == 2
    ollama_adopt.adopt(spec(unit, OLLAMA_CONTEXT_LENGTH="4096"), silent)
    assert len(unit.asked) == 4
    json_file = Path(asked["record"])
    json_file.write_text(json.dumps({**json.loads(json_file.read_text()), "applied": ""}))  # cut off before the restart
    assert ollama_adopt.adopt(spec(unit, OLLAMA_CONTEXT_LENGTH="4096"), silent)["changed"]


@pytest.mark.parametrize("own", [False, True])
def test_nothing_of_it_is_left(own: bool, unit: Systemctl) -> None:
    if own:
        unit.folder.mkdir()
        (unit.folder / "override.conf").write_text("[Service]\nEnvironment=OLLAMA_HOST=0.0.0.0\n")
        os.utime(unit.folder, (1, 1))
    before = footprint(unit.folder) if own else None
    said = ollama_adopt.adopt(spec(unit), silent)["data"]["said"]
    assert bool(said) == own
    assert ollama_adopt.give_back(spec(unit), silent)["changed"]
    assert unit.folder.exists() == own
    assert (footprint(unit.folder) if own else None) == before
    assert unit.asked[-1] == ("restart", "ollama.service")
    assert "ownstack.conf" not in unit.reloaded
    assert "adopted.env" in unit.reloaded, "one that starts by itself in between still finds what its unit names"
    assert not ollama_adopt.give_back(spec(unit), silent)["changed"]
    assert unit.left() == (["ollama.service.d", "override.conf"] if own else [])


def test_the_owners_files_do_not_open_the_engine_and_their_other_values_count(unit: Systemctl) -> None:
    """By `Environment=` of drop-ins, before ours or after, and by files that the unit itself names."""
    unit.folder.mkdir()
    (unit.folder / "override.conf").write_text("[Service]\nEnvironment=OLLAMA_HOST=0.0.0.0\n")
    later = unit.folder / "zz.conf"
    later.write_text("[Service]\nEnvironment=OLLAMA_DEBUG=1\nEnvironment=OLLAMA_ORIGINS=x\n")
    first, second = unit.settings
    first.write_text('# OLLAMA_NO_CLOUD=0\nOLLAMA_HOST=127.0.0.1:11434\nOLLAMA_KEEP_ALIVE="7m"\nTHEIRS=1\n')
    second.write_text("OLLAMA_HOST='0.0.0.0'\n")
    asked = spec(unit, OLLAMA_KEEP_ALIVE="30m", OLLAMA_DEBUG="0", OLLAMA_NO_CLOUD="1")
    said = ollama_adopt.adopt(asked, silent)["data"]["said"]
    assert unit.started == {**asked["environment"], "THEIRS": "1", "OLLAMA_ORIGINS": "x"}
    assert said == [
        f"OLLAMA_HOST of {second} does not count while the box stands",
        f"OLLAMA_KEEP_ALIVE of {first} does not count while the box stands",
        f"OLLAMA_DEBUG of {later} does not count while the box stands",
    ]
    assert ollama_adopt.adopted(asked, silent)["data"]["overruled"] == {}
    ollama_adopt.give_back(asked, silent)
    assert unit.started["OLLAMA_HOST"] == "0.0.0.0"


def test_a_later_file_of_the_owner_wins_and_stays(unit: Systemctl) -> None:
    unit.folder.mkdir()
    theirs = unit.folder / "mine.env"
    theirs.write_text("OLLAMA_HOST=0.0.0.0\nOLLAMA_DEBUG=0\n")
    (unit.folder / "zz.conf").write_text(f"[Service]\nEnvironmentFile={theirs}\n")
    asked = spec(unit, OLLAMA_DEBUG="0")
    said = ollama_adopt.adopt(asked, silent)["data"]["said"]
    assert said == [f"{theirs} is read after ours and wins: OLLAMA_HOST"]
    assert ollama_adopt.adopted(asked, silent)["data"]["overruled"] == {"OLLAMA_HOST": str(theirs)}
    (unit.folder / "new.conf").write_text("[Service]\n")  # and one that came meanwhile
    ollama_adopt.give_back(spec(unit), silent)
    assert unit.left() == ["mine.env", "new.conf", "ollama.service.d", "zz.conf"]


def test_a_later_drop_in_by_which_our_file_is_not_read_is_named(unit: Systemctl) -> None:
    unit.folder.mkdir()
    earlier, theirs = unit.folder / "earlier.conf", unit.folder / "zz.conf"
    earlier.write_text("[Service]\nEnvironment=OLLAMA_HOST=0.0.0.0\nEnvironmentFile=\n")
    asked = spec(unit, OLLAMA_NO_CLOUD="1")
    ollama_adopt.adopt(asked, silent)
    assert ollama_adopt.adopted(asked, silent)["data"]["overruled"] == {}, "one before ours"
    theirs.write_text("[Service]\nEnvironmentFile =\nEnvironmentFile=\n")
    found = ollama_adopt.adopted(asked, silent)["data"]["overruled"]
    assert found == {"OLLAMA_HOST": str(earlier), "OLLAMA_NO_CLOUD": str(theirs)}


def edit(unit: Systemctl, tmp_path: Path, path: Path, line: str) -> dict[str, Any]:
    """It was adopted, and its owner changed a file of ours since. What the step is told."""
    asked = {**spec(unit), "written": str(tmp_path / "files.sha256")}
    ollama_adopt.adopt(asked, silent)
    assert not ollama_adopt.adopted(asked, silent)["data"]["edited"]
    with path.open("a") as out:
        out.write(f"{line}\n")
    return asked


@pytest.mark.parametrize(
    ("dropin", "line"),
    [(True, "Environment=OLLAMA_DEBUG=1"), (False, "OLLAMA_DEBUG=1")],
)
def test_our_drop_in_that_its_owner_edited_is_kept(dropin: bool, line: str, unit: Systemctl, tmp_path: Path) -> None:
    path = unit.folder / "ownstack.conf" if dropin else unit.told
    new, old = Path(f"{path}.ownstack-new"), Path(f"{path}.ownstack-old")
    unit.folder.mkdir()
    (unit.folder / "override.conf").write_text("[Service]\n")
    os.utime(unit.folder, (1, 1))
    before = footprint(unit.folder)
    asked = edit(unit, tmp_path, path, line)
    theirs = path.read_text()
    later = {**spec(unit, OLLAMA_CONTEXT_LENGTH="4096"), "written": asked["written"]}
    planned = later["content"] if dropin else later["variables"]["content"]
    assert ollama_adopt.adopt(later, silent)["changed"]
    assert path.read_text() == theirs
    assert unit.started["OLLAMA_DEBUG"] == "1"
    assert new.read_text() == planned
    assert ollama_adopt.adopted(later, silent)["data"]["edited"] == [str(path)]
    assert not ollama_adopt.adopt(later, silent)["changed"]
    files.give_up({"record": later["written"], "paths": [str(path)]}, silent)  # `up --overwrite`
    assert ollama_adopt.adopt(later, silent)["changed"]
    assert path.read_text() == planned
    assert old.read_text() == theirs
    assert unit.started == later["environment"]
    ollama_adopt.give_back(later, silent)
    assert footprint(unit.folder) == before, "given back byte for byte"
    assert unit.left() == ["files.sha256", "ollama.service.d", "override.conf"]
    path.write_text("of a box that adopts it later")
    assert files.edited(later["written"]) == []


def test_an_edited_drop_in_with_which_it_does_not_come_up_stays_its_owners(unit: Systemctl, tmp_path: Path) -> None:
    asked = edit(unit, tmp_path, unit.folder / "ownstack.conf", "Environment=OLLAMA_DEBUG=1")
    theirs = (unit.folder / "ownstack.conf").read_text()
    unit.fails = True
    with pytest.raises(StepError) as caught:
        ollama_adopt.adopt({**asked, "content": "[Service]\n"}, silent)
    assert caught.value.code == "adopt-edited"
    assert (unit.folder / "ownstack.conf").read_text() == theirs


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"same": True, "active": True, "edited": [], "overruled": {}}, "ok"),
        ({"same": False, "active": True, "edited": ["/x/adopted.env"], "overruled": {}}, "amber"),
        ({"same": False, "active": True, "edited": [], "overruled": {}}, "failed"),
        ({"same": False, "active": False, "edited": ["/x/adopted.env"], "overruled": {}}, "failed"),
    ],
)
def test_what_is_said_of_the_drop_in(found: dict[str, Any], status: str) -> None:
    made = plan()
    context: Any = types.SimpleNamespace(plan=made, step=lambda name, **asked: {"dropins": [], **found})
    assert adopt.in_force(context).status == status
    assert made.adopted is not None
    assert {made.adopted.dropin, made.adopted.variables} <= {file.path for file in written_files(made)}, "differences"


@pytest.mark.parametrize(
    ("address", "status"), [("127.0.0.1", "ok"), ("0.0.0.0", "failed"), ("::", "failed"), ("", "failed")]
)  # fmt: skip
def test_where_the_adopted_engine_listens_is_looked_at(address: str, status: str) -> None:
    """A wrapper of its owner's may set what no file says."""
    made = plan()
    (check,) = [check for check in adopt.checks(made) if check.id == "models-loopback"]
    held = [{"address": "0.0.0.0", "port": 22}, *([{"address": address, "port": 11434}] if address else [])]
    context: Any = types.SimpleNamespace(plan=made, step=lambda name: {"listening": held})
    assert check.run(context).status == status


@pytest.mark.parametrize(("manager", "option"), [("systemd", "-u"), ("systemd-user", "--user-unit")])
def test_one_that_does_not_come_up_is_put_back(manager: str, option: str, unit: Systemctl) -> None:
    unit.fails = True
    with pytest.raises(StepError) as caught:
        ollama_adopt.adopt({**spec(unit), "manager": manager}, silent)
    assert caught.value.code == "adopt-failed"
    assert f"`journalctl {option} ollama.service`" in caught.value.hint
    assert unit.left() == []


@pytest.mark.parametrize("dropin", [True, False])
def test_a_file_of_our_name_that_is_not_ours_is_not_touched(dropin: bool, unit: Systemctl) -> None:
    unit.folder.mkdir()
    path = unit.folder / "ownstack.conf" if dropin else unit.told
    path.write_text("another box's")
    with pytest.raises(StepError) as caught:
        ollama_adopt.adopt(spec(unit), silent)
    assert caught.value.code == "adopt-taken"
    assert path.read_text() == "another box's"


def test_cut_off_at_any_file_the_unit_still_starts(unit: Systemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between two files: a drop-in that names a file which is not there would keep it from starting."""
    real: dict[str, Any] = {"put": files.put, "unlink": os.unlink}
    left = 0

    def cut(*words: Any, name: str, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return real[name](*words, **more)

    for place, name, step in ((files, "put", ollama_adopt.adopt), (os, "unlink", ollama_adopt.give_back)):
        monkeypatch.setattr(place, name, functools.partial(cut, name=name))
        for calls in range(20):
            left = calls
            with contextlib.suppress(KeyboardInterrupt):
                step(spec(unit), silent)
                break
            unit(spec(unit), "restart")
        else:
            pytest.fail("it never came through")
        monkeypatch.setattr(place, name, real[name])
        assert calls > 1
    assert unit.left() == []


def test_a_file_of_variables_that_was_lost_comes_again(unit: Systemctl) -> None:
    ollama_adopt.adopt(spec(unit), silent)
    unit.told.unlink()
    assert not ollama_adopt.adopted(spec(unit), silent)["data"]["same"]
    assert ollama_adopt.adopt(spec(unit), silent)["changed"]
    assert unit.started == spec(unit)["environment"]


@pytest.mark.parametrize("again", [False, True])
def test_one_that_was_adopted_with_variables_in_the_drop_in_itself(again: bool, unit: Systemctl) -> None:
    asked = spec(unit)
    unit.folder.mkdir()
    Path(asked["path"]).write_text("[Service]\nEnvironment=OLLAMA_HOST=127.0.0.1:11434\n")
    held = {"unit": asked["unit"], "path": asked["path"], "active": True, "folder": None, "applied": "earlier"}
    Path(asked["record"]).write_text(json.dumps(held))
    if again:
        assert ollama_adopt.adopt(asked, silent)["changed"]
        assert unit.told.exists()
    assert ollama_adopt.give_back(asked, silent)["changed"]
    assert unit.left() == []


def test_one_that_was_stopped_is_stopped_again(unit: Systemctl) -> None:
    unit.active = "inactive"
    ollama_adopt.adopt(spec(unit), silent)
    ollama_adopt.give_back(spec(unit), silent)
    assert unit.asked[-1] == ("stop", "ollama.service")
