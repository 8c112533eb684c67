"""Choosing: which variant of each program, for which host, and when not at all."""

from __future__ import annotations

import builtins
import os
import socket
import subprocess
from typing import Any

import pytest

from ownstack import choosing
from ownstack.data import version_key
from ownstack.errors import ConfigError, DetectionError, OwnstackError, UnsupportedError
from ownstack.hardware.facts import load as load_probe
from ownstack.hardware.interpret import interpret
from ownstack.hardware.report import ExistingOllama
from ownstack.kit import activate
from ownstack.plan import Plan
from ownstack.settings import load
from ownstack.state import BoxState, SourceReport
from tests.unit import machines
from tests.unit.machines import box, changed, listening, plan, restricted, sources

activate()
from roles.ollama import unpack_rule  # noqa: E402

QDRANT = {"roles": ["qdrant"]}


def refused(kind: type[OwnstackError], *given: Any, **named: Any) -> OwnstackError:
    with pytest.raises(kind) as caught:
        plan(*given, **named)
    return caught.value


def variants(made: Plan) -> dict[str, str]:
    return {item.name: item.variant for role in made.roles for item in role.artifacts}


# -- the five inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", ["bare-server", "rtx-4090", "gb10", "rx-7900-xtx"])
def test_the_same_inputs_give_the_same_plan(machine: str) -> None:
    first, second = plan(machine), plan(machine)
    assert first == second
    assert first.digest() == second.digest()
    assert Plan.model_validate_json(first.model_dump_json()) == first
    assert plan(machine, {"qdrant.port": 7333}).digest() != first.digest()


