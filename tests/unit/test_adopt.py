"""An Ollama that becomes the box's engine: which one can, what it is told, and that nothing of it is left behind."""

from __future__ import annotations

import json
import os
import types
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli.down import what_goes
from ownstack.engine.role_tasks import written_files
from ownstack.errors import ConfigError, OwnstackError, UnsupportedError
from ownstack.hardware.report import ExistingOllama, HardwareReport
from ownstack.kit import activate
from ownstack.plan import Plan
from ownstack.runner import files, ollama_adopt
from ownstack.runner.core import Event, StepError
from ownstack.state import BoxState
from tests.unit import machines

activate()
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


def test_after_a_plain_down_it_is_told_as_at_first() -> None:
    first = plan()
    state = standing(first).model_copy(update={"gone": True})
    assert plan(state=state).warnings == first.warnings
    assert not any("is given back" in text for text in plan(state=state, ollama__use="existing").warnings), "it is"


def test_what_goes_and_what_stays_is_said() -> None:
    made = plan()
    assert record(made).endswith("adopted-models.json"), "an earlier engine's pulls are not this one's"
    goes, kept = what_goes(made, False, [], ["big:1"])
    assert any("ollama.service runs again as it did before" in line for line in goes)
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
    """What the steps ask of systemd; that it does so on a real one is the end-to-end test's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.fails = folder, [], False  # type: ignore[var-annotated]
        self.active = "active"
        self.settings = (folder.parent / "first.env", folder.parent / "later.env")

    def __call__(self, spec: dict[str, Any], *words: str, check: bool = True) -> str:
        if words[0] == "show":
            effective: dict[str, str] = {}
            paths = sorted(self.folder.glob("*.conf")) if self.folder.exists() else []
            for path in paths:
                for line in path.read_text().splitlines():
                    if line.startswith("Environment="):
                        name, _, value = line[12:].strip('"').partition("=")
                        effective[name] = value
            text = " ".join(f"{name}={value}" for name, value in effective.items())
            others = " ".join(map(str, paths))
            return (
                f"FragmentPath=/x/ollama.service\nDropInPaths={others}\nActiveState={self.active}\n"
                f"Environment={text}\nNeedDaemonReload=no\n"
                + "".join(f"EnvironmentFiles={path} (ignore_errors=yes)\n" for path in self.settings)
            )
        self.asked.append(words)
        return ""

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
    lines = "".join(f"Environment={name}={value}\n" for name, value in environment.items())
    return {
        "manager": "systemd", "unit": "ollama.service", "path": str(unit.folder / "ownstack.conf"),
        "content": content or f"[Service]\n{lines}", "environment": environment, "url": "http://127.0.0.1:1",
        "record": str(unit.folder.parent / "adopted.json"),
    }  # fmt: skip


def footprint(folder: Path) -> list[Any]:
    return sorted((str(p), p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in [folder, *folder.rglob("*")])


def test_the_drop_in_is_as_systemd_reads_it() -> None:
    made = plan(ollama__extra_env={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert made.adopted is not None
    lines = adopt.content(made.adopted).splitlines()
    assert lines[1] == "[Service]"
    assert all(line.startswith("Environment=") for line in lines[2:])
    assert any("CUDA_VISIBLE_DEVICES=0,1" in line for line in lines)


def test_it_is_restarted_only_when_something_changed(unit: Systemctl) -> None:
    asked = spec(unit)
    assert ollama_adopt.adopt({**asked, "dry": True}, silent)["changed"]
    assert not unit.folder.exists()
    assert ollama_adopt.adopt(asked, silent)["changed"]
    assert unit.asked == [("daemon-reload",), ("restart", "ollama.service")]
    assert not ollama_adopt.adopt(asked, silent)["changed"]
    assert len(unit.asked) == 2
    ollama_adopt.adopt(spec(unit, OLLAMA_CONTEXT_LENGTH="4096"), silent)
    assert len(unit.asked) == 4
    json_file = Path(asked["record"])
    json_file.write_text(json.dumps({**json.loads(json_file.read_text()), "applied": ""}))  # cut off before the restart
    assert ollama_adopt.adopt(spec(unit, OLLAMA_CONTEXT_LENGTH="4096"), silent)["changed"]


@pytest.mark.parametrize("own", [False, True])
def test_nothing_of_it_is_left(own: bool, unit: Systemctl, tmp_path: Path) -> None:
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
    assert not ollama_adopt.give_back(spec(unit), silent)["changed"]
    assert list(tmp_path.iterdir()) == ([unit.folder] if own else [])


def test_a_later_file_of_the_owner_wins_and_stays(unit: Systemctl) -> None:
    unit.folder.mkdir()
    theirs = unit.folder / "zz.conf"
    theirs.write_text("[Service]\nEnvironment=OLLAMA_HOST=0.0.0.0\n")
    said = ollama_adopt.adopt(spec(unit), silent)["data"]["said"]
    assert said == [f"{theirs} sorts later and wins: OLLAMA_HOST"]
    assert ollama_adopt.adopted(spec(unit), silent)["data"]["overruled"] == {"OLLAMA_HOST": str(theirs)}
    (unit.folder / "new.conf").write_text("[Service]\n")  # and one that came meanwhile
    ollama_adopt.give_back(spec(unit), silent)
    assert sorted(path.name for path in unit.folder.iterdir()) == ["new.conf", "zz.conf"]


def test_a_settings_file_of_the_owner_wins_over_every_drop_in_and_it_is_said(unit: Systemctl) -> None:
    unit.folder.mkdir()
    (unit.folder / "override.conf").write_text("[Service]\nEnvironment=OLLAMA_HOST=0.0.0.0\n")
    first, later = unit.settings
    first.write_text('# OLLAMA_DEBUG=1\nOLLAMA_HOST=0.0.0.0\nOLLAMA_KEEP_ALIVE="7m"\nTHEIRS=1\n')
    later.write_text("OLLAMA_HOST='127.0.0.1:11434'\n")
    asked = spec(unit, OLLAMA_KEEP_ALIVE="30m", OLLAMA_DEBUG="0")
    said = ollama_adopt.adopt(asked, silent)["data"]["said"]
    assert said == [f"{first} is read after every drop-in and wins: OLLAMA_KEEP_ALIVE"]
    assert ollama_adopt.adopted(asked, silent)["data"]["overruled"] == {"OLLAMA_KEEP_ALIVE": str(first)}


def edit(unit: Systemctl, tmp_path: Path) -> dict[str, Any]:
    """It was adopted, and its owner changed our drop-in since. What the step is told."""
    asked = {**spec(unit), "written": str(tmp_path / "files.sha256")}
    ollama_adopt.adopt(asked, silent)
    assert not ollama_adopt.adopted(asked, silent)["data"]["edited"]
    with (unit.folder / "ownstack.conf").open("a") as out:
        out.write("Environment=OLLAMA_DEBUG=1\n")
    return asked


def test_our_drop_in_that_its_owner_edited_is_kept(unit: Systemctl, tmp_path: Path) -> None:
    unit.folder.mkdir()
    (unit.folder / "override.conf").write_text("[Service]\n")
    os.utime(unit.folder, (1, 1))
    before = footprint(unit.folder)
    asked = edit(unit, tmp_path)
    theirs = (unit.folder / "ownstack.conf").read_text()
    later = {**spec(unit, OLLAMA_CONTEXT_LENGTH="4096"), "written": asked["written"]}
    assert ollama_adopt.adopt(later, silent)["changed"]
    assert (unit.folder / "ownstack.conf").read_text() == theirs
    assert "4096" in (unit.folder / "ownstack.conf.ownstack-new").read_text()
    assert ollama_adopt.adopted(later, silent)["data"]["edited"]
    assert not ollama_adopt.adopt(later, silent)["changed"]
    files.give_up({"record": later["written"], "paths": [later["path"]]}, silent)  # `up --overwrite`
    assert ollama_adopt.adopt(later, silent)["changed"]
    assert "4096" in (unit.folder / "ownstack.conf").read_text()
    assert (unit.folder / "ownstack.conf.ownstack-old").read_text() == theirs
    ollama_adopt.give_back(later, silent)
    assert footprint(unit.folder) == before, "given back byte for byte"
    (unit.folder / "ownstack.conf").write_text("of a box that adopts it later")
    assert files.edited(later["written"]) == []


def test_an_edited_drop_in_with_which_it_does_not_come_up_stays_its_owners(unit: Systemctl, tmp_path: Path) -> None:
    asked = edit(unit, tmp_path)
    theirs = (unit.folder / "ownstack.conf").read_text()
    unit.fails = True
    with pytest.raises(StepError) as caught:
        ollama_adopt.adopt({**asked, "content": "[Service]\n"}, silent)
    assert caught.value.code == "adopt-edited"
    assert (unit.folder / "ownstack.conf").read_text() == theirs


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ({"same": True, "active": True, "edited": False, "overruled": {}}, "ok"),
        ({"same": False, "active": True, "edited": True, "overruled": {}}, "amber"),
        ({"same": False, "active": True, "edited": False, "overruled": {}}, "failed"),
        ({"same": False, "active": False, "edited": True, "overruled": {}}, "failed"),
    ],
)
def test_what_is_said_of_the_drop_in(found: dict[str, Any], status: str) -> None:
    made = plan()
    context: Any = types.SimpleNamespace(plan=made, step=lambda name, **asked: {"dropins": [], **found})
    assert adopt.in_force(context).status == status
    assert made.adopted is not None
    assert made.adopted.dropin in [file.path for file in written_files(made)], "its difference is shown"


@pytest.mark.parametrize(("manager", "option"), [("systemd", "-u"), ("systemd-user", "--user-unit")])
def test_one_that_does_not_come_up_is_put_back(manager: str, option: str, unit: Systemctl, tmp_path: Path) -> None:
    unit.fails = True
    with pytest.raises(StepError) as caught:
        ollama_adopt.adopt({**spec(unit), "manager": manager}, silent)
    assert caught.value.code == "adopt-failed"
    assert f"`journalctl {option} ollama.service`" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_our_name_that_is_not_ours_is_not_touched(unit: Systemctl) -> None:
    unit.folder.mkdir()
    (unit.folder / "ownstack.conf").write_text("another box's")
    with pytest.raises(StepError) as caught:
        ollama_adopt.adopt(spec(unit), silent)
    assert caught.value.code == "adopt-taken"
    assert (unit.folder / "ownstack.conf").read_text() == "another box's"


def test_one_that_was_stopped_is_stopped_again(unit: Systemctl) -> None:
    unit.active = "inactive"
    ollama_adopt.adopt(spec(unit), silent)
    ollama_adopt.give_back(spec(unit), silent)
    assert unit.asked[-1] == ("stop", "ollama.service")
