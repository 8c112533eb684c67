"""Real hosts for the end-to-end tests. Everything they make is gone at the end of the run.

They run in two lanes, file by file (in one with `tests/run --one-lane`). The first lane that needs the provisioned
host makes it, and both clone it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ownstack.engine import carry
from tests.hosts import Host, Network, Options, footprint, lab, older, purge, watching
from tests.hosts.commands import PATH, Result, cache
from tests.hosts.footprint import Footprint
from tests.hosts.image import locked
from tests.hosts.kit import Ownstack, wait_ready
from tests.hosts.lanes import Lane
from tests.hosts.serve import FileServer, folder

if TYPE_CHECKING:
    from tests.e2e.older_box import Older

HERE = Path(__file__).parent
NEEDED = ("mmdebstrap", "systemd-nspawn", "ip", "nft", "zstd", "ssh", "nsenter")
# Two lanes end at the same time when long files come first and short ones last. The first one's lane makes the
# provisioned host, while the other installs one of its own.
LONG = (
    *("debian12_root", "debian13_sudo", "backup", "interrupted", "open_webui", "local_supervisord", "reprovision"),
    *("models_later", "import", "software_gpu", "refusals", "unprivileged", "held", "faults"),
)
# on one clone, so in this order: what the last ones change the first ones could not bear
COMMON = ("browser", "edited_files", "maintain", "refusing", "secrets", "standing_box", "silent")
SHORT = (
    *("existing_ollama", "adopt", "offline", "lab", "fit_software_gpu", "fit_measured", "hosts", "fit_catalogue"),
    *("detect", "python_debs", "backup_vectors", "gpu_watch_units", "bad_input"),
)
OPENED = pytest.StashKey[tuple[Lane, Network]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.is_relative_to(HERE)]
    for item in here:
        item.add_marker(pytest.mark.e2e)
    here.sort(key=lambda item: place(item.path.stem.removeprefix("test_")))
    items[:] = [*(item for item in items if not item.path.is_relative_to(HERE)), *here]


def place(name: str) -> tuple[int, int]:
    """Where a file stands in the order; what is in no list comes between the long ones and the common ones."""
    for number, names in ((0, LONG), (2, COMMON), (3, SHORT)):
        if name in names:
            return number, names.index(name)
    return 1, 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take the run's network, hosts and layers away, when no other lane uses them any more."""
    if opened := session.config.stash.get(OPENED, None):
        lane, network = opened
        lane.finish()
        network.close()


# secrets of the provisioned host, by name: a test that shows one fails, whatever else it says
SECRETS: dict[str, str] = {}


def secrets_shown(report: pytest.TestReport) -> list[str]:
    """Names of the secrets in what a test printed, logged or failed with."""
    told = "\n".join([str(report.longrepr or ""), *(text for _, text in report.sections)])
    return watching.shown(told, SECRETS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    names = secrets_shown(report)
    if names:
        report.outcome, report.sections = "failed", []
        report.longrepr = f"the output of {item.nodeid} holds secrets: {', '.join(names)}"
    return report


@pytest.fixture(scope="session")
def network(pytestconfig: pytest.Config) -> Network:
    """The lane's own bridge and address range; they stay until its session ends."""
    if os.geteuid() != 0:
        pytest.skip("test hosts need root (network namespaces, overlay mounts, systemd-nspawn)")
    missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"test hosts need {', '.join(missing)}: run tests/hosts/prerequisites.sh")
    purge()
    lane, opened = Lane(), Network.open()
    pytestconfig.stash[OPENED] = (lane, opened)
    return opened


@dataclass(frozen=True)
class Mirror:
    """The lab as a box sees it: a mirror and a model registry on the bridge, and the kit with the lab's lock."""

    lab: lab.Lab
    files: FileServer
    registry: FileServer

    @property
    def sources(self) -> str:
        """Settings of a box that takes everything from the lab, its models by what fits."""
        registry = self.registry.url.removeprefix("http://")
        return f'[sources]\nmirror = "{self.files.url}"\n[ollama]\nregistry = "{registry}"\nregistry_insecure = true\n'

    @property
    def toml(self) -> str:
        """The same, with a chat model that it pulls from there."""
        return f'{self.sources}[models]\nchat = "smollm2:135m-q8_0"\nembedding = "all-minilm:22m"\n'

    def ownstack(self, host: Host) -> Ownstack:
        return Ownstack(host, variables={"OWNSTACK_KIT": str(self.lab.kit)}, toml=self.toml)