def test_choosing_reads_nothing_but_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, report, data, answers = load({}, None, {}), machines.report("rtx-4090"), machines.data(), sources()
    choosing.choose(report, settings, data, answers, BoxState())

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("choose looked at the world")

    for owner, name in (
        (builtins, "open"), (os, "listdir"), (os, "stat"), (socket, "socket"), (subprocess, "run"), (os, "getenv"),
        (socket, "getaddrinfo"), (os, "uname"), (subprocess, "Popen"), (os, "urandom"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, forbidden)
    made = choosing.choose(report, settings, data, answers, BoxState())
    monkeypatch.undo()
    assert made.engine == "cuda"


# -- which variant --------------------------------------------------------------------------------


def test_vendors_come_first_and_no_version_is_below_its_floor() -> None:
    for machine in ("bare-server", "rtx-4090", "gb10", "rx-7900-xtx", "arm-board-4gb-64k"):
        made = plan(machine)
        floors = machines.data().floors
        for role in made.roles:
            for item in role.artifacts:
                assert not item.below_floor
                floor = floors.floor.get(item.name.replace("-", "_"), "0")
                assert version_key(item.version) >= version_key(floor), item.name
                assert item.platform == made.platform
        assert made.role("qdrant").artifact("qdrant").source == "github.com"


def test_a_restricted_network_takes_registries_and_says_what_is_below_its_floor() -> None:
    made = plan(answers=restricted())
    picked = variants(made)
    assert picked["qdrant"] == "npm-third-party"
    assert picked["ollama"] == "go-module"
    qdrant = made.role("qdrant").artifact("qdrant")
    assert (qdrant.way, qdrant.below_floor) == ("carry", True)
    assert any("qdrant 1.16.3 is below the security floor 1.19.2" in text for text in made.warnings)
    assert {item.source for role in made.roles for item in role.artifacts} <= {"npm", "pypi", "go", "debian", "host"}


def test_a_variant_that_needs_a_newer_c_library_is_passed_over() -> None:
    """Ubuntu 22.04 has glibc 2.35 and no Python 3.11; Debian 12's packages of it need 2.36."""
    bare = {"python": (), "glibc": "2.36"}
    assert variants(plan(changed("bare-server", host=bare), answers=restricted()))["python"] == "debian"
    older = changed("bare-server", host={**bare, "glibc": "2.35"})
    error = refused(UnsupportedError, older, answers=restricted())
    assert "debian: needs glibc 2.36, the host has 2.35" in error.message
    assert variants(plan(older))["python"] == "standalone", "the vendor's own build runs there"


def test_what_no_registry_has_for_arm64_is_named() -> None:
    error = refused(UnsupportedError, "arm-board-4gb-64k", answers=restricted())
    assert error.code == "no-source"
    assert "npm-third-party: for linux-x86_64" in error.message
    made = plan("arm-board-4gb-64k")
    assert {item.platform for role in made.roles for item in role.artifacts} == {"linux-aarch64"}
    assert variants(made)["qdrant"] == "vendor-musl-aarch64"


@pytest.mark.parametrize("host", ["github.com", "nodejs.org"])
def test_one_host_that_is_down_never_brings_an_old_version(host: str) -> None:
    answers = sources({host: "timed out"})
    if host == "nodejs.org":
        made = plan(answers=answers)
        assert not [item for role in made.roles for item in role.artifacts if item.below_floor]
        return
    error = refused(UnsupportedError, answers=answers)
    assert error.code == "no-source"
    assert "timed out" in error.message
    assert error.hint.startswith("try again")


def test_an_old_version_is_never_taken_where_data_exists() -> None:
    after_down = BoxState(manifest={"plan": None, "versions": {}, "installed": True})
    assert after_down.has_data
    error = refused(UnsupportedError, flags=QDRANT, answers=restricted(), state=after_down)
    assert "1.16.3 is below the security floor" in error.message


@pytest.mark.parametrize("key", ["sources.allow_below_floor", "qdrant.allow_below_floor"])
def test_an_old_version_is_taken_where_a_setting_says_so(key: str) -> None:
    answers = sources({"github.com": "timed out"})
    made = plan(flags={**QDRANT, key: True}, answers=answers)
    assert made.role("qdrant").artifact("qdrant").version == "1.16.3"
    assert any("below the security floor" in text for text in made.warnings)


def test_the_setting_of_one_role_is_not_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    floors = machines.data().floors
    monkeypatch.setitem(floors.floor, "node", "999")
    error = refused(UnsupportedError, flags={"qdrant.allow_below_floor": True})
    assert "node" in error.message


def test_sources_can_be_switched_off() -> None:
    made = plan(flags={**QDRANT, "sources.restricted": "yes"})
    assert variants(made)["qdrant"] == "npm-third-party"
    error = refused(UnsupportedError, flags={**QDRANT, "sources.restricted": "no"}, answers=restricted())
    assert "registries are switched off" in error.message


def test_what_the_box_runs_without_is_left_out_and_said() -> None:
    """The library that encrypts backups comes from a registry only."""
    assert plan().role("base").artifact("age").source == "pypi"
    without = plan(flags={**QDRANT, "sources.restricted": "no"})
    assert "age" not in {item.name for item in without.role("base").artifacts}
    assert [text for text in without.warnings if text.startswith("age is left out, which encrypts backups")]


def test_the_engine_of_the_registries_has_no_gpu_and_is_refused_where_there_is_one() -> None:
    error = refused(UnsupportedError, "rtx-4090", answers=restricted())
    assert "ollama" in error.message
    made = plan("rtx-4090", {"hardware.cpu_only": True}, answers=restricted())
    assert variants(made)["ollama"] == "go-module"
    assert made.engine == "cpu"


def test_a_gpu_that_comes_later_brings_the_same_version_with_its_parts() -> None:
    """On a box whose engine was built for the CPU; back again nothing has to change, and the version never moves."""
    before = plan(answers=restricted())
    stands = box(before)
    amd = plan("rx-7900-xtx", answers=restricted(), state=stands)
    old, new = (made.role("ollama").artifact("ollama") for made in (before, amd))
    assert (old.variant, new.variant, new.version) == ("go-module", "go-module-vulkan", old.version)
    assert old.digest != new.digest, "releases of both lie side by side"
    assert amd.engine == "vulkan"
    again = plan(answers=restricted(), state=box(amd))
    assert again.engine == "cpu"
    assert again.role("ollama").artifact("ollama") == new
    error = refused(UnsupportedError, "rtx-4090", answers=restricted(), state=stands)
    assert (error.code, "ollama 0.34.2" in error.message) == ("engine-parts", True)
    vendor = plan("rx-7900-xtx", state=box(plan("rtx-4090")))
    assert (vendor.engine, variants(vendor)["ollama"]) == ("vulkan", "vendor"), "ROCm is of an earlier version"


@pytest.mark.parametrize(("machine", "engine"), [("rtx-4090", "cuda"), ("arc-b580-xe", "vulkan")])
def test_a_card_of_another_make_after_an_amd_one_is_driven_by_the_same_version(machine: str, engine: str) -> None:
    before = plan("rx-7900-xtx")
    after = plan(machine, state=box(before))
    old, new = (made.role("ollama").artifact("ollama") for made in (before, after))
    assert (old.variant, before.engine, after.engine) == ("vendor-rocm", "rocm", engine)
    assert new == old, "the base of its archive holds the parts"
    assert unpack_rule(new.details, engine)["include"] != unpack_rule(old.details, "rocm")["include"]


def test_a_mirror_replaces_the_network_even_where_nothing_answers() -> None:
    made = plan(flags={**QDRANT, "sources.mirror": "/mnt/mirror"}, answers=SourceReport(models="a mirror"))
    assert variants(made)["qdrant"] == "vendor-musl"
    assert made.mirror == "/mnt/mirror"
    away = plan(
        flags={**QDRANT, "sources.mirror": "/mnt/mirror", "host": "me@server"},
        answers=SourceReport(models="m"),
    )
    assert made.role("qdrant").artifact("qdrant").way == "target"
    assert away.role("qdrant").artifact("qdrant").way == "carry", "a folder here is not one there"


def test_without_a_model_registry_the_plan_names_the_model_this_machine_deserves() -> None:
    made = plan("rtx-4090", answers=sources(models="refused"))
    deserved = plan("rtx-4090").model("chat")
    assert deserved is not None
    assert made.deferred_model is not None
    assert made.deferred_model.tag == deserved.tag
    chat = made.model("chat")
    assert chat is not None
    assert chat.source == "artifact"
    assert any("refused" in text for text in made.reasons)


# -- what stands already --------------------------------------------------------------------------


def test_recorded_versions_never_move_and_the_newer_one_is_told() -> None:
    first = plan(flags=QDRANT)
    state = box(first)
    assert state.manifest is not None
    state.manifest["versions"]["qdrant"]["version"] = "1.19.1"
    state.manifest["versions"]["qdrant"]["sha256"] = "e" * 64
    for answers in (sources(), restricted(), sources({"github.com": "timed out"})):
        again = plan(flags=QDRANT, state=state, answers=answers)
        item = again.role("qdrant").artifact("qdrant")
        assert (item.version, item.sha256, item.variant) == ("1.19.1", "e" * 64, "vendor-musl")
        assert (
            "qdrant 1.19.1 is installed, the lock has 1.19.2: upgrade available, `ownstack upgrade` brings it"
            in again.warnings
        )


def test_a_restricted_box_keeps_its_variant_when_vendors_answer_again() -> None:
    first = plan(answers=restricted())
    again = plan(state=box(first), answers=sources(models="no route"))
    assert variants(again) == variants(first)
    assert not [text for text in plan(answers=restricted(), state=box(first)).warnings if "upgrade available" in text]
    told = [text for text in again.warnings if "upgrade available" in text]
    lock = plan()
    for name in ("qdrant", "ollama", "node"):
        item = next(item for role in lock.roles for item in role.artifacts if item.name == name)
        held = next(item for role in first.roles for item in role.artifacts if item.name == name)
        installed = f"{name} {held.version} is installed, the lock has {item.version}"
        assert f"{installed}: upgrade available, `ownstack upgrade` brings it" in told
    (floor,) = [text for text in again.warnings if "below the security floor" in text]
    assert "only source" not in floor, "there is a newer one now"
    with_models = plan(state=box(first))
    assert variants(with_models).items() <= variants(first).items(), "models are fetched now, programs stay"


def test_a_newer_lock_moves_nothing_and_brings_nothing_else_back() -> None:
    first = plan()
    state = box(first)
    assert state.manifest is not None
    state.manifest["kit_version"] = "0.0.9"
    for name in ("n8n", "open-webui"):
        item = state.manifest["versions"][name]
        item.update(version="0.0.1", sha256="0" * 64)
    held = {
        f"/opt/ownstack/{name}/releases/0.0.1-x": {"name": name, "version": "0.0.1"} for name in ("n8n", "open_webui")
    }
    again = plan(state=state.model_copy(update={"releases": held}))
    for role, name in (("n8n", "n8n"), ("open_webui", "open-webui")):
        assert again.role(role).artifact(name).version == "0.0.1"
        assert any(text.startswith(f"{name} 0.0.1 is installed, the lock has ") for text in again.warnings)
    error = refused(UnsupportedError, state=state)  # after `down`: the programs are gone, the data stays
    assert error.code == "earlier-lock"
    assert "0.0.1 is recorded for this box" in error.message
    assert "ownstack 0.0.9" in error.hint


def test_a_role_that_is_left_out_later_is_retired_once() -> None:
    first = plan()
    fewer = {"roles": ["qdrant", "ollama", "models", "open_webui"]}
    second = plan(flags=fewer, state=box(first))
    assert [part.name for part in second.retired] == ["n8n"]
    assert any(text.startswith("n8n is left out now") for text in second.warnings)
    third = plan(flags=fewer, state=box(second))
    assert third.retired == ()
    assert not [text for text in third.warnings if "left out now" in text]
    existing = EXISTING.model_copy(update={"manifest": box(first).manifest})
    assert [part.name for part in plan(flags={"ollama.use": "existing"}, state=existing).retired] == ["ollama"]
    assert plan(state=BoxState()).retired == ()


def test_models_stay_while_hardware_and_wishes_do() -> None:
    first = plan("rtx-4090")
    less = changed("rtx-4090", memory={"available_bytes": 3 * 2**30})
    assert plan(less, state=box(first)).models == first.models
    other = plan("rtx-4090", {"models.context": 4096}, state=box(first))
    assert other.models != first.models


def test_models_stay_too_where_vulkan_drives_an_amd_card() -> None:
    answers = sources(dict.fromkeys(machines.data().vendor_hosts(), "no route"))  # the registry of models answers
    first = plan("rx-7900-xtx", answers=answers)
    assert first.engine == "vulkan"
    less = changed("rx-7900-xtx", memory={"available_bytes": 3 * 2**30})
    assert plan(less, answers=answers, state=box(first)).models == first.models


def test_a_box_stays_where_it_is() -> None:
    first = plan(flags={**QDRANT, "root": "/srv/box"})
    assert plan(flags=QDRANT, state=box(first)).layout == first.layout


# -- the host -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "words"), [("alpine-nothing", "musl"), ("mac-m4-mini-16gb", "a Mac cannot be the box")]
)
def test_systems_that_cannot_be_a_box(machine: str, words: str) -> None:
    error = refused(UnsupportedError, machine)
    assert words in error.message
    assert error.exit_code == 3
    assert error.hint


