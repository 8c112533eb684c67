"""This machine's own root as a throw-away box: an overlay in namespaces of its own, without systemd.

What runs in it sees this machine's programs, caches and checkout, and writes into a scratch folder.
A box of the kit that stands on the machine is not to be seen in it: its folders and users are hidden.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

from . import image
from .commands import CommandError, Result, cache, environment, run
from .network import Network, Uplink
from .state import clear_host, control_groups, unmount

CHECKOUT = Path(__file__).parents[2]
HIDDEN = ("/opt/ownstack", "/etc/ownstack", "/var/lib/ownstack", "/var/log/ownstack")
EMPTY = ("/tmp", "/var/tmp")
ACCOUNTS = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")

# A layer below the scratch folder is itself a folder inside `/`, which overlayfs refuses as a second lower
# layer; as the (never written) upper one of an overlay below, it takes it.
# Process 1 of the box. `sleep` inherits the ignored SIGCHLD, so the kernel itself reaps orphans.
START = """
set -e
for group in $GROUPS_OF_HOST; do echo $$ > "$group/cgroup.procs"; done
exec nsenter "--net=/run/netns/$1" unshare --mount --pid --uts --ipc --fork --kill-child sh -c '
    set -e
    hostname "$2"; cd "$1/root"
    mount --make-rprivate /
    below=/
    if [ -n "$3" ]; then
        mount -t overlay overlay -o "ro,lowerdir=/,upperdir=$3,workdir=$1/lower.work" "$1/lower"
        below="$1/lower"
    fi
    mount -t overlay overlay -o "lowerdir=$below,upperdir=$1/upper,workdir=$1/work" .
    cd "$1/root"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    mount --rbind /dev dev
    mount -t tmpfs -o mode=755 tmpfs run
    mkdir -p run/lock run/old
    pivot_root . run/old
    umount -l /run/old
    rmdir /run/old
    echo ready
    exec env --ignore-signal=CHLD sleep infinity
' start "$2" "$3" "$4"
"""


class LocalBox:
    """Use as a context manager. `run` runs a shell command in the box, as root unless told otherwise.

    `lower` is the layer of a frozen box to start from; such a clone cannot be frozen again.
    """

    def __init__(self, network: Network, name: str = "local", lower: Path | None = None) -> None:
        self.network, self.name = network, name
        self.folder = network.space / "hosts" / name
        self.upper = self.folder / "upper"
        self.group = f"ownstack-hosts-{network.slot}-{name}"
        for part in ("upper", "work", "root", "lower", "lower.work"):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "record.json").write_text(json.dumps({"group": self.group}))
        self.uplink: Uplink = network.attach(name, self.folder)
        if lower is None:
            self._hide()
        self.lower = lower
        self._start()

    def _hide(self) -> None:
        """Before anything runs: no standing box, no one else's temporary files, no other test hosts."""
        for path in HIDDEN:
            if Path(path).exists():
                os.mknod(self._place(path), stat.S_IFCHR, os.makedev(0, 0))  # overlayfs: "deleted"
        for path in (*EMPTY, str(cache())):
            if CHECKOUT.is_relative_to(path):  # a checkout in a temporary folder is not hidden
                continue
            place = self._place(path)
            place.mkdir(mode=0o700)
            place.chmod(stat.S_IMODE(Path(path).stat().st_mode))
            os.setxattr(place, "trusted.overlay.opaque", b"y")
        for path in ACCOUNTS:
            place = self._place(path)
            shutil.copy2(path, place)
            os.chown(place, Path(path).stat().st_uid, Path(path).stat().st_gid)
            lines = Path(path).read_text().splitlines(keepends=True)
            place.write_text("".join(line for line in lines if not line.startswith("ownstack")))
        self._place("/etc/hosts").write_text(f"127.0.0.1 localhost {self.name}\n::1 localhost\n")
        self._place("/etc/resolv.conf").write_text(image.resolver())

    def _place(self, path: str) -> Path:
        """Where `path` lies in the upper layer, its parents made with the mode and owner of the real ones."""
        real, place = Path("/"), self.upper
        for part in Path(path).parts[1:-1]:
            real, place = real / part, place / part
            if not place.exists():
                place.mkdir()
                about = real.stat()
                place.chmod(stat.S_IMODE(about.st_mode))
                os.chown(place, about.st_uid, about.st_gid)
        return place / Path(path).name

    def _start(self) -> None:
        groups = [tree / self.group for tree in control_groups()]
        for group in groups:
            group.mkdir(exist_ok=True)
        with (self.folder / "console.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", START, "start", self.uplink.name, str(self.folder), self.name, str(self.lower or "")],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                env=environment(GROUPS_OF_HOST=" ".join(map(str, groups))),
            )  # fmt: skip
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != b"ready":
            raise RuntimeError(f"the box did not start:\n{(self.folder / 'console.log').read_text()}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        self.leader = int(children.split()[0])

    def argv_of(self, argv: list[str], *, user: str = "root", cwd: str = "/") -> list[str]:
        """The program line that runs another program line in the box."""
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--pid", "--net", "--uts", "--ipc", f"--wdns={cwd}"]
        become = [] if user == "root" else ["runuser", "-u", user, "--"]
        return [*enter, "--", *become, *argv]

    def caller(self, **extra: str) -> dict[str, str]:
        """The environment of someone who calls in the box: this process's, and `extra`."""
        return environment(**extra)

    def run(
        self, command: str, *, user: str = "root", data: str | None = None, check: bool = True,
        env: dict[str, str] | None = None, cwd: str = "/", timeout_s: float = 600,
    ) -> Result:  # fmt: skip
        """Run a shell command; the environment is this process's unless `env` replaces it."""
        argv = self.argv_of(["sh", "-c", command], user=user, cwd=cwd)
        result = run(*argv, data=data, check=False, env=env, timeout_s=timeout_s)
        if check and result.returncode:
            raise CommandError([command], result)
        return result

    def output(self, command: str) -> str:
        return self.run(command).stdout.strip()

    def freeze(self) -> Path:
        """End everything in the box and turn what it wrote into a layer for another (`lower`)."""
        if self.lower is not None:
            raise RuntimeError("a clone of a frozen box cannot be frozen")
        self._end()
        layer = self.network.space / "layers" / self.name
        layer.parent.mkdir(exist_ok=True)
        self.upper.rename(layer)
        self.destroy()
        return layer

    def _end(self) -> None:
        self.process.kill()
        self.process.wait(10)
        unmount(self.folder / "root")

    def destroy(self) -> None:
        """Remove the box and everything of it. Safe to call twice."""
        clear_host(self.folder)
        self.process.wait(10)

    def __enter__(self) -> LocalBox:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()
