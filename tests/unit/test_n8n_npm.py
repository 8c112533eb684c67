"""Installing from a lock file with npm: what is written, what is left out, what is left behind."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ownstack.runner import managers, npm
from ownstack.runner.core import StepError

BYTES = {"left-pad": b"one", "@scope/right-pad": b"two", "nested": b"three", "foreign": b"four"}


def integrity(data: bytes) -> str:
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


def row(package: str, /, **more: Any) -> dict[str, Any]:
    return {"version": "1.0.0", "integrity": integrity(BYTES[package]), **more}


LOCK = {
    "name": "t",
    "lockfileVersion": 3,
    "packages": {
        "": {"name": "t", "dependencies": {"left-pad": "1.0.0"}},
        "node_modules/left-pad": row("left-pad"),
        "node_modules/alias": row("@scope/right-pad", name="@scope/right-pad"),
        "node_modules/left-pad/node_modules/nested": row("nested"),
        "node_modules/foreign": row("foreign", os=["win32"], optional=True),
    },
}

# As npm: writes one file a package, or fails as told. What it was given lands beside the cache.
FAKE_NPM = """#!/bin/sh
if [ "$2 $3" = "config get" ]; then echo "https://registry.invalid/base/"; exit 0; fi
while [ $# -gt 0 ]; do [ "$1" = --prefix ] && folder=$2; shift; done
cp "$folder/package-lock.json" "$STATE/seen-$(ls "$STATE" | wc -l).json"
env > "$STATE/environment"
if [ -e "$STATE/fail-once" ]; then cat "$STATE/fail-once" >&2; rm "$STATE/fail-once"; exit 1; fi
if [ -e "$STATE/fail" ]; then cat "$STATE/fail" >&2; mkdir -p "$folder/node_modules/half"; exit 1; fi
mkdir -p "$folder/node_modules/left-pad/node_modules/nested"
echo code > "$folder/node_modules/left-pad/index.js"
echo map > "$folder/node_modules/left-pad/index.js.map"
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("STATE", str(state))
    node = tmp_path / "node"
    (node / "bin").mkdir(parents=True)
    (node / "bin" / "node").write_text(FAKE_NPM)
    (node / "bin" / "node").chmod(0o755)
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "lock.json").write_text(json.dumps(LOCK))
    (tmp_path / "addon").write_bytes(b"\x7fELF")
    return {
        "name": "thing", "version": "1", "release": str(tmp_path / "opt/thing/releases/1-abc"),
        "current": str(tmp_path / "opt/thing/current"), "work": str(tmp_path / "work"), "node": str(node),
        "package_json": str(tmp_path / "package.json"), "package_lock": str(tmp_path / "lock.json"),
        "addons": [{"path": str(tmp_path / "addon"), "to": "node_modules/left-pad/build/a.node"}],
        "prune": {"suffixes": [".map"]}, "mirror": "", "state": state,
    }  # fmt: skip