def test_an_old_glibc_and_another_processor() -> None:
    old = changed("bare-server", host={"glibc": "2.31", "os_name": "Ubuntu 20.04"})
    assert "glibc 2.31" in refused(UnsupportedError, old).message
    assert plan(changed("bare-server", host={"glibc": "2.34"}), QDRANT).has("qdrant")
    other = changed("bare-server", cpu={"architecture": "other"})
    assert "neither x86_64 nor arm64" in refused(UnsupportedError, other).message


def test_a_system_nobody_tried_is_said_to_be_one() -> None:
    unknown = changed("bare-server", host={"os_id": "haiku", "os_name": "Haiku"})
    assert any("unknown to this kit" in text for text in plan(unknown, QDRANT).warnings)
    assert not any(
        "tested" in text for text in plan(changed("bare-server", host={"os_version": "12"}), QDRANT).warnings
    )


def test_unreadable_hardware_stops_and_cpu_only_goes_on() -> None:
    error = refused(DetectionError, "driver-mismatch")
    assert error.code == "HW-NVIDIA-DRIVER-MISMATCH"
    assert "--cpu-only" in error.hint
    assert plan("driver-mismatch", {"hardware.cpu_only": True}).engine == "cpu"


def test_who_installs_decides_the_layout_and_the_manager() -> None:
    assert (plan().manager, plan().layout.opt) == ("systemd", "/opt/ownstack")
    alone = changed("bare-server", host={"sudo": "none"})
    made = plan(alone, QDRANT)
    assert (made.manager, made.system) == ("systemd-user", False)
    assert made.layout.opt.startswith("/home/")
    assert made.account("qdrant") == ""
    assert any("enable-linger" in text for text in made.absent_protections)
    lingering = changed("bare-server", host={"sudo": "none", "linger": True})
    assert len(plan(lingering, QDRANT).absent_protections) == 1
    error = refused(UnsupportedError, alone, {"scope": "system"})
    assert error.code == "no-sudo"
    assert "cannot become root" in error.message
    assert plan(changed("bare-server", host={"tools": ("zstd",)}), {"scope": "user"}).manager == "systemd-user"
    made = plan(changed("bare-server", host={"init": "other"}), QDRANT)
    assert made.manager == "supervisord"
    assert any("not systemd" in text for text in made.absent_protections)


