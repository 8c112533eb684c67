"""`upgrade` and `rollback` as commands: what they say, in which order they work, what they do when a part fails."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ownstack.cli import run
from ownstack.engine import apply
from ownstack.engine.session import Session
from ownstack.errors import ConnectionLostError, RunError
from ownstack.kit import activate
from ownstack.verify.check import Check, Outcome
from tests.cli import standing
from tests.cli.standing import Box, told
from tests.unit import machines
from tests.unit.test_upgrading import older

activate()
COUNTS = {
    "tables": {"n8n": {"workflows": 3}, "open_webui": {"chats": 5}},
    "vectors": {"notes": 4},
    "models": {},
    "key": "",
}
TAKEN = {"folder": "/var/lib/ownstack/snapshots/one", "bytes": 2**20, "counts": COUNTS}
LOCK = {item.name: item.version for part in machines.plan().roles for item in part.artifacts}


def verdict(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome, role: str = "n8n") -> None:
    """What the check says, one time after the other; the last one for ever."""
    left = list(outcomes)
    one = Check("n8n-webhook", "it answers", lambda context: left.pop(0) if len(left) > 1 else left[0], "look", role)
    monkeypatch.setattr("ownstack.verify.runner.all_checks", lambda plan: [one])


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    """A box of an earlier lock: Open WebUI, n8n and Ollama are older than what this one has."""
    found = standing.stand(monkeypatch)
    found.state = machines.box(older(machines.plan(), open_webui="0.11.4", n8n="2.40.7", ollama="0.32.15"))
    standing.carried(monkeypatch, tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for name, answer in (
        ("snapshots.take", TAKEN), ("snapshots.counts", COUNTS), ("snapshots.held", {"snapshots": []}),
        ("snapshots.commit", {"removed": []}), ("snapshots.revert", {"reverted": True, "begun": True}),
    ):  # fmt: skip
        monkeypatch.setitem(standing.ANSWERS, name, answer)
    verdict(monkeypatch, Outcome.ok("fine"))
    return found


def carried_out(box: Box) -> list[tuple[str, dict[str, Any]]]:
    """The runner's steps that were really carried out, with what they were told, in order."""
    found = []
    for command in box.seen.commands:
        match = re.search(r"runner'? '?([a-z0-9_]+\.[a-z0-9_]+)'? --json", command)
        if match and '"dry": true' not in command and match[1] != "dry.steps":
            text = command[command.index("{") : command.rindex("}") + 1]
            try:
                told: dict[str, Any] = json.loads(text.replace("'\"'\"'", "'"))
            except ValueError:  # a quote within a quoted text
                told = {}
            outlives = match[1] == "journal.outlive"
            found.append((told["step"], told["spec"]) if outlives else (match[1], told))
    return found


def steps(box: Box) -> list[str]:
    return [name for name, _ in carried_out(box)]


def specs(box: Box, name: str) -> list[dict[str, Any]]:
    """The specifications with which a step was carried out."""
    return [told for step, told in carried_out(box) if step == name]


