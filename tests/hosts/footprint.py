"""What is on a host: files, accounts, units, packages, ports, firewall, crontabs; before and after, and compared."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .host import Host

# What any running system changes by itself: logs, caches, seeds, timestamps, the package manager's own books
# (the list of packages is compared), and the backup copies that the account tools keep.
VOLATILE = (
    *("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/var/lib/apt", "/var/lib/dpkg"),
    *("/var/lib/systemd", "/var/backups", "/root/.cache", "/etc/passwd-", "/etc/group-", "/etc/shadow-"),
    *("/etc/gshadow-", "/etc/subuid-", "/etc/subgid-", "/etc/.pwd.lock", "/etc/machine-id", "/etc/hosts"),
    *("/etc/resolv.conf", "/etc/ld.so.cache"),
)
# of what the system writes there that which has our name: when timers ran last
OURS = "find /var/lib/systemd -name '*ownstack*'"
# each rule with its table and chain, without counters, where the host has nftables
FIREWALL = r"""
PATH=$PATH:/usr/sbin
! command -v nft >/dev/null || {
  rules=$(nft -s list ruleset) && printf '%s\n' "$rules" |
    awk '/^table/ { t = $2 " " $3 } /^\t[a-z]/ { c = $2 } NF { print t, c, $0 }'
}
"""
# those of /etc are among the contents
CRONTABS = "[ ! -d /var/spool/cron ] || find /var/spool/cron -type f -exec sha256sum {} +"


@dataclass(frozen=True)
class Footprint:
    """Sets of lines; `differences` says what one has that the other has not."""

    files: frozenset[str]
    contents: frozenset[str]
    accounts: frozenset[str]
    groups: frozenset[str]
    units: frozenset[str]
    packages: frozenset[str]
    ports: frozenset[str]
    firewall: frozenset[str]
    crontabs: frozenset[str]

    def differences(self, later: Footprint) -> list[str]:
        """`+ kind: line` for what came, `- kind: line` for what went."""
        found = []
        for kind in (one.name for one in fields(self)):
            before, after = getattr(self, kind), getattr(later, kind)
            found += [f"+ {kind}: {line}" for line in sorted(after - before)]
            found += [f"- {kind}: {line}" for line in sorted(before - after)]
        return found


# what each account changes
BOOKS = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")


def beyond(differences: list[str], folders: tuple[str, ...], packages: list[str], files: list[str]) -> list[str]:
    """Of `differences` what a plain `down` did not promise to keep: all but folders of ours, accounts, added packages.

    `files`: those of the packages.
    """

    def kept(difference: str) -> bool:
        kind, _, line = difference[2:].partition(": ")
        if kind in ("files", "contents"):
            path = line.split()[0 if kind == "files" else 1]
            ours = any(path == folder or path.startswith(f"{folder}/") for folder in folders)
            return ours or path in files or (kind == "contents" and path in BOOKS)
        if kind == "groups":  # of ours, or one that had or has an account of ours in it
            return line in groups or line.startswith("ownstack-")
        if kind == "packages":
            return line.split()[0] in packages
        return kind == "accounts" and line.startswith("ownstack-")

    found = [line[len("+ groups: ") :] for line in differences if line.startswith("+ groups: ")]
    joined = {line: _without_ours(line) for line in found if _without_ours(line) != line}
    groups = {*joined, *joined.values()}
    return [difference for difference in differences if not kept(difference)]


def _without_ours(group: str) -> str:
    about, _, members = group.rpartition(":")
    return f"{about}:{','.join(one for one in members.split(',') if not one.startswith('ownstack-'))}"


def take(host: Host) -> Footprint:
    """The footprint of a host now."""
    prune = " -o ".join(f"-path {path}" for path in VOLATILE)

    def lines(command: str) -> frozenset[str]:
        return frozenset(host.output(command).splitlines())

    return Footprint(
        files=lines(f"find / -xdev \\( {prune} \\) -prune -o -printf '%p %y %m %u:%g %l\\n'") | lines(OURS),
        contents=lines(f"find /etc /usr/local -xdev \\( {prune} \\) -prune -o -type f -exec sha256sum {{}} +"),
        accounts=lines("getent passwd"),
        groups=lines("getent group"),
        units=lines("systemctl list-unit-files --no-legend --plain | awk '$2 != \"transient\" {print $1, $2}'"),
        packages=lines("dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n'"),
        ports=lines("ss -Hltn | awk '{print $4}'"),
        firewall=lines(FIREWALL),
        crontabs=lines(CRONTABS),
    )