def test_without_root_a_missing_system_package_is_told_beforehand() -> None:
    alone = changed("bare-server", host={"sudo": "none", "tools": ("curl",)})
    error = refused(UnsupportedError, alone)
    assert error.code == "package-missing"
    assert "zstd" in error.message
    assert plan(changed("bare-server", host={"sudo": "none", "tools": ("curl", "zstd")})).system is False
    assert plan(alone, QDRANT).system is False, "nothing of it comes as a .tar.zst"
    assert plan(changed("bare-server", host={"tools": ("curl",)})).system, "root adds it"


def test_a_small_machine_goes_without_n8n_unless_asked() -> None:
    small = changed("bare-server", memory={"total_bytes": 7 * 2**30, "available_bytes": 6 * 2**30})
    made = plan(small)
    assert not made.has("n8n")
    assert any("n8n is left out" in text for text in made.reasons)
    assert plan(small, {"roles": ["qdrant", "n8n"]}).has("n8n")
    assert plan(small, state=box(plan())).has("n8n"), "what stands is not taken away"
    limited = changed("bare-server", memory={"limit_bytes": 6 * 2**30})
    assert not plan(limited).has("n8n")
    sold_as_8 = changed("bare-server", memory={"total_bytes": int(7.6 * 2**30), "available_bytes": 7 * 2**30})
    assert plan(sold_as_8).has("n8n")