def install(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    whole = {key: value for key, value in {**spec, **changes}.items() if key != "state"}
    return npm.install(whole, lambda event: None)


def seen(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(spec["state"].glob("seen-*.json"))]


def test_a_release_is_made_once_and_complete(spec: dict[str, Any]) -> None:
    assert install(spec, dry=True) == {"changed": True, "data": {"needs_files": True}}
    assert not Path(spec["release"]).exists()
    done = install(spec)
    assert done["changed"] is True
    assert done["data"]["pruned_files"] == 1
    release = Path(spec["current"]).resolve()
    assert str(release) == spec["release"]
    assert (release / "node_modules/left-pad/build/a.node").read_bytes() == b"\x7fELF"
    assert (release / "package-lock.json").read_text() == Path(spec["package_lock"]).read_text()
    assert json.loads((release / ".ownstack-release.json").read_text())["version"] == "1"
    assert install(spec) == {"changed": False, "data": {"needs_files": False}}
    assert len(seen(spec)) == 1
    assert os.listdir(spec["work"]) == []


def test_addresses_come_from_the_hosts_own_registry(spec: dict[str, Any]) -> None:
    install(spec)
    (lock,) = seen(spec)
    base = "https://registry.invalid/base/"
    assert [row.get("resolved") for row in lock["packages"].values()] == [
        None,
        f"{base}left-pad/-/left-pad-1.0.0.tgz",
        f"{base}@scope/right-pad/-/right-pad-1.0.0.tgz",
        f"{base}nested/-/nested-1.0.0.tgz",
        f"{base}foreign/-/foreign-1.0.0.tgz",
    ]


def test_a_registry_with_other_addresses_is_asked_for_them(spec: dict[str, Any]) -> None:
    (spec["state"] / "fail-once").write_text("npm error code E404")
    install(spec)
    assert ["resolved" in lock["packages"]["node_modules/left-pad"] for lock in seen(spec)] == [True, False]


def test_no_install_script_runs(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    real = managers.call

    def call(command: list[str], **more: Any) -> str:
        commands.append(command)
        return real(command, **more)

    monkeypatch.setattr(npm, "call", call)
    install(spec)
    assert all("--ignore-scripts" in command for command in commands if "ci" in command)
    assert any("ci" in command for command in commands)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("npm error code EINTEGRITY", "fetch-hash"),
        ("npm error nospc ENOSPC: no space left", "disk-full"),
        ("npm error code ETIMEDOUT", "fetch-network"),
    ],
)
def test_a_failure_leaves_nothing_and_says_what_it_means(spec: dict[str, Any], said: str, code: str) -> None:
    (spec["state"] / "fail").write_text(said)
    with pytest.raises(StepError) as error:
        install(spec)
    assert error.value.code == code
    assert error.value.hint
    assert os.listdir(Path(spec["release"]).parent) == []
    assert os.listdir(spec["work"]) == []
    assert not os.path.lexists(spec["current"])


