"""The launcher, in scratch copies of the checkout. The command line behind it is a stand-in that
tells how it was started; everything before it (Python, uv, packages from the lock) is real."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TELL = """
import json, os, sys

def main():
    import click
    told = {"argv": sys.argv[1:], "cwd": os.getcwd(), "prefix": sys.prefix, "click": click.__file__}
    told["keeps"] = not sys.dont_write_bytecode
    print(json.dumps({**told, "pythonpath": os.environ.get("PYTHONPATH")}))
"""
FIRST = "setting up its Python environment"


class Checkout:
    """A copy of the launcher's files in a folder of its own, its lock cut down to a few packages, to be quick."""

    def __init__(self, folder: Path, cache: Path, packages: tuple[str, ...] = ("click", "six")) -> None:
        self.folder = folder
        self.cache = cache
        for name in ("ownstack", "tools/environment.sh", "requirements", "src/ownstack/__main__.py"):
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
        cli = folder / "src/ownstack/cli/__init__.py"
        cli.parent.mkdir(parents=True)
        cli.write_text(TELL)
        (folder / "src/ownstack/__init__.py").touch()
        if packages:
            _keep(folder / "requirements/kit.lock", packages)

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    def environment(self, **extra: str) -> dict[str, str]:
        return {**os.environ, "XDG_CACHE_HOME": str(self.cache), **extra}

    def start(
        self, *arguments: str, command: tuple[str, ...] = (), cwd: Path | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*(command or (str(self.folder / "ownstack"),)), *arguments],
            cwd=cwd or self.folder, env=self.environment(**extra), text=True, capture_output=True,
            stdin=subprocess.DEVNULL, timeout=300, check=False,
        )  # fmt: skip

    def told(self, *arguments: str, **options: Any) -> dict[str, Any]:
        run = self.start(*arguments, **options)
        assert run.returncode == 0, run.stderr
        told: dict[str, Any] = json.loads(run.stdout)
        return told

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """A start in a process group of its own, not waited for."""
        return subprocess.Popen(
            [str(self.folder / "ownstack"), *arguments], env=self.environment(), text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def shell(self, script: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a few lines with the launcher's functions at hand."""
        text = f'set -eu; root=$1; . "$root/tools/environment.sh"; work=$2 log=$2/log cache=$2; : >"$log"; {script}'
        work = self.folder.with_name("work")
        (work / "tools").mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            ["sh", "-c", text, "sh", self.folder, work], env=self.environment(**extra), text=True, capture_output=True,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip


def _keep(lock: Path, packages: tuple[str, ...]) -> None:
    """Leave only these packages in a lock; they must need no others."""
    entries = re.split(r"(?m)^(?=[a-z0-9])", lock.read_text())
    kept = [entry for entry in entries if entry.split("==")[0] in packages]
    assert len(kept) == len(packages)
    lock.write_text("".join(kept))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache of these tests; uv is kept there after the first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def checkout(tmp_path: Path, cache: Path) -> Checkout:
    for path in (cache / "ownstack/tools").glob("making*"):
        shutil.rmtree(path)  # of another test's killed start
    return Checkout(tmp_path / "my böx", cache)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Checkout:
    """A checkout whose environment is made; tests that only start it share it."""
    checkout = Checkout(tmp_path_factory.mktemp("made") / "it's a box", cache, packages=())  # the whole lock
    run = checkout.start()
    assert run.returncode == 0, run.stderr
    return checkout


def test_first_start_says_one_line_and_the_second_nothing(checkout: Checkout) -> None:
    first, second = checkout.start("status"), checkout.start("status", "--json")
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stderr.count("\n") == 1
    assert FIRST in first.stderr
    assert "done in" in first.stderr
    assert second.stderr == ""
    assert json.loads(second.stdout)["argv"] == ["status", "--json"]
    assert json.loads(second.stdout)["prefix"] == str(checkout.venv)


def test_a_later_start_costs_no_more_than_the_interpreter(made: Checkout) -> None:
    """Of the processor, not by the clock: other work on the machine must not decide."""

    def spent(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=made.environment(), capture_output=True, check=True, stdin=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    plain = min(spent(str(made.venv / "bin/python"), "-P", "-m", "ownstack") for _ in range(3))
    launched = min(spent(str(made.folder / "ownstack")) for _ in range(3))
    assert launched - plain < 0.1, (launched, plain)


def test_arguments_and_folder_arrive_as_given(made: Checkout, tmp_path: Path) -> None:
    arguments = ["", "a b", "it's", '"$HOME"', "*", "-n", "line\nbreak", "\\"]
    told = made.told(*arguments, cwd=tmp_path)
    assert told["argv"] == arguments
    assert told["cwd"] == str(tmp_path)


@pytest.mark.parametrize("shell", ["dash", "bash", "bash --posix", "busybox sh"])
def test_every_posix_shell(shell: str, made: Checkout) -> None:
    words = shell.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    run = made.start("x", command=(*words, str(made.folder / "ownstack")))
    assert json.loads(run.stdout)["argv"] == ["x"]
    assert run.stderr == ""
    rebuilt = made.start(command=(*words, "-c", '. "$0"', str(made.folder / "ownstack")))
    assert rebuilt.returncode == 0, rebuilt.stderr


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
def test_first_start_in_every_posix_shell(shell: str, checkout: Checkout) -> None:
    words = shell.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    told = checkout.told(command=(*words, str(checkout.folder / "ownstack")))
    assert told["prefix"] == str(checkout.venv)


def test_links_and_relative_paths(made: Checkout, tmp_path: Path) -> None:
    direct, indirect = tmp_path / "direct", tmp_path / "bin" / "os"
    indirect.parent.mkdir()
    direct.symlink_to(made.folder / "ownstack")
    indirect.symlink_to("../direct")
    assert made.told(command=(str(indirect),))["prefix"] == str(made.venv)
    assert made.told(command=("sh", "ownstack"), cwd=made.folder)["prefix"] == str(made.venv)


def test_foreign_modules_stay_out(made: Checkout, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('the wrong click')\n")
    told = made.told(cwd=tmp_path, PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert told["keeps"]
    assert Path(told["click"]).is_relative_to(made.venv)
    assert told["pythonpath"] is None


def test_changed_lock_and_moved_checkout_make_the_environment_anew(checkout: Checkout, tmp_path: Path) -> None:
    checkout.told()
    leftover = checkout.venv / "leftover"
    leftover.touch()
    assert checkout.start().stderr == ""
    assert leftover.exists()
    with (checkout.folder / "requirements/kit.lock").open("a") as lock:
        lock.write("# changed\n")
    assert FIRST in checkout.start().stderr
    assert not leftover.exists()
    moved = checkout.folder.rename(tmp_path / "elsewhere")
    checkout.folder = moved
    run = checkout.start()
    assert FIRST in run.stderr
    assert json.loads(run.stdout)["prefix"] == str(moved / ".venv")


def test_vanished_python_is_noticed(checkout: Checkout) -> None:
    checkout.told()
    python = checkout.venv / "bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    run = checkout.start()
    assert run.returncode == 0, run.stderr
    assert FIRST in run.stderr


@pytest.mark.parametrize("moment", ["ownstack.stamp", "pyvenv.cfg", "bin/python", "lib"])
def test_killed_first_start_is_never_taken_for_complete(moment: str, checkout: Checkout) -> None:
    process = checkout.begin()
    _until(lambda: (checkout.venv / moment).exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    run = checkout.start()
    assert run.returncode == 0, run.stderr
    assert FIRST in run.stderr
    assert not checkout.venv.with_name(".venv.lock").is_symlink()


def test_interrupted_first_start_lets_go(checkout: Checkout) -> None:
    process = checkout.begin()
    _until(lambda: (checkout.venv / "pyvenv.cfg").exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not checkout.venv.with_name(".venv.lock").is_symlink()
    assert checkout.told()["prefix"] == str(checkout.venv)
    assert not list((checkout.cache / "ownstack/tools").glob("making*"))


def test_two_first_starts_at_once(checkout: Checkout) -> None:
    processes = [checkout.begin(name) for name in ("one", "two", "three")]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert [json.loads(out)["argv"] for out, _ in outputs] == [["one"], ["two"], ["three"]]
    assert sum(FIRST in said for _, said in outputs) == 1
    assert all(FIRST in said or "waiting for another start" in said or not said for _, said in outputs)


def test_lock_of_a_dead_process_is_taken_over(checkout: Checkout) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    checkout.venv.with_name(".venv.lock").symlink_to(str(dead.pid))
    assert checkout.told()["prefix"] == str(checkout.venv)


def test_a_venv_of_someone_else_is_left_alone(checkout: Checkout) -> None:
    (checkout.venv / "bin").mkdir(parents=True)
    (checkout.venv / "bin/python").write_text("mine\n")
    told = checkout.told()
    assert Path(told["prefix"]).is_relative_to(checkout.cache / "ownstack/environments")
    assert (checkout.venv / "bin/python").read_text() == "mine\n"
    assert checkout.start().stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount the checkout read-only")
def test_read_only_checkout_uses_the_cache(checkout: Checkout) -> None:
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd / && "$0/ownstack"'
    command = ("unshare", "--mount", "sh", "-c", mount, str(checkout.folder))
    first, second = checkout.start(command=command), checkout.start(command=command)
    assert first.returncode == 0, first.stderr
    assert Path(json.loads(first.stdout)["prefix"]).is_relative_to(checkout.cache / "ownstack/environments")
    assert FIRST in first.stderr
    assert second.stderr == ""


def test_pip_does_it_where_uv_cannot(checkout: Checkout) -> None:
    script = """
        env=$root/.venv lock=$root/requirements/kit.lock good='' any='' way=''
        mkdir "$env"
        find_pythons
        through_pip
        "$env/bin/python" -c 'import click'
    """
    run = checkout.shell(script)
    assert run.returncode == 0, run.stderr + (checkout.folder.parent / "work/log").read_text()


def test_tampered_package_is_refused(checkout: Checkout) -> None:
    lock = checkout.folder / "requirements/kit.lock"
    lines = lock.read_text().splitlines(keepends=True)
    inside = [line.startswith("six==") for line in lines].index(True)
    for number in (inside + 1, inside + 2):
        start, digest = lines[number].split("sha256:")
        lines[number] = f"{start}sha256:{digest[:64][::-1]}{digest[64:]}"
    lock.write_text("".join(lines))
    run = checkout.start()
    assert run.returncode == 1
    assert "hash" in run.stderr.lower()
    assert "error: the kit's Python packages could not be installed" in run.stderr
    assert "hint:" in run.stderr
    assert run.stdout == ""
    assert (checkout.venv / "ownstack.stamp").read_text() == "unfinished\n"


# ---- uv from its vendor -------------------------------------------------------------------------


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over HTTP on a free loopback port."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _release(folder: Path) -> Path:
    """An archive in the layout of the vendor's release, with a program that answers --version."""
    program = folder / "uv"
    program.write_text("#!/bin/sh\necho uv 0.0.0\n")
    archive = folder / "uv-x86_64-unknown-linux-gnu.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(program, "uv-x86_64-unknown-linux-gnu/uv")
    return archive


@pytest.mark.parametrize("tool", ["curl", "wget"])
@pytest.mark.parametrize("honest", [True, False])
def test_vendor_release_of_uv(checkout: Checkout, tmp_path: Path, tool: str, honest: bool) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    archive = _release(tmp_path)
    digest = hashlib.sha256(archive.read_bytes() if honest else b"other").hexdigest()
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "uname", "tr", "sed", "tar", "gzip", "sha256sum", "mkdir", "mv", "chmod", "cat", "cksum", tool):
        (programs / name).symlink_to(str(shutil.which(name)))
    with served(tmp_path) as address:
        platforms = [f"{platform} 1.0 {digest} {address}/{archive.name}\n" for platform in ("linux-x86_64", "other-x")]
        (checkout.folder / "requirements/uv.vendor").write_text("# comment\n" + "".join(reversed(platforms)))
        script = 'uname() { case $1 in -s) echo Linux ;; *) echo x86_64 ;; esac; }; find_uv vendor_uv; echo "uv=$uv"'
        run = checkout.shell(script, PATH=str(programs))
    log = (checkout.folder.parent / "work/log").read_text()
    assert run.returncode == 0, run.stderr
    if honest:
        assert run.stdout.startswith(f"uv={checkout.folder.parent}/work/tools/uv-"), log
    else:
        assert run.stdout == "uv=\n"
        assert "not the pinned file" in log


def test_vendor_file_has_a_whole_row_for_each_linux_platform() -> None:
    lines = (ROOT / "requirements/uv.vendor").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    assert {row[0] for row in rows} == {"linux-x86_64", "linux-aarch64"}
    for _platform, version, digest, address in rows:
        assert len(bytes.fromhex(digest)) == 32
        assert f"/{version}/" in address


# ---- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "command"),
    [
        ("ID=debian", "apt-get install -y python3 python3-venv"),
        ('ID=ubuntu\nID_LIKE="debian"', "apt-get install -y python3 python3-venv"),
        ("ID=fedora", "dnf install -y python3"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "dnf install -y python3"),
        ("ID=arch", "pacman -S --needed python"),
        ("ID=alpine", "apk add python3"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"', "zypper install"),
        ("ID=haiku", "from your system's packages"),
    ],
)
def test_advice_names_the_command_of_the_system(checkout: Checkout, tmp_path: Path, system: str, command: str) -> None:
    (tmp_path / "os-release").write_text(f"NAME=x\n{system}\nVERSION_ID=1\n")
    run = checkout.shell("no_python", os_release=str(tmp_path / "os-release"))
    assert run.returncode == 1
    assert command in run.stderr
    assert ("sudo" in run.stderr) == (os.geteuid() != 0 and "haiku" not in system)


def old_python(folder: Path) -> Path:
    """A `python3` that says it is 3.9, first on the PATH."""
    folder.mkdir()
    path = folder / "python3"
    lie = "import sys; sys.version_info = (3, 9, 2, 'final', 0)"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || exec {sys.executable} "$@"\ncode=$2; shift 2\n'
        f'exec {sys.executable} -c "{lie}; sys.executable = \\"$0\\"\n$code" "$@"\n'
    )
    path.chmod(0o755)
    return path


def test_an_older_python_is_passed_over_for_a_newer_one(checkout: Checkout, tmp_path: Path) -> None:
    old = old_python(tmp_path / "old")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/python3.13").symlink_to(sys.executable)
    paths = f"{tmp_path}/old:{tmp_path}/new:/usr/bin:/bin"
    script = "good='' any=''; usable python3 && echo taken; find_pythons; echo $good"
    run = checkout.shell(script, PATH=paths)
    assert run.stdout == f"{Path(sys.executable).resolve()}\n", run.stderr
    said = subprocess.run([old, "-c", "print(sys.version_info[:2])"], capture_output=True, text=True, check=True)
    assert said.stdout == "(3, 9)\n"
    assert FIRST in checkout.start(PATH=paths).stderr
    assert checkout.start(PATH=paths).stderr == ""


@pytest.mark.parametrize(
    ("system", "packages"),
    [
        ("ID=ubuntu", "python3.11 python3.11-venv"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "python3.11 python3.11-pip"),
    ],
)
def test_where_python3_is_too_old_the_newer_one_is_named(
    checkout: Checkout, tmp_path: Path, system: str, packages: str
) -> None:
    old_python(tmp_path / "old")
    (tmp_path / "os-release").write_text(f"{system}\n")
    run = checkout.shell(
        "no_python", os_release=str(tmp_path / "os-release"), PATH=f"{tmp_path}/old:{os.environ['PATH']}"
    )
    assert f"install -y {packages}" in run.stderr


def _until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
