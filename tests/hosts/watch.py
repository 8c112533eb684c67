"""What leaves a test host: packets counted by user in its own network namespace, and names asked at a DNS sink.

    with Sink(network.gateway) as sink, Watch(host, sink, users=("ownstack-n8n",)) as watch:
        ...
        assert watch.packets() == {} and sink.asked == []

The counters sit in the output hook, before a unit's own address rules: a packet that those rules drop is counted too,
so that zero means that nobody even tried. Not counted: loopback, answers of sshd, and what the kernel itself sends
to find neighbours (ICMPv6, IGMP).
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .host import Host

REST = "anybody else"  # all users that are not watched by name
TABLE = "ownstack_watch"
RULES = """
table inet {table} {{
  {counters}
  set seen {{ typeof meta skuid . ip daddr . tcp dport; flags dynamic; size 4096; }}
  chain out {{
    type filter hook output priority 0; policy accept;
    oif "lo" accept
    tcp sport 22 accept
    meta l4proto {{ ipv6-icmp, igmp }} accept
    ip protocol tcp update @seen {{ meta skuid . ip daddr . tcp dport }}
    {matches}
    counter name "rest"
  }}
}}
"""


class Sink:
    """A name server that notes every name and answers with its own address, so that whoever asked goes on."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked: list[str] = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.thread = threading.Thread(target=self._serve, name="dns sink", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                query, client = self.socket.recvfrom(4096)
            except OSError:
                return
            if query == b"end":
                return
            self.socket.sendto(self._answer(query), client)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
            at += 1 + query[at]
        question = query[12 : at + 5]
        self.asked.append(".".join(labels))
        wanted = struct.unpack(">H", query[at + 1 : at + 3])[0]
        found = socket.inet_aton(self.address) if wanted == 1 else b""
        head = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1 if found else 0, 0, 0)
        record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, len(found)) + found
        return head + question + (record if found else b"")

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", (self.address, 53))
        self.thread.join(5)
        self.socket.close()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Watch:
    """Counters on a host. `users` are accounts on it, counted one by one; all others together as REST.

    `more` are account numbers that the host does not know, by a name for each.
    """

    def __init__(self, host: Host, users: Sequence[str], more: Mapping[str, int] = MappingProxyType({})) -> None:
        self.host = host
        self.users = {name: int(host.output(f"id -u {name}")) for name in users} | {**more}
        counters = [f"counter u{uid} {{ }}" for uid in self.users.values()] + ["counter rest { }"]
        matches = [f'meta skuid {uid} counter name "u{uid}" accept' for uid in self.users.values()]
        rules = RULES.format(table=TABLE, counters="\n  ".join(counters), matches="\n    ".join(matches))
        self._nft("-f", "-", data=rules)

    def _nft(self, *words: str, data: str | None = None) -> str:
        return self.host.uplink.execute("nft", *words, data=data)

    def reset(self) -> None:
        """Begin anew with zero."""
        self._nft("reset", "counters", "table", "inet", TABLE)
        self._nft("flush", "set", "inet", TABLE, "seen")

    def packets(self) -> dict[str, int]:
        """Packets of each user since the last reset; users without any are left out."""
        listed = json.loads(self._nft("-j", "list", "counters", "table", "inet", TABLE))["nftables"]
        counts = {item["counter"]["name"]: item["counter"]["packets"] for item in listed if "counter" in item}
        names = {f"u{uid}": name for name, uid in self.users.items()} | {"rest": REST}
        return {names[name]: count for name, count in counts.items() if count}

    def reached(self) -> set[tuple[str, str, int]]:
        """(user, address, TCP port) of all that somebody tried to reach since the last reset."""
        listed = json.loads(self._nft("-j", "-n", "list", "set", "inet", TABLE, "seen"))["nftables"]
        elements: list[Any] = next(item["set"].get("elem", []) for item in listed if "set" in item)
        names = {uid: name for name, uid in self.users.items()}
        found = set()
        for element in elements:
            value = element["elem"]["val"] if "elem" in element else element
            uid, address, port = value["concat"]
            found.add((names.get(int(uid), str(uid)), str(address), int(port)))
        return found
