"""A port scan by plain connects, run inside a network namespace: `python scan.py ADDRESS [UDP PORT...]`.

Prints JSON: `tcp`, the open ones of all 65535 TCP ports; `silent`, TCP ports without any answer; `udp`, those of the
given UDP ports that are not refused (an ICMP "port unreachable" is the refusal; without one after a few tries the
port counts as open). The host that is scanned has to send as many refusals as there are ports: kernels send one a
second. Standard library only.
"""

from __future__ import annotations

import errno
import json
import select
import socket
import sys
import time
from typing import Any

BATCH = 512
TIMEOUT_S = 3.0
UDP_TIMEOUT_S = 3.0


def tcp(address: Any, family: socket.AddressFamily) -> tuple[list[int], list[int]]:
    """Open ports, and ports that gave no answer at all."""
    found: list[int] = []
    silent: list[int] = []
    for first in range(1, 65536, BATCH):
        waiting: dict[int, tuple[socket.socket, int]] = {}
        poll = select.poll()
        for port in range(first, min(first + BATCH, 65536)):
            one = socket.socket(family, socket.SOCK_STREAM)
            one.setblocking(False)
            code = one.connect_ex((address[0], port, *address[2:]))
            if code == errno.EINPROGRESS:
                waiting[one.fileno()] = (one, port)
                poll.register(one, select.POLLOUT)
                continue
            one.close()
            if code == 0:
                found.append(port)
            elif code != errno.ECONNREFUSED:
                silent.append(port)
        end = time.monotonic() + TIMEOUT_S
        while waiting and time.monotonic() < end:
            for number, _ in poll.poll(100):
                one, port = waiting.pop(number)
                poll.unregister(number)
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    found.append(port)
                one.close()
        silent += [port for _, port in waiting.values()]
        for one, _ in waiting.values():
            one.close()
    return sorted(found), sorted(silent)


def udp(address: Any, family: socket.AddressFamily, ports: list[int]) -> list[int]:
    left = {}
    for port in ports:
        one = socket.socket(family, socket.SOCK_DGRAM)
        one.setblocking(False)
        one.connect((address[0], port, *address[2:]))
        left[port] = one
    end = time.monotonic() + UDP_TIMEOUT_S
    while left and time.monotonic() < end:
        for port, one in list(left.items()):
            try:
                one.send(b"\0")
                time.sleep(0.02)
                one.recv(1)
            except ConnectionRefusedError:
                left.pop(port).close()
            except BlockingIOError:
                continue
        time.sleep(0.2)
    return sorted(left)


def main(host: str, ports: list[int]) -> None:
    family, _, _, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_STREAM)[0]
    found, silent = tcp(address, family)
    print(json.dumps({"tcp": found, "silent": silent, "udp": udp(address, family, ports)}))


if __name__ == "__main__":
    main(sys.argv[1], [int(word) for word in sys.argv[2:]])