def test_roles_left_out_leave_nothing_of_theirs() -> None:
    made = plan(flags={"roles": ["qdrant", "ollama"]})
    assert [role.name for role in made.roles] == ["base", "qdrant", "ollama"]
    assert made.models == ()
    assert not [secret for secret in made.secrets if "n8n" in secret.name or "webui" in secret.name]
    assert "n8n" not in variants(made)


EXISTING = BoxState(existing_ollama="0.34.2", existing_models=("qwen3:14b", "nomic-embed-text:latest"))


def test_an_ollama_that_is_there_is_used_as_it_is() -> None:
    made = plan(flags={"ollama.use": "existing"}, state=EXISTING)
    assert not made.has("ollama")
    assert (made.engine_existing, made.engine_url) == (True, "http://127.0.0.1:11434")
    assert {model.tag.removesuffix(":latest") for model in made.models} == {"qwen3:14b", "nomic-embed-text"}
    assert all(model.source == "existing" for model in made.models)
    assert any("is used as it is" in text for text in made.reasons)
    away = {"ollama.use": "existing", "ollama.url": "http://192.168.1.7:11434"}
    error = refused(ConfigError, flags=away, state=EXISTING)
    assert "may reach this machine only" in error.message
    assert "[network] open_webui" in error.hint
    lan = {**away, "network.open_webui": "lan", "network.n8n": "lan"}
    assert plan(flags=lan, state=EXISTING).engine_url == "http://192.168.1.7:11434"