def failing(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    """Let one step of the runner fail."""
    real = Session.step

    def broken(self: Session, name: str, spec: dict[str, Any], timeout: int | None = None) -> dict[str, Any]:
        if name == step:
            raise error
        return real(self, name, spec, timeout)

    monkeypatch.setattr(Session, "step", broken)


def snapshot(box: Box, role: str = "n8n", **more: Any) -> dict[str, Any]:
    """One of before the upgrade of n8n, on a box that has the lock's versions now."""
    from ownstack.engine.upgrades import take_spec

    before = older(machines.plan(), n8n="2.40.7")
    spec = take_spec(before, role, "one", "r", "upgrade", {"from": {"n8n": "2.40.7"}, "to": {"n8n": LOCK["n8n"]}}, "")
    box.state = machines.box(machines.plan())
    return {
        "id": "one", "run": "r", "kind": "upgrade", "role": role, "created": time.time(), "plan": spec["plan"],
        "counts": COUNTS, "links": {}, "bytes": 2**20, "folder": "/var/lib/ownstack/snapshots/one",
        **spec["about"], **more,
    }  # fmt: skip


def test_check_says_how_old_everything_is_and_changes_nothing(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upgrade", "--check", "--json"]) == 0
    data = told(capsys)["data"]
    assert {row["component"]: (row["from"], row["to"]) for row in data["changes"]} == {
        "open-webui": ("0.11.4", LOCK["open-webui"]), "n8n": ("2.40.7", LOCK["n8n"]),
        "ollama": ("0.32.15", LOCK["ollama"]),
    }  # fmt: skip
    rows = {row["component"]: row for row in data["components"]}
    assert rows["n8n"]["floor"] == "2.38.2"
    assert not rows["n8n"]["below"]
    assert data["pins"]["age_days"] >= 0
    assert {row["service"]: row["step"] for row in data["changes"]}["open_webui"] == "major"
    assert steps(box) == []
    assert run(["upgrade", "--check", "n8n"]) == 0
    text = capsys.readouterr().out
    assert f"n8n 2.40.7 to {LOCK['n8n']}" in text
    assert "0.11.4" not in text
    assert steps(box) == []


def test_files_that_were_edited_are_shown_before_anybody_agrees(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new version's own lies beside then, and it may be what that version needs."""
    unit = "/etc/systemd/system/ownstack-n8n.service"
    box.state = box.state.model_copy(update={"edited": (unit,)})
    monkeypatch.setitem(standing.ANSWERS, "files.differences", {"files": [{"path": unit, "diff": "-a\n+b\n-Nice=5"}]})
    assert run(["upgrade", "n8n"]) == 2, "nobody said yes"
    said = capsys.readouterr().err
    assert "Edited by hand: each is kept, the planned version lies beside it as FILE.ownstack-new" in said
    assert f"  {unit}\n    -Nice=5\n" in said
    assert steps(box) == ["files.differences"]
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 0
    assert [row["path"] for row in told(capsys)["data"]["edited"]] == [unit]


def test_one_service_in_its_order(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 0
    (row,) = told(capsys)["data"]["done"]
    assert (row["service"], row["from"], row["to"]) == ("n8n", {"n8n": "2.40.7"}, {"n8n": LOCK["n8n"]})
    done = steps(box)
    staged = done.index("npm.install")
    take = done.index("snapshots.take")
    started = done.index("n8n.preflight")
    assert staged < take < started < done.index("snapshots.counts") < done.index("snapshots.commit")
    assert "box.write_manifest" not in done[:take], "nothing is recorded before the data is safe"
    assert "snapshots.revert" not in done
    staging, switching = specs(box, "npm.install")[:2]
    assert staging["current"] == "/opt/ownstack/n8n/staged"
    assert switching["current"] == "/opt/ownstack/n8n/current"
    assert staging["release"] == switching["release"]
    assert specs(box, "artifacts.remove")[0]["paths"] == sorted(specs(box, "artifacts.remove")[0]["paths"])
    assert "/opt/ownstack/n8n/staged" in specs(box, "artifacts.remove")[0]["paths"]
    (taken,) = specs(box, "snapshots.take")
    assert taken["units"] == ["ownstack-n8n"]
    assert [item["place"] for item in taken["items"]] == ["/var/lib/ownstack/n8n"]
    assert taken["secrets"] == ["n8n_"]
    (start,) = [one for one in specs(box, "box.activate") if one["services"][0].get("give_up")]
    assert [(one["name"], one["timeout"]) for one in start["services"]] == [("n8n", 1800)]
    written = specs(box, "box.write_manifest")
    assert written[0]["values"]["versions"]["n8n"]["version"] == LOCK["n8n"]
    assert written[0]["values"]["versions"]["open-webui"]["version"] == "0.11.4"


def test_all_of_them_one_after_the_other(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upgrade", "--yes", "--json", "--patience", "77"]) == 0
    data = told(capsys)["data"]
    assert [row["service"] for row in data["done"]] == ["ollama", "open_webui", "n8n"]
    done = steps(box)
    assert [name for name in done if name in ("snapshots.take", "snapshots.commit")] == [
        "snapshots.take", "snapshots.commit",
    ] * 3  # fmt: skip
    assert done.index("python_env.install") < done.index("snapshots.take"), "all is fetched before anything stops"
    web = specs(box, "snapshots.take")[1]
    assert [item["name"] for item in web["items"]] == ["open_webui", "qdrant"], "documents and what finds them"
    assert web["units"] == ["ownstack-open-webui", "ownstack-qdrant"]
    engine = specs(box, "snapshots.take")[0]
    assert [item["place"].rpartition("/")[2] for item in engine["items"]] == ["ollama", "manifests"]
    assert {one["timeout"] for spec in specs(box, "box.activate") for one in spec["services"] if "give_up" in one} == {
        77
    }


@pytest.mark.parametrize("fault", ["check", "counts", "start", "key", "bug"])
def test_what_fails_puts_program_and_data_back(
    fault: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault == "check":
        verdict(monkeypatch, Outcome.failed("no answer came"), Outcome.ok("fine"))
    if fault == "counts":
        less = {**COUNTS, "tables": {"n8n": {"workflows": 2}}}
        monkeypatch.setitem(standing.ANSWERS, "snapshots.counts", less)
    if fault == "start":
        failing(monkeypatch, "box.activate", RunError("n8n did not become ready in 9 s", code="not-ready"))
    if fault == "key":
        failing(monkeypatch, "n8n.preflight", RunError("another key", code="n8n-key"))
    if fault == "bug":
        failing(monkeypatch, "n8n.preflight", KeyError("never thought of"))
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "upgrade-reverted"
    words = {
        "check": "no answer came",
        "counts": "3 workflows, now 2",
        "start": "did not become ready",
        "key": "another key",
        "bug": "a fault of ownstack (KeyError: 'never thought of')",
    }
    assert words[fault] in error["message"]
    assert error["hint"] == "the box runs as before, with its own programs and data"
    done = steps(box)
    assert "snapshots.commit" not in done
    back = done.index("snapshots.revert")
    assert {"secrets.fill", "box.activate"} <= set(done[back:]), "the earlier plan is carried out again"
    assert "files.give_up" not in done, "a file that somebody edited stays in its place"
    assert specs(box, "snapshots.revert")[0]["id"] == specs(box, "snapshots.take")[0]["id"]
    recorded = [spec["values"]["versions"] for spec in specs(box, "box.write_manifest") if "versions" in spec["values"]]
    assert [versions["n8n"]["version"] for versions in recorded][-1] == "2.40.7"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("role", ["open_webui", "ollama", "n8n"])
def test_a_document_of_before_has_to_be_found_again(
    role: str, before: bool, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the checks find they have uploaded themselves. One that was not found before says nothing."""
    real, asked = Session.step, list[dict[str, Any]]()

    def step(self: Session, name: str, spec: dict[str, Any], timeout: int | None = None) -> dict[str, Any]:
        if name != "open_webui.again":
            return real(self, name, spec, timeout)
        asked.append(spec)
        found = before and "point" not in spec
        return {"point": {"kind": "knowledge", "id": 7}, "found": found, "refused": False}

    monkeypatch.setattr(Session, "step", step)
    lost = before and role != "n8n"
    assert run(["upgrade", role, "--yes", "--json", "--no-rehearse"]) == int(lost)
    error = told(capsys)["error"]
    assert ("snapshots.revert" in steps(box)) == lost
    if lost:
        assert error["code"] == "upgrade-reverted"
        assert "a document that was there before is not found any more" in error["message"]
        assert asked[1]["point"] == {"kind": "knowledge", "id": 7}
    assert len(asked) == (0 if role == "n8n" else 2 if before else 1)


def test_a_way_back_that_fails_too_says_both_reasons(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.failed("no answer came"))
    failing(monkeypatch, "snapshots.revert", RunError("no space left", hint="free disk space", code="disk-full"))
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "disk-full"
    assert error["message"].startswith("no space left (on the way back, after this: ")
    assert "no answer came" in error["message"]
    assert error["hint"].startswith("free disk space; then run `ownstack up`")


def test_checks_that_fail_with_the_old_version_too_are_said(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.failed("no answer came"))
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 1
    assert "these checks fail with them too: n8n-webhook" in told(capsys)["error"]["hint"]


def test_what_was_reached_before_a_failure_stays_and_is_said(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(monkeypatch, Outcome.failed("no answer came"), Outcome.ok("fine"), role="open_webui")
    monkeypatch.setattr("ownstack.engine.upgrades.GATE", {"ollama": (), "open_webui": ("open_webui",), "n8n": ()})
    assert run(["upgrade", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["message"].startswith("the upgrade of open_webui was taken back")
    assert f"done before it, and kept: ollama (ollama 0.32.15 to {LOCK['ollama']})" in error["hint"]
    assert len(specs(box, "snapshots.take")) == 2


def test_a_connection_that_breaks_makes_no_other_run_of_it(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rollback` takes back all that one command has done, however often that had to connect."""
    taken: list[dict[str, Any]] = []
    real = Session.step

    def breaking(self: Session, name: str, spec: dict[str, Any], timeout: int | None = None) -> dict[str, Any]:
        if name == "snapshots.take":
            taken.append(spec)
            if spec["role"] == "n8n" and len(taken) == 3:
                box.state = machines.box(older(machines.plan(), n8n="2.40.7"))  # the others passed
                raise ConnectionLostError("the connection to box broke")
        return real(self, name, spec, timeout)

    monkeypatch.setattr(Session, "step", breaking)
    monkeypatch.setattr("ownstack.cli.again.PAUSE_S", 0)
    assert run(["upgrade", "--yes", "--json"]) == 0
    assert [spec["role"] for spec in taken] == ["ollama", "open_webui", "n8n", "n8n"]
    assert len({spec["run"] for spec in taken}) == 1
    assert len({spec["id"] for spec in taken}) == 4, "what a way back has kept aside lies under its name"
    assert [row["service"] for row in told(capsys)["data"]["done"]] == ["ollama", "open_webui", "n8n"]


def test_a_snapshot_that_cannot_be_made_begins_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, "snapshots.take", RunError("3 MiB free", code="disk-full"))
    monkeypatch.setitem(standing.ANSWERS, "snapshots.revert", {"reverted": False})
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 1
    assert told(capsys)["error"]["code"] == "disk-full"
    assert "box.activate" not in steps(box)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RunError("the disk is broken", code="disk-error")])
@pytest.mark.parametrize("stays", [False, True])
def test_what_fails_when_it_has_passed_is_told_as_it_is(
    stays: bool, fault: BaseException, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, "snapshots.commit", fault)
    if stays:
        monkeypatch.setitem(standing.ANSWERS, "snapshots.revert", {"reverted": False, "stays": True})
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == ("not-cleared" if stays else "upgrade-reverted")
    assert "the upgrade of n8n " + ("passed and stays" if stays else "was taken back") in error["message"]
    assert specs(box, "snapshots.revert")[0]["id"] == specs(box, "snapshots.take")[0]["id"]
    assert ("secrets.fill" in steps(box)[steps(box).index("snapshots.revert") :]) != stays


@pytest.mark.parametrize("hint", ["look", "nothing was changed; the service runs on as before"])
def test_what_keeps_it_from_beginning_is_told_as_that(
    hint: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, "snapshots.take", RunError("Qdrant answers 0", hint=hint, code="qdrant"))
    monkeypatch.setitem(standing.ANSWERS, "snapshots.revert", {"reverted": False})
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert (error["code"], error["message"]) == ("qdrant", "the upgrade of n8n did not begin: Qdrant answers 0")
    assert error["hint"].count("nothing was changed") == 1
    assert hint in error["hint"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), KeyError("never thought of")])
def test_where_nothing_had_begun_it_says_so(
    fault: BaseException, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, "snapshots.take", fault)
    monkeypatch.setitem(standing.ANSWERS, "snapshots.revert", {"reverted": False})
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    why = "it was interrupted" if isinstance(fault, KeyboardInterrupt) else "a fault of ownstack (KeyError"
    assert error["message"].startswith(f"the upgrade of n8n did not begin: {why}")
    assert (error["code"], error["hint"]) == ("not-begun", "nothing was changed")
    assert "secrets.fill" not in steps(box), "nothing is carried out again"


def test_what_cannot_be_fetched_switches_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import deploy

    real = apply.execute

    def broken(session: Session, wanted: Any, *given: Any, **more: Any) -> Any:
        if wanted is deploy.stage:
            raise RunError("n8n: program: another hash", hint="later", code="fetch-hash")
        return real(session, wanted, *given, **more)

    monkeypatch.setattr(apply, "execute", broken)
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert (error["code"], error["hint"]) == ("fetch-hash", "later")
    assert error["message"] == "n8n: program: another hash; nothing was switched, the box goes on as before"
    assert steps(box) == ["artifacts.remove"]
    assert "/opt/ownstack/n8n/staged" in specs(box, "artifacts.remove")[0]["paths"]


def test_nothing_newer_is_no_change(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.state = machines.box(machines.plan())
    assert run(["upgrade", "--json"]) == 0
    data = told(capsys)["data"]
    assert (data["changed"], data["done"]) == (0, [])
    assert steps(box) == []
    assert run(["upgrade"]) == 0
    assert "Nothing is newer: 0 changes." in capsys.readouterr().out


def test_without_a_terminal_and_without_yes_it_asks_nobody(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["upgrade", "--json"]) == 2
    assert told(capsys)["error"]["code"] == "usage"
    assert "snapshots.take" not in steps(box)
    assert run(["upgrade", "redis", "--json"]) == 2
    assert told(capsys)["error"]["code"] == "no-service"


def test_what_may_not_move_is_refused_by_name(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.state = machines.box(older(machines.plan(), n8n="99.0.0"))
    assert run(["upgrade", "n8n", "--yes", "--json"]) == 1
    assert told(capsys)["error"]["code"] == "no-upgrade"
    assert run(["upgrade", "--yes"]) == 0, "others are not hindered by it"
    assert "n8n 99.0.0 stays" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "status"),
    [(["up", "--yes"], status) for status in ("taking", "taken", "passed", "done", "reverted")]
    + [(["upgrade", "--yes"], "taken"), (["rollback", "--discard"], "taken")],
)
def test_one_that_was_cut_off_is_ended_first(
    command: list[str], status: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"role": "n8n", "kind": "upgrade", "from": {"n8n": "2.40.7"}, "to": {"n8n": "2.41.1"}}
    before = machines.box(machines.plan())
    box.state = before.model_copy(update={"work": {"upgrade": {"status": status, **about}}})
    monkeypatch.setattr("ownstack.engine.preflight.read_state", lambda session, layout: before)
    assert run(command) == 0
    said = capsys.readouterr().err
    done = steps(box)
    if status in ("taking", "taken"):
        assert done.index("snapshots.revert") < done.index("secrets.fill")
        assert "an upgrade of n8n (n8n 2.40.7 to 2.41.1) was cut off: programs and data are as they were" in said
    elif status == "passed":
        assert "snapshots.revert" not in done
        assert "it is finished now" in said
    else:
        assert "cut off" not in said
        assert "snapshots.revert" not in done


@pytest.mark.parametrize("begun", [True, False])
def test_one_that_went_on_after_the_state_was_read_is_put_back_too(
    begun: bool, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its run died while the data was copied; the step over there had not said yet that it copies."""
    about = {"role": "n8n", "kind": "upgrade", "from": {"n8n": "2.40.7"}, "to": {"n8n": "2.41.1"}}
    before = machines.box(machines.plan())
    cut = {"event": "begin", "step": "snapshots.take", "run": "upgrade", "time": 1}
    earlier = {"upgrade": {"status": "done", "role": "ollama", "from": {"ollama": "1"}, "to": {"ollama": "2"}}}
    box.state = before.model_copy(update={"unfinished": cut, "work": earlier})
    monkeypatch.setattr("ownstack.engine.preflight.read_state", lambda session, layout: before)
    answer = {"reverted": True, "begun": True, **about} if begun else {"reverted": False}
    monkeypatch.setitem(standing.ANSWERS, "snapshots.revert", answer)
    assert run(["up", "--yes"]) == 0
    assert steps(box).count("snapshots.revert") == 1
    assert "snapshots.commit" not in steps(box)
    told = "an upgrade of n8n (n8n 2.40.7 to 2.41.1) was cut off: programs and data are as they were"
    assert (told in capsys.readouterr().err) == begun


def test_one_whose_copy_is_gone_stays_and_it_is_said(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = machines.box(machines.plan())
    work = {"status": "taken", "role": "n8n", "kind": "upgrade", "from": {}, "to": {}}
    box.state = before.model_copy(update={"work": {"upgrade": work}})
    monkeypatch.setattr("ownstack.engine.preflight.read_state", lambda session, layout: before)
    gone = {"reverted": False, "gone": "/var/lib/ownstack/snapshots/x"}
    monkeypatch.setitem(standing.ANSWERS, "snapshots.revert", gone)
    assert run(["up", "--yes"]) == 0
    said = capsys.readouterr().err
    assert "the copy of its data is gone from /var/lib/ownstack/snapshots/x: what is there stays" in said
    assert "snapshots.commit" in steps(box)


def test_one_that_came_to_its_end_after_the_state_was_read_is_not_said_to_be_put_back(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = machines.box(machines.plan())
    work = {"status": "taken", "role": "n8n", "kind": "upgrade", "from": {}, "to": {}}
    box.state = before.model_copy(update={"work": {"upgrade": work}})
    monkeypatch.setattr("ownstack.engine.preflight.read_state", lambda session, layout: before)
    monkeypatch.setitem(standing.ANSWERS, "snapshots.revert", {"reverted": False})
    assert run(["up", "--yes"]) == 0
    said = capsys.readouterr().err
    assert "was cut off, and came to its end meanwhile" in said
    assert "programs and data are as they were" not in said
    assert "snapshots.commit" in steps(box)


def test_a_change_of_models_that_was_cut_off_comes_first(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    box.state = machines.box(machines.plan(), previous_plan=machines.plan().model_dump(mode="json"))
    assert run(["upgrade", "--yes", "--json"]) == 1
    assert told(capsys)["error"]["code"] == "unfinished"


# -- the way back --------------------------------------------------------------------------------------------


def test_rollback_names_what_is_lost_and_goes_back(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [snapshot(box)]})
    more = {**COUNTS, "tables": {"n8n": {"workflows": 5}, "open_webui": {"chats": 5}}}
    monkeypatch.setitem(standing.ANSWERS, "snapshots.counts", more)
    assert run(["rollback", "--json"]) == 2, "nobody was asked"
    assert told(capsys)["error"]["code"] == "usage"
    assert "snapshots.take" not in steps(box)
    assert run(["rollback", "--yes", "--json"]) == 0
    data = told(capsys)["data"]
    assert data["lost"] == ["2 workflows of n8n"]
    assert [row["to"] for row in data["done"]] == [{"n8n": "2.40.7"}]
    assert "plan" not in data["to"][0]
    done = steps(box)
    order = [done.index(name) for name in ("snapshots.take", "snapshots.put", "secrets.fill", "snapshots.commit")]
    assert order == sorted(order)
    assert specs(box, "snapshots.put")[0]["from"] == "one"
    assert specs(box, "snapshots.take")[0]["kind"] == "rollback"
    assert specs(box, "box.write_manifest")[0]["values"]["versions"]["n8n"]["version"] == "2.40.7"


def test_a_service_that_does_not_answer_can_be_rolled_back(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be why somebody goes back."""
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [snapshot(box)]})
    real, asked = Session.step, []

    def step(self: Session, name: str, *given: Any, **more: Any) -> dict[str, Any]:
        asked.append(name)
        if name == "snapshots.counts" and "snapshots.take" not in asked:
            raise RunError("Qdrant answers 0")
        return real(self, name, *given, **more)

    monkeypatch.setattr(Session, "step", step)
    assert run(["rollback", "--yes", "--json"]) == 0
    data = told(capsys)["data"]
    assert data["lost"] == ["what n8n holds more cannot be counted (Qdrant answers 0)"]
    assert "snapshots.commit" in asked


def test_a_rollback_that_does_not_verify_undoes_itself(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [snapshot(box)]})
    verdict(monkeypatch, Outcome.failed("no answer came"), Outcome.ok("fine"))
    assert run(["rollback", "n8n", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "rollback-reverted"
    assert "the way back of n8n was taken back: n8n-webhook: no answer came" in error["message"]
    assert "snapshots.commit" not in steps(box)


def test_qdrant_that_was_upgraded_since_keeps_its_data(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = snapshot(box, "open_webui")
    for part in row["plan"]["roles"]:
        for item in part["artifacts"]:
            if item["name"] == "qdrant":
                item["version"] = "1.18.0"
    row.update({"from": {"open-webui": "0.11.4"}})
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [row]})
    assert run(["rollback", "--yes"]) == 0
    assert "Qdrant's data stays as it is" in capsys.readouterr().err
    assert specs(box, "snapshots.put")[0]["leave"] == ["qdrant"]


@pytest.mark.parametrize("role", ["open_webui", "qdrant"])
@pytest.mark.parametrize("changed", [True, False])
def test_documents_of_another_embedding_model_are_indexed_anew_on_the_way_back(
    changed: bool, role: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The snapshot has the collections of then; the box looks for others, and would find no document."""
    row = snapshot(box, role, **{"from": {role.replace("_", "-"): "0.11.4"}})
    held = row["plan"]["vectors"]
    if changed:
        box.state = machines.box(machines.plan().model_copy(update={"vectors": "open-webui-other"}))
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [row]})
    assert run(["rollback", "--yes", "--json"]) == 0
    capsys.readouterr()
    asked = [(spec["qdrant"]["old"], spec["qdrant"]["new"]) for spec in specs(box, "open_webui.reindex")]
    assert asked == ([(held, "open-webui-other")] if changed else [])
    first = [spec["qdrant"]["new"] for spec in specs(box, "open_webui.vectors")]
    assert first == ["open-webui-other"] * changed, "memories come by their texts alone"


@pytest.mark.parametrize("lost", [False, True])
def test_models_stay_as_they_are_on_the_way_back_of_the_engine(
    lost: bool, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan may be another one since: with the list of then its models were gone, and offline they stayed so."""
    about = {"from": {"ollama": "0.32.15"}, "to": {"ollama": LOCK["ollama"]}}
    row = snapshot(box, "ollama", counts={**COUNTS, "models": {"gone:1b": "a", "here:1b": "b"}}, **about)
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [row]})
    today = {**COUNTS, "models": {"here:1b": "b", "new:1b": "c"}}
    monkeypatch.setitem(standing.ANSWERS, "snapshots.counts", today)
    real = Session.step

    def counted(self: Session, name: str, spec: dict[str, Any], timeout: int | None = None) -> dict[str, Any]:
        if lost and name == "snapshots.put":
            monkeypatch.setitem(standing.ANSWERS, "snapshots.counts", {**COUNTS, "models": {"here:1b": "b"}})
        return real(self, name, spec, timeout)

    monkeypatch.setattr(Session, "step", counted)
    assert run(["rollback", "--yes", "--json"]) == int(lost)
    found = told(capsys)
    assert set(specs(box, "snapshots.put")[0]["leave"]) == {"manifests", "models.json"}
    if lost:
        assert "the model new:1b is gone" in found["error"]["message"]
        return
    assert found["data"]["lost"] == []
    assert "snapshots.commit" in steps(box)


