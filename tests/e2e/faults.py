"""Faults of a box's surroundings: each is made, shown to have taken place, and taken away again.

A fault is a generator: it makes the fault, yields what shows that it is there, and undoes it. `EXPECT` words: `heals`
(the next `up` puts it right), `bears` (`up` is not troubled by it), `waits` (`up` waits for its end), or the code of
the error that `up` must end with.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.e2e.conftest import Mirror
from tests.hosts import PASSWORD, Host
from tests.hosts.kit import Ownstack
from tests.hosts.serve import Fault as Served

# ends the sshd of the connection whose run holds the box: an ancestor of the shell with the lock
CUT = """
for i in $(seq 300); do p=$(pgrep -of 'ownstack[.]lock|journal[.]jsonl') && break; sleep 0.1; done
sleep 2
while [ "$(cat /proc/$p/comm)" != sshd ]; do p=$(ps -o ppid= -p $p | tr -d ' '); done
kill -9 $p
echo $p > /run/killed
"""
OPT, ETC, VAR = "/opt/ownstack", "/etc/ownstack", "/var/lib/ownstack"


@dataclass
class Bench:
    """The box that bears the faults."""

    host: Host
    mirror: Mirror
    ownstack: Ownstack
    folder: Path
    words: list[str] = field(default_factory=list)  # added to the command while the fault is there

    def run(self, command: str, data: str | None = None) -> str:
        return self.host.run(command, data=data).stdout.strip()

    def uncover(self, path: str) -> None:
        """Take a mount away, also from services that have files open on their own copy of it."""
        self.run(f"umount --lazy {path}")

    def lose_qdrant(self) -> None:
        """Something small that `up` has to fetch, unpack and start."""
        self.run(f"systemctl stop ownstack-qdrant; rm -rf {OPT}/qdrant/releases/* {OPT}/qdrant/current")

    def lose_names(self) -> None:
        """A name server that is not there. The resolver asks it once: its patience is not what is tested."""
        lines = "nameserver 192.0.2.1\\noptions timeout:1 attempts:1\\n"
        self.run(f"cp /etc/resolv.conf /root/resolv && printf '{lines}' > /etc/resolv.conf")

    @property
    def archive(self) -> str:
        (url,) = [one.url for url, one in self.mirror.lab.made.items() if "/qdrant/" in url]
        return "/" + url.removeprefix("https://")

    @contextlib.contextmanager
    def served(self, wrong: Served) -> Iterator[None]:
        """The mirror misbehaves for Qdrant's archive."""
        self.mirror.files.faults[self.archive] = wrong
        try:
            yield
        finally:
            self.mirror.files.faults.clear()

    @contextlib.contextmanager
    def settings(self, old: str, new: str) -> Iterator[None]:
        before = self.ownstack.toml
        assert old in before
        self.ownstack.toml = before.replace(old, new)
        try:
            yield
        finally:
            self.ownstack.toml = before

    @contextlib.contextmanager
    def account(self, name: str) -> Iterator[None]:
        self.ownstack.user = name
        try:
            yield
        finally:
            self.ownstack.user = "root"
            self.words.clear()


Make = Callable[[Bench], Iterator[str]]


@dataclass(frozen=True)
class Fault:
    name: str
    expect: str
    make: Make
    quick: bool = False  # CI runs it
    says: str = ""  # a pattern that the message or the hint has to match


FAULTS: list[Fault] = []


def fault(name: str, expect: str, says: str = "", quick: bool = False) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        FAULTS.append(Fault(name, expect, make, quick, says))
        return make

    return add


# ------------------------------------------------------------------------------------------------- disks and folders