def test_models_of_an_engine_that_is_used_are_kept_where_their_owner_says_so() -> None:
    """A larger one that was pulled there would be taken otherwise; one that is gone cannot be kept."""
    use = {"ollama.use": "existing"}
    first = plan(flags=use, state=EXISTING)
    names = ("qwen3.6:27b", *EXISTING.existing_models)
    more = EXISTING.model_copy(update={"manifest": box(first).manifest, "existing_models": names})
    assert plan(flags=use, state=more).models[0].tag == "qwen3.6:27b"
    assert plan(flags={**use, "models.keep": True}, state=more).models[0].tag == "qwen3:14b"
    assert plan(flags={**use, "models.keep": True, "models.chat": "qwen3.6:27b"}, state=more).models[0].tag == names[0]
    gone = more.model_copy(update={"existing_models": (names[0], names[2])})
    assert plan(flags={**use, "models.keep": True}, state=gone).models[0].tag == "qwen3.6:27b"


@pytest.mark.parametrize(
    ("state", "kind", "code"),
    [
        (BoxState(), UnsupportedError, "no-existing-ollama"),
        (EXISTING.model_copy(update={"existing_ollama": "0.12.0"}), UnsupportedError, "existing-below-floor"),
        (EXISTING.model_copy(update={"existing_models": ("qwen3:14b",)}), ConfigError, "existing-lacks-model"),
    ],
)
def test_an_ollama_that_cannot_serve_the_box_is_refused(state: BoxState, kind: type[OwnstackError], code: str) -> None:
    error = refused(kind, flags={"ollama.use": "existing"}, state=state)
    assert error.code == code
    assert error.hint


# -- ports and space ------------------------------------------------------------------------------


def test_a_taken_port_names_who_holds_it_and_the_setting_that_moves_ours() -> None:
    port = listening(6333, process="docker-proxy", pid=812, user="root", unit="docker.service")
    error = refused(ConfigError, changed("bare-server", ports=(port, listening(6334))))
    for word in ("6333", "qdrant", "docker-proxy", "812", "root", "docker.service"):
        assert word in error.message
    assert "[qdrant] port = 6335" in error.hint
    assert error.code == "port-taken"


def test_a_box_whose_record_was_moved_aside_is_no_stranger() -> None:
    """`up` says to move a damaged record aside and to run it again: then the box's own services hold its ports."""
    unit = "ownstack-qdrant.service"
    ports = tuple(listening(6333, process="qdrant", pid=9, user=user, unit=unit) for user in ("ownstack-qdrant", ""))
    for port in ports:
        assert plan(changed("bare-server", ports=(port,))).has("qdrant")
    refused(ConfigError, changed("bare-server", ports=(listening(6333, pid=9),)))


def test_the_port_that_is_proposed_is_not_one_of_ours() -> None:
    error = refused(ConfigError, changed("bare-server", ports=(listening(5678, process="x"),)))
    assert "[n8n] port = 5680" in error.hint, "5679 is n8n's own broker port"


def test_an_ollama_on_the_port_is_offered_to_be_used() -> None:
    port = listening(11434, process="ollama", pid=5, user="ollama", unit="ollama.service")
    error = refused(ConfigError, changed("bare-server", ports=(port,)))
    assert '[ollama] use = "existing"' in error.hint
    used = plan(changed("bare-server", ports=(port,)), {"ollama.use": "existing"}, state=EXISTING)
    assert used.engine_existing