def test_without_a_snapshot_there_is_no_way_back(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rollback", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "no-snapshot"
    assert "restore" in error["hint"]


def test_a_service_that_was_left_out_since_has_no_way_back_and_the_others_have(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = snapshot(box)
    less = machines.plan().model_copy(
        update={"roles": tuple(part for part in machines.plan().roles if part.name != "n8n")}
    )
    box.state = machines.box(less)
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [row]})
    assert run(["rollback", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "no-snapshot"
    assert "n8n was left out of the box since" in error["message"]
    assert "snapshots.take" not in steps(box)
    about = {"from": {"ollama": "0.32.15"}, "to": {"ollama": LOCK["ollama"]}}
    other = snapshot(box, "ollama", **about, id="two")
    box.state = machines.box(less)
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [other, row]})
    assert run(["rollback", "--yes", "--json"]) == 0
    assert [one["service"] for one in told(capsys)["data"]["done"]] == ["ollama"]


def test_snapshots_are_shown_and_can_be_discarded(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [snapshot(box)]})
    assert run(["status", "--json"]) == 0
    (row,) = told(capsys)["data"]["snapshots"]
    assert (row["role"], row["bytes"], row["from"]) == ("n8n", 2**20, {"n8n": "2.40.7"})
    assert run(["status"]) == 0
    assert f"before n8n 2.40.7 to {LOCK['n8n']}: 1 MiB" in capsys.readouterr().out
    held = {"folders": [{"name": "snapshots", "path": "/v/snapshots", "kind": "data", "bytes": 9, "older_bytes": 0,
                         "unread": 0}], "disks": []}  # fmt: skip
    monkeypatch.setitem(standing.ANSWERS, "box.disk", held)
    assert run(["disk"]) == 0
    assert "`ownstack rollback --discard` removes them" in capsys.readouterr().out
    assert run(["rollback", "--discard", "--json"]) == 2
    capsys.readouterr()
    assert run(["rollback", "--discard", "--json", "--yes"]) == 0
    assert [one["id"] for one in told(capsys)["data"]["removed"]] == ["one"]
    assert specs(box, "snapshots.drop")[0]["ids"] == ["one"]


