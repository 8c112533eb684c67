"""tools/refresh-locks against a mirror that holds what vendors publish, on a scratch copy of the data files."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from ownstack.data import version_key
from ownstack.upgrading import path as way
from tests.hosts.serve import FileServer, folder
from tools import vendors

ROOT = Path(__file__).parents[2]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Lab:
    """A scratch copy of the data files, and a mirror of the vendors' lists for what they pin."""

    def __init__(self, path: Path) -> None:
        self.root, self.mirror = path / "checkout", path / "mirror"
        for name in ("roles", "requirements", "pyproject.toml", "src/ownstack/__init__.py"):
            source, copy = ROOT / name, self.root / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, copy) if source.is_dir() else shutil.copy2(source, copy)
        for pin in sorted(self.pins(), key=lambda pin: version_key(pin.version)):  # the last is the latest
            self.publish(pin)

    def pins(self) -> list[vendors.Pin]:
        tables = [vendors.table_pins(path.read_text()) for path in sorted(self.root.glob("roles/*/artifacts.toml"))]
        return [pin for pins in tables for pin in pins] + vendors.row_pins(
            (self.root / "requirements/uv.vendor").read_text()
        )

    def publish(self, pin: vendors.Pin) -> None:
        """Put a file's hash where its vendor tells it."""
        name = urllib.parse.unquote(pin.url.rsplit("/", 1)[1])
        if match := vendors.GITHUB.fullmatch(pin.url):
            releases = self.mirror / "api.github.com/repos" / match[1] / "releases"
            places = [releases / "tags" / match[2], releases / "latest"]
            for place in places:
                release: dict[str, Any] = {"tag_name": match[2], "assets": []}
                if place.exists() and json.loads(place.read_text())["tag_name"] == match[2]:
                    release = json.loads(place.read_text())
                others = [asset for asset in release["assets"] if asset["name"] != name]
                asset = {"name": name, "digest": f"sha256:{pin.sha256}", "size": pin.size}
                self.write(place, json.dumps({**release, "assets": [*others, asset]}))
        elif match := vendors.NODE.fullmatch(pin.url):
            dist = self.mirror / "nodejs.org/dist"
            sums = dist / f"v{match[1]}" / "SHASUMS256.txt"
            before = [line for line in (sums.read_text().splitlines() if sums.exists() else []) if name not in line]
            self.write(sums, "\n".join([*before, f"{pin.sha256}  {name}"]) + "\n")
            index = json.loads((dist / "index.json").read_text()) if (dist / "index.json").exists() else []
            self.write(dist / "index.json", json.dumps([*index, {"version": f"v{match[1]}"}]))

    def advise(self, repository: str, *advisories: dict[str, Any]) -> None:
        self.write(self.mirror / "api.github.com/repos" / repository / "security-advisories", json.dumps(advisories))

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *options: str, mirror: str = "") -> subprocess.CompletedProcess[str]:
        arguments = ["-m", "tools.refresh_locks", "--root", self.root, "--mirror", mirror or self.mirror, *options]
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=ROOT, text=True, capture_output=True, check=False
        )

    def pin(self, component: str, platform: str) -> vendors.Pin:
        return next(pin for pin in self.pins() if pin.component == component and platform in pin.url)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_pins_as_published_are_counted_and_nothing_changes(lab: Lab) -> None:
    with FileServer(folder(lab.mirror)) as server:
        run = lab.run("--only", "vendors", "--check", mirror=server.url)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(lab.pins())} vendor files are as their vendors publish them" in run.stderr
    assert "not checked" not in run.stderr
    assert run.stdout == "\n"
    # the newest release has no ROCm archive to go with its base
    assert "left as it is: roles/ollama/artifacts.toml: ollama 0.40.1" in run.stderr


def test_another_hash_at_the_vendor_stops_everything(lab: Lab) -> None:
    pin = lab.pin("qdrant", "x86_64")
    newer = vendors.Pin("node", "24.99.0", lab.pin("node", "x64").url.replace("24.21.0", "24.99.0"), digest("n"))
    lab.publish(newer)
    lab.publish(vendors.Pin(pin.component, pin.version, pin.url, digest("tampered"), pin.size))
    before = _texts(lab.root)
    run = lab.run("--only", "vendors")
    assert run.returncode == 1
    assert digest("tampered") in run.stderr
    assert "roles/qdrant/artifacts.toml" in run.stderr
    assert "nothing was written" in run.stderr
    assert _texts(lab.root) == before


def test_new_releases_move_pins_with_their_hashes_and_sizes(lab: Lab) -> None:
    old = lab.pin("qdrant", "x86_64")
    url = old.url.replace("1.19.2", "1.20.0")
    lab.publish(vendors.Pin("qdrant", "1.20.0", url, digest("new"), 4242))
    run = lab.run("--only", "vendors")
    assert run.returncode == 0, run.stderr
    assert '+version = "1.20.0"' in run.stdout
    new = lab.pin("qdrant", "x86_64")
    assert (new.version, new.url, new.sha256, new.size) == ("1.20.0", url, digest("new"), 4242)
    # the release has no file for the other machine: its pin stays as it is
    assert lab.pin("qdrant", "aarch64").version == "1.19.2"
    variants = qdrant(lab)["variant"]
    assert (variants[0]["version"], variants[0]["witnesses"]) == ("1.20.0", 1)
    assert variants[0]["licence"] == "Apache-2.0"


