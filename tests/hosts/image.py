"""Root file systems for test hosts, built once per content and kept in the user's cache.

An image is a stack of folders, topmost first: the bare system without Python, then, as asked for,
a layer with Python, one with a locale and one with more packages. Every folder is named by the hash of all that went
into it, so a change of the recipe or of this machine's certificates makes a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .commands import cache, run

SUITES = ("bookworm", "trixie")
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "libnss-systemd", "openssh-server"),
    *("sudo", "curl", "ca-certificates", "iproute2", "iputils-ping", "procps", "nftables"),
)
# They ask for a terminal that is not there, or take the package manager's lock in the middle of a test.
MASKED = (
    *("console-getty.service", "getty.target", "getty@tty1.service", "apt-daily.timer", "apt-daily-upgrade.timer"),
    *("e2scrub_reap.service", "e2scrub_all.timer", "fstrim.timer", "systemd-networkd.service"),
    *("systemd-networkd.socket", "systemd-resolved.service"),
)
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
APT = 'Acquire::Check-Valid-Until "false";\nAcquire::Languages "none";\nAcquire::Retries "5";\n'
UNPRIVILEGED = 1000  # the uid of the user `tester`


def layers(suite: str, *, python: bool = True, locale: str = "C.UTF-8", packages: tuple[str, ...] = ()) -> list[Path]:
    """The folders of an image, topmost first; builds what the cache does not hold.

    `locale` other than C.UTF-8 brings that language's messages of sudo, coreutils and the C library.
    """
    if suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}; known: {', '.join(SUITES)}")
    stack = [_cached(f"{suite}-base", _base_inputs(), lambda folder: _build_base(suite, folder))]
    if python:
        stack.insert(0, _grown(stack, f"{suite}-python", "apt-get install -y --no-install-recommends python3"))
    if locale != "C.UTF-8":
        stack.insert(0, _grown(stack, f"{suite}-{locale}", _locale_script(locale)))
    if packages:
        names = " ".join(packages)
        stack.insert(0, _grown(stack, f"{suite}-{packages[0]}", f"apt-get install -y --no-install-recommends {names}"))
    return stack


def key() -> Path:
    """The private key that opens every test host, made once per user."""
    path = cache() / "id_ed25519"
    with locked("key"):
        if not path.exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test-hosts", "-f", path)
    return path


def resolver() -> str:
    """The machine's resolver as a host in another network namespace can use it."""
    text = Path("/etc/resolv.conf").read_text()
    upstream = Path("/run/systemd/resolve/resolv.conf")
    return upstream.read_text() if re.search(r"nameserver\s+127\.", text) and upstream.exists() else text


def _cached(name: str, inputs: str, build: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:12]
    folder = cache() / "images" / f"{name}-{digest}"
    with locked(folder.name):
        if not folder.exists():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            build(part)
            part.rename(folder)
    return folder


@contextmanager
def locked(name: str) -> Iterator[None]:
    folder = cache() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _base_inputs() -> str:
    recipe = [inspect.getsource(part) for part in (_build_base, _files, _trust, _accounts)]
    texts = [*recipe, *PACKAGES, *MASKED, APT, resolver(), key().with_suffix(".pub").read_text()]
    return "\n".join([*texts, *certificates(BUNDLE)])


