"""One test host: a Debian with a real systemd as process 1, reached over ssh."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import image
from .commands import PATH, Result, environment, run
from .network import Network, Uplink
from .state import clear_host, control_groups, end_group, unmount

Sudo = Literal["free", "password", "none"]
# To log in is most of what a short command takes: root's commands share a connection, and keys are exchanged the
# quick way (the default one, against the computers of tomorrow, takes five times the processor time).
SSH = ("BatchMode=yes", "LogLevel=ERROR", "ConnectTimeout=5", "KexAlgorithms=curve25519-sha256")
SHARED = ("ControlMaster=auto", "ControlPersist=60")
AT_LOGIN = ("/etc/environment", "/etc/default/locale")  # files that are read when somebody logs in
PASSWORD = "correct horse 42 ' battery"  # of the user `tester` where sudo asks for one

# Leaves the caller's control groups for the host's own, then boots. 133 is nspawn's word for "the
# host asked for a reboot". The time namespace makes the host's uptime start at zero, as after a real boot.
BOOT = """
for group in $GROUPS_OF_HOST; do echo $$ > "$group/cgroup.procs"; done
while :; do
    unshare --time --fork --boottime "-$(cut -d. -f1 /proc/uptime)" systemd-nspawn "$@"
    code=$?
    [ "$code" = 133 ] || exit "$code"