def test_what_lies_aside_is_named_and_can_be_discarded(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/var/lib/ownstack/snapshots/old.replaced/n8n"
    about = {"role": "n8n", "kind": "upgrade", "from": {"n8n": "2.40.7"}, "to": {"n8n": "2.41.1"}}
    before = machines.box(machines.plan())
    monkeypatch.setattr("ownstack.engine.preflight.read_state", lambda session, layout: before)
    box.state = before.model_copy(update={"work": {"upgrade": {"status": "taken", **about}}})
    answer = {"reverted": True, "begun": True, "replaced": [path]}
    monkeypatch.setitem(standing.ANSWERS, "snapshots.revert", answer)
    assert run(["up", "--yes"]) == 0
    assert f"what was there since is kept in {path} (`ownstack rollback --discard`" in capsys.readouterr().err
    box.state = before
    row = {"id": "old", **about, "created": time.time(), "paths": [path], "bytes": 2**20}
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [], "replaced": [row]})
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert "kept aside (`ownstack rollback --discard n8n` removes it): n8n, replaced 20" in said
    assert f"when its upgrade was put back: 1 MiB, {path}" in said
    assert run(["rollback", "--yes", "--json"]) == 1, "it is no way back"
    assert told(capsys)["error"]["code"] == "no-snapshot"
    assert run(["rollback", "--discard", "ollama", "--yes", "--json"]) == 0
    assert told(capsys)["data"]["replaced"] == []
    assert run(["rollback", "--discard", "n8n", "--yes", "--json"]) == 0
    assert [one["paths"] for one in told(capsys)["data"]["replaced"]] == [[path]]
    assert [spec["ids"] for spec in specs(box, "snapshots.drop")] == [["old"]]