def mirror_at(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / "npm" / npm.content(integrity(BYTES[name]))
        path.parent.mkdir(parents=True)
        path.write_bytes(BYTES[name])
    return folder


@pytest.fixture
def mirror_url(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    handler = partial(Quiet, directory=str(tmp_path / "mirror"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_mirror_replaces_the_registry(spec: dict[str, Any], tmp_path: Path, mirror_url: str, kind: str) -> None:
    folder = mirror_at(tmp_path / "mirror", ["left-pad", "@scope/right-pad", "nested"])
    install(spec, mirror=str(folder) if kind == "folder" else mirror_url)
    (lock,) = seen(spec)
    assert {row["resolved"].split("/")[2] for key, row in lock["packages"].items() if key} == {"npm.invalid"}
    cache = dict(line.split("=", 1) for line in (spec["state"] / "environment").read_text().splitlines() if "=" in line)
    assert cache["npm_config_cache"].startswith(spec["work"])


def test_npm_trusts_what_the_machine_trusts(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty environment as well: Node itself reads no system certificates."""
    bundle = tmp_path / "bundle.crt"
    bundle.touch()
    monkeypatch.delenv("NODE_EXTRA_CA_CERTS", raising=False)
    monkeypatch.setattr(npm, "BUNDLES", (str(tmp_path / "absent"), str(bundle)))
    assert npm.environment(spec, "")["NODE_EXTRA_CA_CERTS"] == str(bundle)
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", "/mine")
    assert npm.trust() == {"NODE_EXTRA_CA_CERTS": "/mine"}


def test_an_incomplete_mirror_is_named_and_nothing_else_is_asked(spec: dict[str, Any], tmp_path: Path) -> None:
    folder = mirror_at(tmp_path / "mirror", ["left-pad", "nested"])
    with pytest.raises(StepError) as error:
        install(spec, mirror=str(folder))
    assert error.value.code == "fetch-missing"
    assert npm.content(integrity(BYTES["@scope/right-pad"])) in error.value.message
    assert seen(spec) == []


def test_a_mirror_that_does_not_answer_is_not_called_incomplete(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a package that may be left out: it is there perhaps, and the next run would make another program."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(StepError) as error:
        install(spec, mirror="http://127.0.0.1:9")
    assert error.value.code == "fetch-network"
    with pytest.raises(StepError) as error:
        npm.bring("http://127.0.0.1:9", "content-v2/sha512/aa", "/nowhere", {"optional": True})
    assert error.value.code == "fetch-network"


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_damaged_mirror_is_named_and_nothing_is_installed(
    spec: dict[str, Any], tmp_path: Path, mirror_url: str, kind: str
) -> None:
    folder = mirror_at(tmp_path / "mirror", ["left-pad", "nested", "@scope/right-pad"])
    (folder / "npm" / npm.content(integrity(BYTES["nested"]))).write_bytes(b"other")
    with pytest.raises(StepError) as error:
        install(spec, mirror=str(folder) if kind == "folder" else mirror_url)
    assert error.value.code == "fetch-hash"
    assert npm.content(integrity(BYTES["nested"])) in error.value.message
    assert seen(spec) == []
    assert os.listdir(Path(spec["release"]).parent) == []


def test_packages_for_other_systems_are_not_asked_of_a_mirror() -> None:
    assert npm.meant_for({}, "x64")
    assert npm.meant_for({"os": ["linux"], "cpu": ["x64"], "libc": ["glibc"]}, "x64")
    assert npm.meant_for({"os": ["!win32"]}, "x64")
    for foreign in ({"os": ["darwin"]}, {"cpu": ["arm64"]}, {"libc": ["musl"]}, {"os": ["!linux"]}):
        assert not npm.meant_for(foreign, "x64")
    assert npm.meant_for({"cpu": ["arm64"]}, "arm64")


# -------------------------------------------------------------------------------------------------------------- prune


@pytest.mark.parametrize(
    ("path", "on_x64", "on_arm64"),
    [
        ("isolated-vm/prebuilds/linux-x64/isolated-vm.abi137.glibc.node", False, True),
        ("isolated-vm/prebuilds/linux-x64/isolated-vm.abi137.musl.node", True, True),
        ("isolated-vm/prebuilds/linux-arm64/isolated-vm.abi137.glibc.node", True, False),
        ("isolated-vm/prebuilds/win32-x64/isolated-vm.abi137.node", True, True),
        ("@sentry/node-cpu-profiler/lib/sentry_cpu_profiler-darwin-arm64-137.node", True, True),
        ("oracledb/build/Release/oracledb-6.10.0-linux-x64.node", False, True),
        ("sqlite3/build/Release/node_sqlite3.node", False, False),
        ("tool/bin/thing-linux_x86_64.so", False, True),
        ("pkg/darwin-notes.js", False, False),
    ],
)
def test_foreign_binaries_are_told_by_their_names(path: str, on_x64: bool, on_arm64: bool) -> None:
    assert npm.foreign(path, "x64") is on_x64
    assert npm.foreign(path, "arm64") is on_arm64


def test_prune_takes_only_what_its_rule_names(tmp_path: Path) -> None:
    kept = [
        "a/index.js", "a/LICENSE.md", "a/NOTICE.ts", "a/node_modules/b/index.js", "tool/lib/lib.d.ts",
        "@scope/heavy-not/index.js", "a/heavy/index.js", "a/dist/defs/x.ts",
    ]  # fmt: skip
    gone = [
        "a/index.js.map",
        "a/index.d.ts",
        "heavy/index.js",
        "a/node_modules/heavy/x.js",
        "@scope/heavy/deep/er/x.js",
    ]
    for name in kept + gone:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("12345")
    rule = {
        "packages": ["heavy", "@scope/heavy"],
        "suffixes": [".map", ".ts", ".md"],
        "keep": ["tool/lib/*", "*/dist/defs/*"],
    }
    result = npm.prune(str(tmp_path), rule)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(kept)
    assert result == {"pruned_files": len(gone), "pruned_bytes": 5 * len(gone)}


def test_an_empty_rule_prunes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.ts").write_text("x")
    assert npm.prune(str(tmp_path), {}) == {"pruned_files": 0, "pruned_bytes": 0}