def qdrant(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((lab.root / "roles/qdrant/artifacts.toml").read_text())["artifact"][0]
    return found


def release(lab: Lab, version: str) -> None:
    pin = lab.pin("qdrant", "x86_64")
    url = pin.url.replace(pin.version, version)
    lab.publish(vendors.Pin("qdrant", version, url, digest(version), 7))


def test_what_qdrant_was_stays_in_the_table_for_data_that_has_to_go_by_way_of_it(lab: Lab) -> None:
    """The latest patch of each minor version that was ever pinned; and no later run moves it."""
    first = qdrant(lab)["variant"][0]
    for version in ("1.19.7", "1.20.0", "1.20.1", "1.21.0"):
        release(lab, version)
        run = lab.run("--only", "vendors")
        assert run.returncode == 0, run.stderr
    table = qdrant(lab)
    assert [row["version"] for row in table["variant"]] == ["1.21.0", "1.19.2", "1.16.3"]
    assert [(row["id"], row["version"], row["sha256"]) for row in table["step"]] == [
        ("vendor-musl-1.20.1", "1.20.1", digest("1.20.1")), ("vendor-musl-1.19.7", "1.19.7", digest("1.19.7")),
    ]  # fmt: skip
    assert [row["unpack"] for row in table["step"]] == [first["unpack"]] * 2
    assert way("qdrant", "1.19.2", "1.21.0", [row["version"] for row in table["step"]]) == ("1.20.1",)


def test_a_minor_version_of_qdrant_that_was_left_out_is_told_and_nothing_is_written(lab: Lab) -> None:
    before = _texts(lab.root)
    release(lab, "1.21.0")
    run = lab.run("--only", "vendors")
    assert run.returncode == 1
    assert "the lock has no 1.20: add its latest patch as an [[artifact.step]] first" in run.stderr
    assert _texts(lab.root) == before


@pytest.mark.parametrize(
    ("component", "platform", "version", "moves"),
    [
        ("node", "linux-x64", "24.99.1", True),
        ("node", "linux-x64", "26.0.0", False),
        ("python", "x86_64", "3.12.77", True),
        ("python", "x86_64", "3.14.1", False),
        ("uv", "x86_64", "0.99.0", True),
        ("ollama", "amd64.tar", "0.41.0", True),
        ("ollama", "amd64.tar", "0.39.0", False),
        ("sqlite3-addon", "x64", "6.0.0", False),
    ],
)
def test_held_lines_stay(lab: Lab, component: str, platform: str, version: str, moves: bool) -> None:
    old = lab.pin(component, platform)
    url = old.url.replace(old.version, version).replace("20261003", "20270101")
    lab.publish(vendors.Pin(component, version, url, digest(version), 7))
    run = lab.run("--only", "vendors")
    assert run.returncode == 0, run.stderr
    new = lab.pin(component, platform)
    assert (new.version, new.sha256) == ((version, digest(version)) if moves else (old.version, old.sha256))
    assert new.url == (url if moves else old.url)


def test_what_cannot_be_asked_is_said(lab: Lab) -> None:
    shutil.rmtree(lab.mirror / "nodejs.org")
    run = lab.run("--only", "vendors", "--check")
    assert run.returncode == 0
    assert run.stderr.count("not checked: roles/n8n/artifacts.toml: node") == 2


def test_floors_rise_to_what_mends_serious_advisories(lab: Lab) -> None:
    text = (lab.root / "roles/floors.toml").read_text()
    (lab.root / "roles/floors.toml").write_text(re.sub(r"(?m)^checked = .*", "checked = 2020-01-01", text))
    severe = {"ghsa_id": "GHSA-x", "cve_id": "CVE-2027-1", "severity": "high", "summary": 'a "quoted" \\ thing.'}
    lab.advise("qdrant/qdrant", {**severe, "vulnerabilities": [{"patched_versions": "1.99.1, 1.18.7"}]})
    lab.advise("ollama/ollama", {**severe, "severity": "low", "vulnerabilities": [{"patched_versions": "9.9"}]})
    lab.advise("n8n-io/n8n", {**severe, "vulnerabilities": [{"patched_versions": "1.0.1"}, {"patched_versions": None}]})
    before = tomllib.loads(text)["floor"]
    run = lab.run("--only", "floors")
    assert "not checked: advisories of open_webui" in run.stderr
    table = tomllib.loads((lab.root / "roles/floors.toml").read_text())
    assert table["floor"] == {**before, "qdrant": "1.99.1"}
    assert table["why"]["qdrant"] == "CVE-2027-1, a 'quoted'  thing"
    assert str(table["checked"]) == "2020-01-01", "the date says that every project was asked"
    lab.advise("open-webui/open-webui")
    lab.run("--only", "floors")
    assert str(tomllib.loads((lab.root / "roles/floors.toml").read_text())["checked"]) > "2026"


def test_language_locks_say_what_their_inputs_say(lab: Lab) -> None:
    run = lab.run("--only", "kit", "--only", "target", "--only", "npm", "--no-upgrade", "--check")
    assert run.returncode == 0, run.stdout + run.stderr
    pyproject = lab.root / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"rich>=14"', '"rich>=14", "iniconfig==2.0.0"'))
    run = lab.run("--only", "kit", "--no-upgrade", "--check")
    assert run.returncode == 1
    assert "+iniconfig==2.0.0" in run.stdout


def test_locks_hold_no_addresses() -> None:
    locks = [*ROOT.glob("requirements/*.lock"), *ROOT.glob("roles/*/*.lock"), *ROOT.glob("roles/*/package-lock.json")]
    assert len(locks) >= 5
    for path in locks:
        text = path.read_text()
        assert "--index" not in text, path
        assert '"resolved"' not in text, path
        if path.suffix == ".lock":
            assert "://" not in text, path
            pinned = re.findall(r"(?m)^[a-z0-9][^ =]*==", text)
            assert pinned
            assert len(re.findall(r"(?m)^    --hash=sha256:[0-9a-f]{64}", text)) >= len(pinned), path


def _texts(root: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in sorted(root.rglob("*.toml"))}