@fault("the disk of the programs is full", "disk-full", says="space")
def full_disk(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    bench.run(f"mount -t tmpfs -o size=6m none {OPT}/qdrant")
    yield bench.run(f"df --output=size,avail {OPT}/qdrant | tail -n 1")
    bench.uncover(f"{OPT}/qdrant")


@fault("the disk of the data is full", "disk-full", says="space")
def full_data(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    bench.run(f"mount -t tmpfs -o size=2m none {VAR}/work")
    yield bench.run(f"df --output=size,avail {VAR}/work | tail -n 1")
    bench.uncover(f"{VAR}/work")


@fault("the folder of the data is read-only", "journal", says="Read-only", quick=True)
def read_only_data(bench: Bench) -> Iterator[str]:
    bench.run(f"rm {VAR}/ollama/.ollama/server.json; mount --bind {VAR} {VAR} && mount -o remount,ro,bind {VAR}")
    yield bench.run(f"touch {VAR}/x 2>&1 || true")
    bench.uncover(VAR)


@fault("the folder of the configuration is read-only", "run-failed", says="Read-only")
def read_only_configuration(bench: Bench) -> Iterator[str]:
    bench.run(f"rm {ETC}/n8n/gate.cjs; mount --bind {ETC} {ETC} && mount -o remount,ro,bind {ETC}")
    yield bench.run(f"touch {ETC}/x 2>&1 || true")
    bench.uncover(ETC)


@fault("the folder of the programs is read-only", "read-only", says="Read-only file system.*writable")
def read_only_programs(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    bench.run(f"mount --bind {OPT} {OPT} && mount -o remount,ro,bind {OPT}")
    yield bench.run(f"touch {OPT}/x 2>&1 || true")
    bench.uncover(OPT)


@fault("/tmp may hold no programs (noexec)", "heals")
def noexec(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    bench.run("mount -t tmpfs -o noexec none /tmp")
    yield bench.run("cp /bin/true /tmp/x && (/tmp/x || true) 2>&1; rm /tmp/x")
    bench.uncover("/tmp")


@fault("/tmp has 16 MB", "heals")
def small_tmp(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    bench.run("mount -t tmpfs -o size=16m none /tmp")
    yield bench.run("df -h --output=size /tmp | tail -n 1")
    bench.uncover("/tmp")


@fault("/tmp is full, and with sudo files go through it", "disk-full", says="/tmp/.*No space")
def full_tmp(bench: Bench) -> Iterator[str]:
    bench.run(f"rm {VAR}/ollama/.ollama/server.json")
    bench.run("mount -t tmpfs -o size=64k,nr_inodes=20 none /tmp; head -c 1M /dev/zero > /tmp/full || true")
    with bench.account("tester"):
        yield bench.run("head -c 4096 /dev/zero 2>&1 > /tmp/more || true")
    bench.uncover("/tmp")


@fault("the work folder is gone", "heals")
def no_work_folder(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    bench.run(f"rm -rf {VAR}/work")
    yield bench.run(f"ls -d {VAR}/work 2>&1 || true")


@fault("a data folder has another owner", "heals", quick=True)
def other_owner(bench: Bench) -> Iterator[str]:
    bench.run(f"systemctl stop ownstack-qdrant; chown -R nobody:daemon {VAR}/qdrant")
    yield bench.run(f"stat -c '%U:%G' {VAR}/qdrant")


@fault("the secrets may be read by all", "heals")
def open_secrets(bench: Bench) -> Iterator[str]:
    bench.run(f"chmod 755 {ETC}/secrets")
    yield bench.run(f"stat -c %a {ETC}/secrets")


# ------------------------------------------------------------------------------------------------------ the network


@fault("the mirror is gone", "fetch-network", says="mirror|refused|reach")
def no_mirror(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    with bench.settings(bench.mirror.files.url, f"http://{bench.host.network.gateway}:9"):
        yield bench.run(f"curl -sS http://{bench.host.network.gateway}:9 2>&1 || true")


@fault("no name resolves, and there is no mirror", "fetch-network", says="name resolution|resolve")
def no_names(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    bench.lose_names()
    with bench.settings(f'[sources]\nmirror = "{bench.mirror.files.url}"\n', ""):
        yield bench.run("timeout 2 getent hosts github.com || echo no answer")
    bench.run("cp /root/resolv /etc/resolv.conf; rm /root/resolv")


@fault("no name resolves; with a mirror none is needed", "heals")
def no_names_needed(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    bench.lose_names()
    yield bench.run("timeout 2 getent hosts github.com || echo no answer")
    bench.run("cp /root/resolv /etc/resolv.conf; rm /root/resolv")


@fault("a download is cut off", "fetch-network", says="again|goes on")
def cut_download(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    with bench.served(Served(cut_after=3_000_000)):
        yield "the server closes the connection after 3 MB"


@fault("the server of a download is ill (503)", "fetch-.*", says="503")
def ill_server(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    with bench.served(Served(status=503)):
        yield "the server answers 503"


@fault("a download has wrong bytes", "fetch-hash", says="sha256|hash")
def wrong_bytes(bench: Bench) -> Iterator[str]:
    bench.lose_qdrant()
    with bench.served(Served(flip=True)):
        yield "one bit of the archive is another"


@fault("the SSH connection breaks", "heals", says="connected again")
def ssh_lost(bench: Bench) -> Iterator[str]:
    yield from cut(bench, CUT, "the server's end of the connection is killed")


@fault("the SSH connection breaks, and nobody answers any more", "unreachable", says="cannot reach")
def ssh_gone(bench: Bench) -> Iterator[str]:
    plain = bench.ownstack
    bench.ownstack = replace(plain, variables={**plain.variables, "OWNSTACK_RECONNECT": "6"})
    try:
        yield from cut(bench, f"{CUT}systemctl stop ssh.socket ssh\n", "the connection is killed, and sshd ends")
    finally:
        bench.ownstack = plain
        bench.run("systemctl start ssh")


@fault("the network is away for 80 s", "heals", says="connected again")
def network_away(bench: Bench) -> Iterator[str]:
    """Nothing tells either end: the connection stands, and nothing comes through it."""
    bench.run(f"rm {VAR}/ollama/.ollama/server.json; systemctl stop ownstack-ollama")
    bench.host.hang_up()  # the tests' own connection would hang as well
    veth = bench.host.uplink.veth
    script = f"sleep 4; ip link set {veth} down; sleep 80; ip link set {veth} up"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as away:
        yield f"the cable of {bench.host.name} is pulled"
        assert away.wait(100) == 0


def cut(bench: Bench, script: str, proof: str) -> Iterator[str]:
    """Something to do for `up`, whose connection ends in the middle of it."""
    bench.run(f"rm {VAR}/ollama/.ollama/server.json; systemctl stop ownstack-ollama")
    bench.run("cat > /run/cut", data=script)
    bench.run("systemd-run --quiet --collect sh /run/cut")
    yield proof
    assert bench.run("cat /run/killed")
    bench.run("rm /run/killed /run/cut")


# ------------------------------------------------------------------------------------------------ accounts and rights


def tester(bench: Bench, rule: str) -> None:
    bench.run(f"echo 'tester ALL=(ALL) {rule}' > /etc/sudoers.d/tester" if rule else "rm -f /etc/sudoers.d/tester")


@fault("sudo's password is wrong", "wrong-sudo-password", says="refused the password")
def wrong_password(bench: Bench) -> Iterator[str]:
    tester(bench, "ALL")
    bench.run("chpasswd", data=f"tester:{PASSWORD}\n")
    word = bench.folder / "wrong"
    word.write_text("wrong\n")
    with bench.account("tester"):
        bench.words += ["--sudo-password-file", str(word), "--set", "scope=system"]
        yield bench.host.run("sudo -n true", user="tester", check=False).stderr.strip()
    tester(bench, "NOPASSWD:ALL")


@fault("sudo is missing", "no-sudo", says="sudo", quick=True)
def no_sudo(bench: Bench) -> Iterator[str]:
    tester(bench, "")
    with bench.account("tester"):
        bench.words += ["--set", "scope=system"]
        yield bench.host.run("sudo -n true", user="tester", check=False).stderr.strip()
    tester(bench, "NOPASSWD:ALL")


@fault("a service's account is gone", "heals")
def no_account(bench: Bench) -> Iterator[str]:
    bench.run("systemctl stop ownstack-qdrant; userdel ownstack-qdrant")
    yield bench.run("id ownstack-qdrant 2>&1 || true")


@fault("a service's group is gone", "heals", quick=True)
def no_group(bench: Bench) -> Iterator[str]:
    bench.run("systemctl stop ownstack-qdrant; sed -i /^ownstack-qdrant:/d /etc/group /etc/gshadow")
    yield bench.run("getent group ownstack-qdrant || echo no such group")


@fault("the owner changed every password", "bears")
def passwords_changed(bench: Bench) -> Iterator[str]:
    web, flow = "http://127.0.0.1:8080/api/v1/auths", "http://127.0.0.1:5678/rest"
    email, first = bench.ownstack.first_password("open_webui")
    owner, word = bench.ownstack.first_password("n8n")
    new = "Changed-by-the-owner-1"
    ask = "curl -s -H 'content-type: application/json' -d @- -b /run/jar -c /run/jar"

    def change(old: str, wanted: str) -> str:
        token = json.loads(bench.run(f"{ask} {web}/signin", json.dumps({"email": email, "password": old})))["token"]
        body = json.dumps({"password": old, "new_password": wanted})
        bench.run("umask 077; cat > /run/token", data=f"authorization: Bearer {token}")
        return bench.run(f"{ask} -H @/run/token {web}/update/password", body)

    def change_n8n(old: str, wanted: str) -> str:
        login = json.dumps({"emailOrLdapLoginId": owner, "password": old})
        bench.run(f"{ask} -o /dev/null {flow}/login", login)
        body = json.dumps({"currentPassword": old, "newPassword": wanted})
        code = "-o /dev/null -w '%{http_code}' -X PATCH"
        return bench.run(f"{ask} {code} {flow}/me/password", body)

    told = (change(first, new), change_n8n(word, new))
    assert told == ("true", "200")
    yield f"Open WebUI says {told[0]}, n8n says {told[1]}"
    back = (change(new, first), change_n8n(new, word))
    bench.run("rm -f /run/jar /run/token")
    assert back == ("true", "200")


# ---------------------------------------------------------------------------------------------- programs and services


@fault("the engine is killed as by the OOM killer", "heals", quick=True)
def oom(bench: Bench) -> Iterator[str]:
    bench.run("kill -9 $(systemctl show -p MainPID --value ownstack-ollama)")
    yield bench.run("sleep 1; systemctl show -p NRestarts -p Result ownstack-ollama | tr '\\n' ' '")


@fault("a service hangs", "checks-failed", says="qdrant")
def hangs(bench: Bench) -> Iterator[str]:
    bench.run("kill -STOP $(systemctl show -p MainPID --value ownstack-qdrant)")
    yield bench.run("ps -o stat= -p $(systemctl show -p MainPID --value ownstack-qdrant)")
    bench.run("kill -CONT $(systemctl show -p MainPID --value ownstack-qdrant)")


@fault("a foreign program holds the port", "port-taken", says="6333")
def port_taken(bench: Bench) -> Iterator[str]:
    bench.run("systemctl stop ownstack-qdrant; systemd-run --unit theirs python3 -m http.server --bind 127.0.0.1 6333")
    bench.run("for i in $(seq 50); do curl -s http://127.0.0.1:6333 >/dev/null && exit; sleep 0.1; done; exit 1")
    yield bench.run("ss -Hltnp 'sport = 6333' | grep -o 'users:.*'")
    bench.run("systemctl stop theirs")


@fault("a unit is masked", "heals")
def masked(bench: Bench) -> Iterator[str]:
    unit = "/etc/systemd/system/ownstack-qdrant.service"
    bench.run(f"systemctl stop ownstack-qdrant; rm {unit}; systemctl mask ownstack-qdrant")
    yield bench.run("systemctl is-enabled ownstack-qdrant || true")


@fault("a unit is disabled and stopped", "heals")
def disabled(bench: Bench) -> Iterator[str]:
    bench.run("systemctl disable --now ownstack-qdrant")
    yield bench.run("systemctl is-enabled ownstack-qdrant || true")


@fault("a drop-in lets a service open 4 files", "not-ready", says="qdrant.*its process ended")
def few_files(bench: Bench) -> Iterator[str]:
    place = "/etc/systemd/system/ownstack-qdrant.service.d"
    bench.run(f"mkdir {place}; printf '[Service]\\nLimitNOFILE=4\\n' > {place}/own.conf; systemctl daemon-reload")
    bench.run("systemctl stop ownstack-qdrant")
    yield bench.run("systemctl show -p LimitNOFILE ownstack-qdrant")
    bench.run(f"rm -r {place}; systemctl daemon-reload")


@fault("a configuration file is gone", "heals")
def no_configuration(bench: Bench) -> Iterator[str]:
    bench.run(f"rm {ETC}/n8n/env")
    yield bench.run(f"ls {ETC}/n8n/env 2>&1 || true")


@fault("a secret is gone", "heals")
def no_secret(bench: Bench) -> Iterator[str]:
    bench.run(f"rm {ETC}/secrets/qdrant_api_key")
    yield bench.run(f"ls {ETC}/secrets/qdrant_api_key 2>&1 || true")


@fault("n8n's key is gone", "n8n-key", says="no other one is made.*put the right key back.*as `encryptionKey` in /")
def no_key(bench: Bench) -> Iterator[str]:
    path = f"{ETC}/secrets/n8n_encryption_key"
    bench.run(f"mv {path} /root/key")
    units = " ".join(f"ownstack-{name}" for name in ("qdrant", "open-webui", "n8n"))
    before = bench.run(f"systemctl show -p MainPID --value {units}")
    yield bench.run(f"ls {path} 2>&1 || true")
    after = bench.run(f"systemctl show -p MainPID --value {units}")
    made = bench.run(f"ls {path} 2>/dev/null || true")
    bench.run(f"mv /root/key {path}")
    assert not made, "no other key was made"
    assert after == before, "the services run on"


@fault("the link to a program leads nowhere", "heals")
def broken_link(bench: Bench) -> Iterator[str]:
    bench.run(f"ln -sfn releases/none {OPT}/qdrant/current; systemctl stop ownstack-qdrant")
    yield bench.run(f"ls {OPT}/qdrant/current/ 2>&1 || true")


@fault("a program is damaged", "heals")
def damaged_program(bench: Bench) -> Iterator[str]:
    bench.run("systemctl stop ownstack-qdrant")
    bench.run(f"f=$(find {OPT}/qdrant/current/ -name qdrant -type f) && head -c 4096 $f > $f.x && mv $f.x $f")
    yield bench.run(f"find {OPT}/qdrant/current/ -name qdrant -type f -printf '%s bytes'")


@fault("the runner is damaged", "heals", quick=True)
def damaged_runner(bench: Bench) -> Iterator[str]:
    bench.run(f"f={OPT}/base/current/runner.pyz; head -c 5000 $f > $f.x && mv $f.x $f")
    yield bench.run(f"{OPT}/base/current/runner box.ports --json '{{}}' 2>&1 | tail -n 1")


# ----------------------------------------------------------------------------------------------------------- records


@fault("the manifest is cut short", "config", says="move it aside")
def cut_manifest(bench: Bench) -> Iterator[str]:
    bench.run(f"cp -p {VAR}/manifest.json /root/manifest && truncate -s 1000 {VAR}/manifest.json")
    yield bench.run(f"python3 -m json.tool {VAR}/manifest.json 2>&1 >/dev/null | tail -n 1")
    bench.run(f"mv /root/manifest {VAR}/manifest.json")


@fault("the manifest is moved aside, as the hint says", "heals")
def no_manifest(bench: Bench) -> Iterator[str]:
    bench.run(f"mv {VAR}/manifest.json /root/manifest")
    yield bench.run(f"ls {VAR}/manifest.json 2>&1 || true")
    bench.run(f"[ -e {VAR}/manifest.json ] || cp /root/manifest {VAR}/manifest.json; rm /root/manifest")


@fault("the journal is garbage", "bears")
def garbage_journal(bench: Bench) -> Iterator[str]:
    bench.run(f"head -c 3000 /dev/urandom > {VAR}/journal.jsonl; printf '\\n' >> {VAR}/journal.jsonl")
    yield bench.run(f"stat -c '%s bytes' {VAR}/journal.jsonl")


# ------------------------------------------------------------------------------------------------------ the machine


@fault("another run is at work", "busy", says="since 20", quick=True)
def two_at_once(bench: Bench) -> Iterator[str]:
    told = "another run by me@laptop since 2026-01-01 10:00"
    script = f"exec 9>>/run/ownstack.lock; flock 9; echo '{told}' >&9; sleep 600"
    bench.run(f'systemd-run --quiet --collect --unit holder sh -c "{script}"; sleep 0.5')
    yield bench.run("flock -n /run/ownstack.lock true || echo held")
    bench.run("systemctl stop holder; : > /run/ownstack.lock")


@fault("the package manager is at work", "waits")
def apt_held(bench: Bench) -> Iterator[str]:
    lock = "open('/var/lib/dpkg/lock-frontend', 'w')"
    hold = f"import fcntl, time; f = {lock}; fcntl.lockf(f, fcntl.LOCK_EX); time.sleep(15)"
    bench.run("DEBIAN_FRONTEND=noninteractive apt-get -qq -y purge zstd >/dev/null 2>&1")
    bench.run(f'systemd-run --quiet --collect --unit apt-held python3 -c "{hold}"; sleep 0.5')
    yield bench.run("apt-get -y install zstd 2>&1 | grep -o 'Could not get lock.*' || true")
    # it held the lock to its own end, so `up` can have installed only after that
    state = bench.run("systemctl is-active apt-held || true; command -v zstd || true")
    bench.run("systemctl stop apt-held 2>/dev/null; true")
    assert state.split() == ["inactive", "/usr/bin/zstd"]


@fault("the clock is two days ahead", "bears")
def clock(bench: Bench) -> Iterator[str]:
    bench.run("DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends faketime >/dev/null 2>&1")
    lib = bench.run("find /usr/lib -name 'libfaketime.so.1' | head -n 1")
    # of all that comes over SSH; the clock that measures how long something took goes right, as it does on such a host
    lines = [f"LD_PRELOAD={lib}", "FAKETIME=+2d", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"]
    bench.run("cp /etc/environment /root/environment; cat >> /etc/environment", "\n".join([*lines, ""]))
    bench.run(f"rm {VAR}/ollama/.ollama/server.json")
    days = round((int(bench.run("date +%s")) - time.time()) / 86400)
    yield f"{days} days ahead of the caller's" if days == 2 else ""
    bench.run("mv /root/environment /etc/environment")
    bench.run("DEBIAN_FRONTEND=noninteractive apt-get -qq -y purge faketime libfaketime >/dev/null 2>&1")


@fault("the time zone is another", "heals")
def time_zone(bench: Bench) -> Iterator[str]:
    bench.run("cp -P /etc/localtime /root/ && ln -sfn /usr/share/zoneinfo/Asia/Kolkata /etc/localtime")
    yield bench.run("date +%z | grep 0530 || true")
    bench.run("mv /root/localtime /etc/")


@fault("the language of the machine is unknown", "bears")
def language(bench: Bench) -> Iterator[str]:
    bench.run("cp /etc/default/locale /root/locale; echo LANG=xx_XX.UTF-8 > /etc/default/locale")
    bench.run(f"rm {VAR}/ollama/.ollama/server.json")
    yield bench.run("locale 2>&1 | grep -m 1 'Cannot set' || true")
    bench.run("mv /root/locale /etc/default/locale")


@fault("sshd allows one channel alone", "unreachable", says="MaxSessions")
def one_channel(bench: Bench) -> Iterator[str]:
    bench.run("echo 'MaxSessions 1' > /etc/ssh/sshd_config.d/one.conf; systemctl reload ssh; sleep 0.5")
    yield bench.run("sshd -T | grep -i maxsessions")
    bench.run("rm /etc/ssh/sshd_config.d/one.conf; systemctl reload ssh; sleep 0.5")