def test_what_a_cut_off_restore_had_put_in_place_is_named_and_discarded_alone(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/var/lib/ownstack/snapshots/restore-1.replaced/n8n"
    before = machines.box(machines.plan())
    monkeypatch.setattr("ownstack.engine.preflight.read_state", lambda session, layout: before)
    box.state = before.model_copy(update={"work": {"restore": {"status": "swapped"}}})
    monkeypatch.setitem(standing.ANSWERS, "restore.revert", {"reverted": True, "replaced": [path], "role": "restore"})
    assert run(["up", "--yes"]) == 0
    assert (
        f"before it; what was there since is kept in {path} (`ownstack rollback --discard restore` removes it)"
        in capsys.readouterr().err
    )
    box.state = before
    row = {"id": "restore-1", "kind": "restore", "role": "restore", "created": time.time(), "paths": [path], "bytes": 9}
    other = {**row, "id": "import-1", "kind": "import", "role": "n8n"}
    monkeypatch.setitem(standing.ANSWERS, "snapshots.held", {"snapshots": [], "replaced": [row, other]})
    assert run(["status"]) == 0
    said = capsys.readouterr().out
    assert "kept aside (`ownstack rollback --discard restore` removes it): the box, replaced 20" in said
    assert "when its restore was put back" in said
    assert "(`ownstack rollback --discard n8n` removes it): n8n, replaced 20" in said
    assert "when its import was put back" in said
    assert run(["rollback", "--discard", "restore", "--yes"]) == 0
    assert [spec["ids"] for spec in specs(box, "snapshots.drop")] == [["restore-1"]]


def test_status_says_what_is_newer(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 0
    assert f"n8n 2.40.7 to {LOCK['n8n']}" in capsys.readouterr().out
    box.state = machines.box(machines.plan())
    assert run(["status", "--json"]) == 0
    assert told(capsys)["data"]["upgrades"] == []


def test_status_tells_of_an_upgrade_that_was_cut_off(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    for status, shown in (("taken", True), ("done", False), ("reverted", False)):
        box.state = box.state.model_copy(update={"work": {"upgrade": {"status": status, "role": "n8n"}}})
        assert run(["status"]) == 0
        assert ("an upgrade of n8n" in capsys.readouterr().out) == shown


# -- rehearsals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "rehearsed"),
    [(["open_webui"], True), (["open_webui", "--no-rehearse"], False), (["n8n"], False), (["n8n", "--rehearse"], True),
     (["ollama"], False), (["ollama", "--rehearse"], False)],
)  # fmt: skip
def test_major_steps_are_rehearsed_and_others_where_it_is_asked(
    words: list[str], rehearsed: bool, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(standing.ANSWERS, "snapshots.rehearsal", {"before": COUNTS, "after": COUNTS})
    assert run(["upgrade", "--yes", "--json", *words]) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)["data"]["done"]
    assert row["rehearsed"] == rehearsed
    assert ("ollama has nothing to rehearse" in said.err) == (words == ["ollama", "--rehearse"])
    done = steps(box)
    assert ("snapshots.rehearsal" in done) == rehearsed
    if rehearsed:
        assert done.index("snapshots.rehearsal") < done.index("snapshots.take")
        (command,) = [text for text in box.seen.commands if "snapshots.rehearsal" in text]
        assert f'"{words[0]}": "/opt/ownstack/{words[0]}/staged"' in command


def test_a_rehearsal_that_fails_touches_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {**COUNTS, "tables": {"open_webui": {"chats": 6}}}
    monkeypatch.setitem(standing.ANSWERS, "snapshots.rehearsal", {"before": more, "after": COUNTS})
    assert run(["upgrade", "open_webui", "--yes", "--json"]) == 1
    error = told(capsys)["error"]
    assert error["code"] == "rehearsal-failed"
    assert "open_webui had 6 chats, now 5" in error["message"]
    done = steps(box)
    assert "snapshots.take" not in done
    assert done[-1] == "artifacts.remove"
    assert "/opt/ownstack/open_webui/staged" in specs(box, "artifacts.remove")[-1]["paths"]


@pytest.mark.parametrize(
    ("step", "code"),
    [("snapshots.rehearsal", "memory"), ("snapshots.rehearsal", "port-taken"), ("snapshots.space", "disk-full")],
)
def test_too_little_room_is_no_rehearsal_and_an_error_only_where_it_was_asked_for(
    step: str, code: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, step, RunError("7 MiB are free", code=code))
    assert run(["upgrade", "open_webui", "--yes", "--json"]) == 0
    said = capsys.readouterr()
    assert not json.loads(said.out)["data"]["done"][0]["rehearsed"]
    assert "open_webui is not rehearsed: 7 MiB" in said.err
    assert run(["upgrade", "open_webui", "--rehearse", "--yes", "--json"]) == 1
    assert told(capsys)["error"]["code"] == "no-rehearsal"