def _build_base(suite: str, folder: Path) -> None:
    """With a suite name alone mmdebstrap finds the distribution's mirror itself."""
    archive = cache() / f"{suite}-{hashlib.sha256(' '.join(PACKAGES).encode()).hexdigest()[:12]}.tar.zst"
    if not archive.exists():
        part = archive.with_name(f"part-{os.getpid()}-{archive.name}")
        options = [f"--aptopt={line.rstrip(';')}" for line in APT.splitlines()]
        options += [f"--dpkgopt=path-exclude=/usr/share/{kind}/*" for kind in ("man", "doc", "locale")]
        run(
            "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}", *options, suite, part,
            timeout_s=1800,
        )  # fmt: skip
        part.rename(archive)
    run("tar", "-C", folder, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xf", archive)
    _trust(folder)
    for name, text in _files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    for unit in MASKED:
        (folder / "etc/systemd/system" / unit).unlink(missing_ok=True)
        (folder / "etc/systemd/system" / unit).symlink_to("/dev/null")
    _accounts(folder)


def _files() -> dict[str, str]:
    variables = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_CERT")
    trust = [f"{name}={BUNDLE}" for name in variables]
    return {
        "etc/resolv.conf": resolver(),
        "etc/pip.conf": f"[global]\ncert = {BUNDLE}\n",
        "etc/npmrc": f"cafile={BUNDLE}\nfund=false\naudit=false\nupdate-notifier=false\n",
        "etc/environment": "".join(f"{line}\n" for line in trust),
        "etc/systemd/system.conf.d/test-host.conf": f"[Manager]\nDefaultEnvironment={' '.join(trust)}\n",
        "etc/default/locale": "LANG=C.UTF-8\n",
        "etc/apt/apt.conf.d/99test-host": APT,
        "etc/ssh/sshd_config.d/test-host.conf": "UseDNS no\nPasswordAuthentication no\nMaxStartups 100:30:200\n",
        "etc/machine-id": "",
        "etc/hostname": "",
    }


def certificates(bundle: Path) -> list[str]:
    return CERTIFICATE.findall(bundle.read_text())


def _trust(folder: Path) -> None:
    """Let the host trust what this machine trusts beyond the distribution's own authorities."""
    shipped = (folder / "usr/share/ca-certificates").rglob("*.crt")
    own = {"".join(text.split()) for path in shipped for text in certificates(path)}
    target = folder / "usr/local/share/ca-certificates"
    target.mkdir(parents=True, exist_ok=True)
    for text in certificates(BUNDLE):
        if "".join(text.split()) not in own:
            (target / f"machine-{hashlib.sha256(text.encode()).hexdigest()[:12]}.crt").write_text(text + "\n")
    run("chroot", folder, "update-ca-certificates")


def _accounts(folder: Path) -> None:
    """A user `tester`, the test key for it and for root, and one ssh host key for all clones."""
    for stale in (folder / "etc/ssh").glob("ssh_host_*"):
        stale.unlink()
    host_key = folder / "etc/ssh/ssh_host_ed25519_key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test-host", "-f", host_key)
    run("chroot", folder, "useradd", "--uid", str(UNPRIVILEGED), "-m", "-s", "/bin/bash", "tester")
    for home, owner in ((folder / "root", 0), (folder / "home/tester", UNPRIVILEGED)):
        ssh = home / ".ssh"
        ssh.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(key().with_suffix(".pub"), ssh / "authorized_keys")
        (ssh / "authorized_keys").chmod(0o600)
        os.chown(ssh, owner, owner)
        os.chown(ssh / "authorized_keys", owner, owner)


def _locale_script(locale: str) -> str:
    """The base leaves translations out to be small; a locale's own are taken in again."""
    language = locale.split("_")[0]
    return (
        f"set -e; printf 'path-include=/usr/share/locale/{language}/*\\n' > /etc/dpkg/dpkg.cfg.d/zz-locale; "
        "apt-get install -y --no-install-recommends locales; "
        "apt-get install -y --reinstall --no-install-recommends sudo coreutils libc-l10n; "
        f"localedef -i {locale.split('.')[0]} -f UTF-8 {locale}"
    )


def _grown(below: list[Path], name: str, script: str) -> Path:
    """A layer: what `script` changes when it runs as root in the image below."""
    inputs = "\n".join([script, *(folder.name for folder in below)])
    return _cached(name, inputs, lambda folder: _grow(below, folder, script))


GROW = """
set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4"
mount -t proc proc "$4/proc"
mount --rbind /dev "$4/dev"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
chroot "$4" sh -c "apt-get update && $5"
chroot "$4" sh -c 'apt-get clean; rm -rf /var/lib/apt/lists/*'
"""


def _grow(below: list[Path], upper: Path, script: str) -> None:
    scratch = cache() / "scratch" / f"{upper.name}-{os.getpid()}"
    (scratch / "work").mkdir(parents=True)
    (scratch / "root").mkdir()
    try:
        run(
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", GROW, "grow",
            ":".join(map(str, below)), upper, scratch / "work", scratch / "root", script,
        )  # fmt: skip
    finally:
        shutil.rmtree(scratch)