@pytest.fixture(scope="session")
def mirror(network: Network) -> Iterator[Mirror]:
    """Vendors' files in vendors' layouts and the language packages, served on the bridge."""
    with tempfile.TemporaryDirectory(dir=cache().parent) as root:
        with locked("lab"):
            built = lab.build(Path(root))
            lab.languages(built)
            lab.packages_of_n8n(built)
            registry = lab.models(built, Path(root, "registry"))
        with FileServer(folder(built.mirror), network.gateway) as files, registry.serve(network.gateway) as models:
            yield Mirror(built, files, models)


@dataclass(frozen=True)
class Provisioned:
    """A host on which `up` has run once, frozen.

    `before` is the host as it was before; `first` what the first `up --json -vvv` said, `said` all of its output;
    `secrets` by name, never to be printed; `secrets_seen` are [place, name] of those that showed in processes
    meanwhile, or lay about afterwards.
    """

    layer: Path
    before: Footprint
    first: dict[str, Any]
    said: Result
    secrets: dict[str, str] = field(repr=False)
    secrets_seen: list[list[str]]

    @contextlib.contextmanager
    def clone(self, network: Network, name: str, shared: tuple[Path, ...] = ()) -> Iterator[Host]:
        """The same host once more, its services ready; what is done to it, is done to this clone alone."""
        with Host(network, name, Options(lower=(self.layer,), shared=shared)) as host:
            host.boot()
            wait_ready(host)
            yield host


@pytest.fixture(scope="session")
def debian12(network: Network, mirror: Mirror, pytestconfig: pytest.Config) -> Provisioned:
    """A Debian 12 with the whole box, made over SSH as root: the install that most scenarios start from.

    The tree of n8n, whose making takes longer than all the rest, is kept in the cache by its lock and laid there.
    Debian 13 and the box without systemd make theirs.
    """
    made = pytestconfig.stash[OPENED][0].once("debian12", lambda: provision(network, mirror))
    SECRETS.update(made.secrets)
    return made


def provision(network: Network, mirror: Mirror) -> Provisioned:
    n8n = mirror.lab.kit / "roles/n8n"
    kept = older.kept(n8n)
    host = Host(network, "debian12", Options(shared=(kept,) if kept.exists() else ()))
    try:
        host.boot()
        before = footprint.take(host)
        if kept.exists():
            host.run(f"mkdir -p /opt/ownstack && cp -a {kept}/opt/ownstack/n8n /opt/ownstack/")
        with watching.watched(host) as seen:
            said = mirror.ownstack(host)("up", "--yes", "--json", "-vvv", check=False)
        first = json.loads(said.stdout)["data"]
        if first is None:
            raise RuntimeError(f"the first up failed: {said.stdout}")
        print(f"first up over SSH: {first['seconds']} s")
        secrets = watching.secrets(host)
        found = [*seen.hits, *watching.look(host)]
        layer = host.freeze()
        older.keep(n8n, layer)
        return Provisioned(layer, before, first, said, secrets, found)
    except BaseException:
        host.destroy()
        raise


@pytest.fixture(scope="session")
def older_box(network: Network, mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> Older:
    """A box of older versions with an account's data in it, frozen: what upgrades start from."""
    from tests.e2e import older_box

    kit = older.kit(mirror.lab, tmp_path_factory.mktemp("older") / "kit")
    made = older_box.make(network, mirror.ownstack, kit)
    SECRETS.update({f"older {name}": value for name, value in made.secrets.items()})
    return made


@pytest.fixture(scope="session")
def common(network: Network, debian12: Provisioned) -> Iterator[Host]:
    """A clone that several files use one after the other: what they change on it, the later ones have to bear.

    It sees what this machine has built and fetched: tests that run on it need not do that again.
    """
    cached = tuple(carry.cache_root() / name for name in ("builds", "files"))
    with debian12.clone(network, "common", cached) as host:
        yield host
