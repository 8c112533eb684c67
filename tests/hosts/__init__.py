"""Throw-away test hosts: Debian with a real systemd, reached over ssh, made in a second.

    from tests.hosts import Host, Network, Options

    with Network.open() as network:
        with Host(network, "box", Options(suite="bookworm")) as box:
            box.boot()
            print(box.output("cat /etc/debian_version"))
            box.run("id", user="tester")

By hand, as root:

    python -m tests.hosts demo bookworm     make, boot, look at and remove a host, with times
    python -m tests.hosts shell trixie      a host with a shell; it goes when the shell ends
    python -m tests.hosts local             the same for an overlay of this machine without systemd
    python -m tests.hosts purge             remove what dead runs left behind

How: an image by mmdebstrap (image.py, cached), a clone by overlayfs, a network namespace on an own
bridge with NAT (network.py), systemd-nspawn in control groups of its own (host.py).
"""

from .host import PASSWORD, Host, Options
from .network import Network, Uplink, purge

__all__ = ["PASSWORD", "Host", "Network", "Options", "Uplink", "purge"]