done
"""
NSPAWN = (
    *("--quiet", "--boot", "--register=no", "--keep-unit", "--capability=CAP_NET_ADMIN", "--system-call-filter=bpf"),
    *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"),
)


@dataclass(frozen=True)
class Options:
    """What kind of host. `sudo` is what the user `tester` may do; root is always reachable by key.

    `lower` are layers of provisioned hosts (Host.freeze), topmost first: the clone keeps their identity.
    `programs` are layers that hold nothing but programs, so that installing them costs no time once more.
    `redirect`: folders of a layer can be renamed, as on any other file system (not for hosts that are frozen).
    `packages` are there from the start.
    `shared` are folders of this machine that the host sees under the same path, read-only.
    """

    suite: str = "bookworm"
    python: bool = True
    locale: str = "C.UTF-8"
    sudo: Sudo = "free"
    packages: tuple[str, ...] = ()
    lower: tuple[Path, ...] = ()
    programs: tuple[Path, ...] = ()
    redirect: bool = False
    shared: tuple[Path, ...] = ()


class Host:
    """A clone of an image on the network of a run. Make one, `boot` it, `destroy` it."""

    def __init__(self, network: Network, name: str, options: Options = Options()) -> None:
        self.network, self.name, self.options = network, name, options
        self.folder = network.space / "hosts" / name
        self.root = self.folder / "root"
        self.home = self.folder / "home"
        self.group = f"ownstack-hosts-{network.slot}-{name}"
        self.process: subprocess.Popen[bytes] | None = None
        self._clone()
        self.uplink: Uplink = network.attach(name, self.folder)
        # where root's commands find their connection; a socket's path has to be short
        self.connection = Path(f"/run/{self.uplink.veth}-{os.getpid()}")
        self._identify()

    @property
    def address(self) -> str:
        return self.uplink.address

    def _clone(self) -> None:
        wanted = self.options
        below = image.layers(wanted.suite, python=wanted.python, locale=wanted.locale, packages=wanted.packages)
        stack = [*wanted.lower, *wanted.programs, *below]
        for part in ("upper", "work", "root", "home/.ssh"):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "record.json").write_text(json.dumps({"group": self.group}))
        lower = ":".join(map(str, stack))
        options = f"lowerdir={lower},upperdir={self.folder}/upper,workdir={self.folder}/work"
        options += ",redirect_dir=on" if wanted.redirect else ""
        run("mount", "-t", "overlay", self.group, "-o", options, self.root)

    def _identify(self) -> None:
        """Name, addresses, accounts of the host; known_hosts and ssh settings of whoever calls it."""
        etc = self.root / "etc"
        if not self.options.lower:
            (etc / "hostname").write_text(f"{self.name}\n")
            (etc / "machine-id").write_text("")
            (etc / "default/locale").write_text(f"LANG={self.options.locale}\n")
            self._set_sudo()
        self.hostname = (etc / "hostname").read_text().strip()
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.hostname}\n")
        (etc / "resolv.conf").write_text(image.resolver())
        ssh = self.home / ".ssh"
        ssh.chmod(0o700)
        public = " ".join((etc / "ssh/ssh_host_ed25519_key.pub").read_text().split()[:2])
        (ssh / "known_hosts").write_text(f"{self.address} {public}\n{self.hostname} {public}\n")
        shutil.copy(image.key(), ssh / "id_ed25519")
        (ssh / "config").write_text(
            f"Host {self.hostname} {self.address}\n  HostName {self.address}\n  IdentityFile {ssh}/id_ed25519\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {ssh}/known_hosts\n  StrictHostKeyChecking yes\n"
        )

    def _set_sudo(self) -> None:
        rules = {"free": "tester ALL=(ALL) NOPASSWD:ALL\n", "password": "tester ALL=(ALL) ALL\n"}
        if self.options.sudo != "none":
            rule = self.root / "etc/sudoers.d/tester"
            rule.write_text(rules[self.options.sudo])
            rule.chmod(0o440)
        run("chroot", self.root, "chpasswd", data=f"tester:{PASSWORD}\n")

    def boot(self, timeout_s: float = 90) -> Host:
        """Start the host; return when systemd says that it is up. Raises with the console's end otherwise."""
        groups = [tree / self.group for tree in control_groups()]
        for group in groups:
            group.mkdir(exist_ok=True)
        variables = {
            "PATH": PATH,
            "GROUPS_OF_HOST": " ".join(map(str, groups)),
            "UNIFIED_CGROUP_HIERARCHY": "1",
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        }
        with (self.folder / "console.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", BOOT, "boot", *NSPAWN, f"--machine={self.name}", f"--directory={self.root}",
                 *[f"--bind-ro={path}" for path in self.options.shared],
                 f"--network-namespace-path=/run/netns/{self.uplink.name}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=variables,
            )  # fmt: skip
        self.wait(timeout_s)
        return self

    def wait(self, timeout_s: float = 90) -> None:
        """Wait for sshd, then for systemd to have started everything (a failed unit is not an error here)."""
        end = time.monotonic() + timeout_s
        while not self._answers():
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"{self.name} is gone:\n{self.console()[-3000:]}")
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name}: no sshd within {timeout_s} s\n{self.console()[-3000:]}")
            time.sleep(0.05)
        self.run("systemctl is-system-running --wait", check=False, timeout_s=max(5, end - time.monotonic()))

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.address, 22), 0.5) as connection:
                connection.settimeout(2)
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def console(self) -> str:
        path = self.folder / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def ssh(self, user: str = "root") -> list[str]:
        """The start of an ssh command line to the host; append the command."""
        shared = (*SHARED, f"ControlPath={self.connection}") if user == "root" else ()
        options = [word for option in (*SSH, *shared) for word in ("-o", option)]
        return ["ssh", "-F", str(self.home / ".ssh/config"), *options, f"{user}@{self.address}"]

    def hang_up(self) -> None:
        """End the connection that root's commands share; the next one logs in anew."""
        if self.connection.exists():
            run("ssh", "-o", f"ControlPath={self.connection}", "-O", "exit", self.address, check=False)

    def run(
        self, command: str, *, user: str = "root", data: str | None = None, check: bool = True, timeout_s: float = 600
    ) -> Result:
        """Run a shell command on the host; `data` is its standard input."""
        result = run(*self.ssh(user), command, data=data, check=check, timeout_s=timeout_s)
        if any(path in command for path in AT_LOGIN):
            self.hang_up()
        return result

    def output(self, command: str, *, user: str = "root") -> str:
        return self.run(command, user=user).stdout.strip()

    def caller(self, **extra: str) -> dict[str, str]:
        """The environment of a user who calls from this machine: a home with ssh config and known_hosts.

        The user's real cache stays in use; `--host root@ADDRESS` and `--host root@HOSTNAME` both work.
        """
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        config = str(self.home / ".ssh/config")
        return environment(**{"HOME": str(self.home), "XDG_CACHE_HOME": cache, "OWNSTACK_SSH_CONFIG": config, **extra})

    def reboot(self) -> None:
        """Reboot and wait; raises when the boot id has not changed."""
        before = self.output("cat /proc/sys/kernel/random/boot_id")
        self.run("systemctl reboot", check=False)
        self.hang_up()
        end = time.monotonic() + 60
        while self._answers() and time.monotonic() < end:
            time.sleep(0.1)
        self.wait()
        if self.output("cat /proc/sys/kernel/random/boot_id") == before:
            raise RuntimeError(f"{self.name} did not reboot")

    def poweroff(self, timeout_s: float = 60) -> None:
        """An orderly shutdown; returns when the host has gone."""
        self.run("systemctl poweroff", check=False)
        self.hang_up()
        if self.process is not None:
            self.process.wait(timeout_s)

    def crash(self) -> None:
        """Every process of the host ends at once, as when the power goes, and the host boots again."""
        self.hang_up()
        end_group(self.group)
        if self.process is not None:
            self.process.wait(10)
        self.boot()

    def freeze(self) -> Path:
        """Shut down and turn what the host wrote into a layer for clones (`Options.lower`)."""
        self.poweroff()
        unmount(self.root)
        layer = self.network.space / "layers" / self.name
        layer.parent.mkdir(exist_ok=True)
        (self.folder / "upper").rename(layer)
        self.destroy()
        return layer

    def destroy(self) -> None:
        """Remove the host and everything of it. Safe to call twice."""
        self.hang_up()
        clear_host(self.folder)
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()