def test_an_ollama_that_is_found_is_offered_at_the_first_run() -> None:
    found = ExistingOllama(binary="/usr/local/bin/ollama", unit="/etc/systemd/system/ollama.service", version="0.40.0")
    seen = machines.report("bare-server").model_copy(update={"ollama": found})
    (offer,) = [text for text in plan(seen).warnings if "an Ollama is on this machine" in text]
    assert "version 0.40.0, /etc/systemd/system/ollama.service" in offer
    assert '`[ollama] use = "existing"`' in offer
    for later in (
        plan(seen, state=box(plan(seen))),
        plan(seen, {"ollama.use": "existing"}, state=EXISTING),
        plan(seen, QDRANT),
        plan(seen.model_copy(update={"ollama": ExistingOllama(models=("/home/me/.ollama/models",))})),
    ):
        assert not [text for text in later.warnings if "an Ollama is on this machine" in text]
    # whose the port is, only root sees; that an Ollama answers there, anybody
    hidden = changed("bare-server", ports=(listening(11434),))
    hidden = hidden.model_copy(update={"ollama": ExistingOllama(listening=True)})
    assert '[ollama] use = "existing"' in refused(ConfigError, hidden).hint


def test_our_own_services_hold_their_ports() -> None:
    first = plan(flags=QDRANT)
    mine = listening(6333, process="qdrant", pid=77, user="ownstack-qdrant", unit="ownstack-qdrant.service")
    assert plan(changed("bare-server", ports=(mine,)), QDRANT, state=box(first)).roles == first.roles
    foreign = listening(6333, process="qdrant", pid=78, user="me", unit="")
    refused(ConfigError, changed("bare-server", ports=(foreign,)), QDRANT, state=box(first))
    refused(ConfigError, changed("bare-server", ports=(listening(6333),)), QDRANT)


def disks(**free: int) -> tuple[Any, ...]:
    from ownstack.hardware.report import Disk

    return tuple(
        Disk(path=path, total_bytes=10**12, free_bytes=size, mount=path, device=path) for path, size in free.items()
    )


def test_a_disk_that_is_too_small_is_named() -> None:
    tight = changed("bare-server", disks=disks(**{"/": 2 * 2**30}))
    error = refused(UnsupportedError, tight)
    assert error.code == "disk-too-small"
    assert "/ has 2.0 GiB free" in error.message
    assert plan(tight, state=box(plan())).has("qdrant"), "what stands has its space"


def test_programs_and_models_may_lie_on_different_disks() -> None:
    roomy = changed("bare-server", disks=disks(**{"/": 8 * 2**30, "/var": 500 * 2**30}))
    assert plan(roomy).has("qdrant")
    wrong = changed("bare-server", disks=disks(**{"/": 500 * 2**30, "/var": 2**30}))
    assert "/var has 1.0 GiB free" in refused(UnsupportedError, wrong).message


def test_open_webui_without_qdrant_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        plan(flags={"roles": ["ollama", "models", "open_webui"]})
    assert error.value.code == "role-needs"
    assert "qdrant" in error.value.hint


def test_a_first_run_that_was_cut_off_binds_only_what_it_installed() -> None:
    versions = {"qdrant": {"version": "9.9"}, "uv": {"version": "1"}, "open-webui": {"version": "2"}}
    marks = {
        "/opt/ownstack/uv/releases/1-x": {"name": "uv", "version": "1"},
        "/r": {"name": "open_webui", "version": "2"},
    }
    cut = BoxState(manifest={"plan": {}, "versions": versions}, releases=marks)
    assert set(cut.versions()) == {"uv", "open-webui"}
    assert not cut.has_data
    assert BoxState(manifest={"versions": versions}, services={"qdrant": {"recorded": "f"}}).has_data
    assert BoxState(manifest={"versions": versions, "installed": True}).versions() == versions


def test_the_small_models_are_foreseen_on_a_software_gpu_where_a_setting_counts_it() -> None:
    allowed = {"hardware.allow_software_gpu": True, "roles": ["ollama", "models"]}
    told = load(allowed, None, {}).base.hardware.overrides()
    seen = interpret(load_probe(machines.PROBES / "software-renderer.json"), told)
    made = plan(seen, allowed, restricted())
    assert made.engine == "vulkan"
    (chat,) = [m for m in made.models if m.use == "chat"]
    assert chat.predicted_gpu_bytes > 200 << 20
    assert chat.gpu_layers == chat.layers
    left_out = plan("software-renderer", {"roles": ["ollama", "models"]}, restricted())
    assert left_out.engine == "cpu"
    assert all(m.predicted_gpu_bytes == 0 for m in left_out.models)
