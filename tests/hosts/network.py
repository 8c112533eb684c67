"""The network of one test run: an own bridge and address range, NAT to the outside, and
network namespaces on the bridge. Runs on one machine never meet: each holds the lock of a slot,
and leftovers of a run that died are recognised by its lock being free.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from .commands import cache, run
from .state import clear

SLOTS = 200
ENOUGH_MEMORY = 12 * 2**30
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass
class Uplink:
    """A network namespace with `eth0` on the run's bridge."""

    name: str
    address: str
    gateway: str
    veth: str

    def cut(self) -> None:
        """No way out any more; the machine's bridge address and the other hosts stay reachable."""
        run("ip", "-n", self.name, "route", "del", "default")

    def restore(self) -> None:
        run("ip", "-n", self.name, "route", "replace", "default", "via", self.gateway)

    def received_bytes(self) -> int:
        """All that has come in over the bridge so far."""
        (link,) = json.loads(run("ip", "-n", self.name, "-j", "-s", "link", "show", "eth0").stdout)
        return int(link["stats64"]["rx"]["bytes"])

    def execute(self, *argv: str | Path, check: bool = True, data: str | None = None) -> str:
        """Run a program of this machine inside the namespace (its loopback included)."""
        return run("ip", "netns", "exec", self.name, *argv, check=check, data=data).stdout


@dataclass
class Network:
    """The bridge of one run. Use as a context manager; leaving it removes everything of the run."""

    slot: int
    folder: Path
    lock: IO[str]
    octets: Iterator[int] = field(default_factory=lambda: iter(range(10, 250)))

    @property
    def bridge(self) -> str:
        return f"osbr{self.slot}"

    @property
    def space(self) -> Path:
        """Where hosts and layers lie: in memory where there is enough of it, for disks can be slow at deleting."""
        return self.folder / "space"

    @property
    def range(self) -> ipaddress.IPv4Network:
        return _range(self.slot)

    @property
    def gateway(self) -> str:
        """The machine's own address on the bridge: servers for the hosts listen here."""
        return str(self.range[1])

    @classmethod
    def open(cls) -> Network:
        """Claim a free slot, clear what an earlier run left in it, and build the bridge."""
        for slot in range(1, SLOTS):
            lock = _lock(slot)
            if lock is None:
                continue
            folder = _folder(slot)
            clear(folder)
            if _taken(slot):
                lock.close()
                continue
            network = cls(slot=slot, folder=folder, lock=lock)
            network._build()
            return network
        raise RuntimeError("no free address range for test hosts; `python -m tests.hosts purge` removes leftovers")

    def _build(self) -> None:
        _record(self.folder, bridge=self.bridge, table=f"ownstack_hosts_{self.slot}")
        self.space.mkdir(parents=True)
        available = memory_available()
        if available > ENOUGH_MEMORY:
            run("mount", "-t", "tmpfs", "-o", f"mode=755,size={available * 8 // 10}", "ownstack-hosts", self.space)
        mtu = str(_mtu())
        run("ip", "link", "add", self.bridge, "mtu", mtu, "type", "bridge", "forward_delay", "0")
        run("ip", "addr", "add", f"{self.gateway}/{self.range.prefixlen}", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        _forward()
        rules = (
            f"table ip ownstack_hosts_{self.slot} {{ chain out {{ type nat hook postrouting priority srcnat; "
            f"ip saddr {self.range} ip daddr != {self.range} masquerade; }}; }}"
        )
        run("nft", "-f", "-", data=rules)

    def attach(self, name: str, folder: Path) -> Uplink:
        """A new namespace on the bridge; `folder` gets the record by which it is removed again."""
        _forward()  # whatever may have stopped it meanwhile
        octet = next(self.octets)
        link = Uplink(
            name=f"ownstack-{self.slot}-{name}",
            address=str(self.range[octet]),
            gateway=self.gateway,
            veth=f"os{self.slot}v{octet}",
        )
        _record(folder, netns=link.name, veth=link.veth)
        mtu = str(_mtu())
        run("ip", "netns", "add", link.name)
        run("ip", "link", "add", link.veth, "mtu", mtu, "type", "veth", "peer", "eth0", "mtu", mtu, "netns", link.name)
        run("ip", "link", "set", link.veth, "master", self.bridge, "up")
        run("ip", "-n", link.name, "addr", "add", f"{link.address}/{self.range.prefixlen}", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", link.name, "link", "set", device, "up")
        link.restore()
        return link

    def close(self) -> None:
        """Remove every host, namespace and rule of this run. Safe to call twice."""
        if not self.lock.closed:
            clear(self.folder)
            self.lock.close()
            _stop_forwarding()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def purge() -> list[str]:
    """Remove what dead runs left behind; living runs hold their locks and are not touched."""
    cleared = []
    for slot in range(1, SLOTS):
        if not (_folder(slot) / "record.json").exists():
            continue
        lock = _lock(slot)
        if lock is not None:
            clear(_folder(slot))
            lock.close()
            cleared.append(_folder(slot).name)
    _stop_forwarding()
    return cleared


def _range(slot: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(f"10.231.{slot}.0/24")


def _live() -> Path:
    folder = cache() / "live"
    folder.mkdir(exist_ok=True)
    return folder


def _folder(slot: int) -> Path:
    return _live() / f"run-{slot}"


def _lock(slot: int) -> IO[str] | None:
    """The slot's lock, or None where a living run holds it. The file stays: removing it would race."""
    lock = (_live() / f"run-{slot}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _taken(slot: int) -> bool:
    """Whether something else on the machine uses the slot's addresses or its bridge name."""
    if Path(f"/sys/class/net/osbr{slot}").exists():
        return True
    routes = json.loads(run("ip", "-j", "-4", "route", "show", "table", "all").stdout or "[]")
    targets = [route.get("dst", "default") for route in routes]
    return any(
        _range(slot).overlaps(ipaddress.ip_network(target, strict=False))
        for target in targets
        if re.match(r"\d", target) and not target.startswith("0.0.0.0")
    )


def _record(folder: Path, **facts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "record.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **facts}))


def memory_available() -> int:
    """Bytes that programs can still take, by the kernel's estimate."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _mtu() -> int:
    """The MTU of the way out: larger packets would be lost without a word."""
    for route in json.loads(run("ip", "-j", "-4", "route", "show", "default").stdout or "[]"):
        return int(Path(f"/sys/class/net/{route['dev']}/mtu").read_text())
    return 1500


@contextmanager
def _forwarding_mark() -> Iterator[Path]:
    with (_live() / "forwarding.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _live() / "forwarding-was-off"


def _forward() -> None:
    with _forwarding_mark() as mark:
        if FORWARDING.read_text().strip() == "0":
            mark.touch()
            FORWARDING.write_text("1")


def _stop_forwarding() -> None:
    """Put the machine's forwarding back when the last run of test hosts has gone."""
    with _forwarding_mark() as mark:
        living = [folder for folder in _live().glob("run-*") if (folder / "record.json").exists()]
        if mark.exists() and not living:
            FORWARDING.write_text("0")
            mark.unlink()
