"""The same services set up by ownstack and the vendors' plain way: wall time, disk, idle memory, as ratios.

    python -m tools.compare_plain --work FOLDER [--out docs/reference/plain.md]

Run as root on a machine without systemd as process 1 (or in a container), with nothing else going on. Both sides use
this machine's own package caches, filled by a first run of each that is not counted (`--cold` leaves it out), the
same Ollama and Qdrant binaries and the same n8n version. The plain side installs Open WebUI by pip with a
CPU build of PyTorch where pip finds one (`PIP_FIND_LINKS`, `PIP_INDEX_URL`), and n8n by npm. Where pip finds one for
CUDA only, its installation is not counted in the plain side's time, and CUDA's files not in its disk.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "ownplain"
GOAL = 0.75  # of the plain way, at most
PORTS = {"qdrant": 26400, "ollama": 26401, "open_webui": 26402, "n8n": 26403, "broker": 26404}


@dataclass
class Side:
    """What one way of setting up took."""

    seconds: float = 0.0
    disk_bytes: int = 0
    memory_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        return sum(self.memory_bytes.values())


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:6])} ended with {done.returncode}:\n{done.stderr[-2000:]}\n{done.stdout[-2000:]}")
    return str(done.stdout)


def disk(path: Path) -> int:
    return int(run(["du", "-sb", "--apparent-size", str(path)]).split()[0])


def family(pid: int) -> set[int]:
    """A process and all below it."""
    pairs = [tuple(map(int, line.split())) for line in run(["ps", "-eo", "pid=,ppid="]).splitlines()]
    found = {pid}
    for _ in range(8):
        found |= {child for child, parent in pairs if parent in found}
    return found


def pss(pid: int) -> int:
    """Proportional set size of a process and its children, bytes."""
    total = 0
    for member in family(pid):
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def wait(url: str, seconds: int = 300) -> None:
    for _ in range(seconds * 2):
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - loopback
            return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"{url} does not answer")


def flags(root: Path) -> list[str]:
    sets = {
        "root": json.dumps(str(root)), "prefix": json.dumps(PREFIX), "qdrant.port": PORTS["qdrant"],
        "ollama.port": PORTS["ollama"], "open_webui.port": PORTS["open_webui"], "n8n.port": PORTS["n8n"],
        "n8n.broker_port": PORTS["broker"],
    }  # fmt: skip
    return [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]


def ours(root: Path, idle_s: int) -> Side:
    """`ownstack up` into a folder of its own, then what it holds and takes."""
    side = Side()
    began = time.monotonic()
    run([str(ROOT / "ownstack"), "up", "--yes", "--no-verify", *flags(root)])
    side.seconds = time.monotonic() - began
    time.sleep(idle_s)
    status = json.loads(run([str(ROOT / "ownstack"), "status", "--json", *flags(root)]))["data"]
    side.memory_bytes = {service["name"]: pss(service["pid"]) for service in status["services"]}
    side.disk_bytes = disk(root / "opt")
    return side


def down(root: Path) -> None:
    run([str(ROOT / "ownstack"), "down", "--purge", "--yes", *flags(root)])


def cuda(work: Path) -> list[Path]:
    """What is there for CUDA alone: a machine without a card has no use for it, and a CPU build does not bring it."""
    (packages,) = (work / "venv/lib").glob("python3.*/site-packages")
    names = ("nvidia", "nvidia_*", "cuda*", "triton", "torch/lib/*cuda*", "torch/lib/*cupti*")
    return [path for name in names for path in packages.glob(name)]


def plain_install(work: Path, ready: Path) -> float:
    """The vendors' instructions: a virtual environment and pip, npm install, and two binaries.

    Returns the seconds that do not count: those for a PyTorch that is no CPU build.
    """
    run(["/usr/bin/env", "python3", "-m", "venv", str(work / "venv")])
    versions = json.loads((ready / "versions.json").read_text())
    pip = [str(work / "venv/bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
    began = time.monotonic()
    run([*pip, "torch"])
    seconds = time.monotonic() - began
    torch = run([str(work / "venv/bin/pip"), "show", "torch"])
    versions["torch"] = next(line.split()[1] for line in torch.splitlines() if line.startswith("Version:"))
    (ready / "versions.json").write_text(json.dumps(versions))
    uncounted = seconds if cuda(work) else 0.0
    run([*pip, f"open-webui=={versions['open-webui']}", "qdrant-client"])
    shutil.copytree(ready / "node", work / "node", symlinks=True)
    shutil.copytree(ready / "qdrant", work / "qdrant", symlinks=True)
    shutil.copytree(ready / "ollama", work / "ollama", symlinks=True)
    (work / "n8n").mkdir()
    package = json.loads((ROOT / "roles/n8n/package.json").read_text())
    (work / "n8n/package.json").write_text(json.dumps(package))
    env = {**os.environ, "PATH": f"{work}/node/bin:{os.environ['PATH']}", "npm_config_nodedir": versions["headers"]}
    npm = [str(work / "node/bin/node"), str(work / "node/lib/node_modules/npm/bin/npm-cli.js")]
    run([*npm, "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=work / "n8n", env=env)
    run([*npm, "rebuild", "sqlite3"], cwd=work / "n8n", env=env)
    return uncounted


def plain_start(work: Path) -> dict[str, subprocess.Popen[bytes]]:
    """Start the four with the vendors' defaults, on loopback."""
    data = work / "data"
    for name in ("qdrant", "ollama", "webui", "n8n"):
        (data / name).mkdir(parents=True)
    base = {"PATH": f"{work}/node/bin:/usr/bin:/bin", "HOME": str(data), "LANG": "C.UTF-8"}
    ollama = {"OLLAMA_HOST": f"127.0.0.1:{PORTS['ollama']}", "OLLAMA_MODELS": str(data / "ollama")}
    qdrant = {"QDRANT__SERVICE__HTTP_PORT": str(PORTS["qdrant"]), "QDRANT__SERVICE__HOST": "127.0.0.1"}
    webui = {
        "DATA_DIR": str(data / "webui"),
        "OLLAMA_BASE_URL": f"http://127.0.0.1:{PORTS['ollama']}",
        "VECTOR_DB": "qdrant",
        "QDRANT_URI": f"http://127.0.0.1:{PORTS['qdrant']}", "HF_HUB_OFFLINE": "1", "WEBUI_SECRET_KEY": "x" * 32,
    }  # fmt: skip
    n8n = {"N8N_PORT": str(PORTS["n8n"]), "N8N_LISTEN_ADDRESS": "127.0.0.1", "N8N_USER_FOLDER": str(data / "n8n")}
    n8n["N8N_RUNNERS_BROKER_PORT"] = str(PORTS["broker"])
    port = str(PORTS["open_webui"])
    commands = {
        "qdrant": ([str(work / "qdrant/bin/qdrant")], qdrant, "qdrant"),
        "ollama": ([str(work / "ollama/bin/ollama"), "serve"], ollama, "ollama"),
        "open_webui": (
            [str(work / "venv/bin/open-webui"), "serve", "--host", "127.0.0.1", "--port", port],
            webui,
            "webui",
        ),
        "n8n": ([str(work / "node/bin/node"), str(work / "n8n/node_modules/n8n/bin/n8n"), "start"], n8n, "n8n"),
    }
    found = {}
    for name, (command, env, folder) in commands.items():
        log = (work / f"{name}.log").open("wb")
        found[name] = subprocess.Popen(
            command,
            env={**base, **env},
            cwd=data / folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    wait(f"http://127.0.0.1:{PORTS['open_webui']}/health")
    wait(f"http://127.0.0.1:{PORTS['n8n']}/healthz/readiness")
    wait(f"http://127.0.0.1:{PORTS['qdrant']}/readyz")
    return found


def plain(work: Path, ready: Path, idle_s: int) -> Side:
    side = Side()
    began = time.monotonic()
    uncounted = plain_install(work, ready)
    running = plain_start(work)
    side.seconds = time.monotonic() - began - uncounted
    try:
        time.sleep(idle_s)
        side.memory_bytes = {name: pss(process.pid) for name, process in running.items()}
        side.disk_bytes = sum(disk(work / name) for name in ("venv", "n8n", "node", "qdrant", "ollama"))
        side.disk_bytes -= sum(disk(path) for path in cuda(work))
    finally:
        for process in running.values():
            os.killpg(process.pid, signal.SIGTERM)
        for process in running.values():
            process.wait(30)
    return side


def keep_binaries(root: Path, ready: Path) -> None:
    """Node, Qdrant and Ollama as ownstack fetched them, so that both sides use the same."""
    ready.mkdir(parents=True, exist_ok=True)
    for name in ("node", "qdrant", "ollama"):
        shutil.copytree(root / "opt/ownstack" / name / "current", ready / name, symlinks=True, dirs_exist_ok=True)
    manifest = json.loads((root / "var/lib/ownstack/manifest.json").read_text())
    versions = {name: item["version"] for name, item in manifest["versions"].items()}
    versions["headers"] = os.environ.get("npm_config_nodedir", "/usr")  # noqa: SIM112
    (ready / "versions.json").write_text(json.dumps(versions))


def table(ours_: Side, plain_: Side) -> str:
    """The comparison as a Markdown table. Absolute numbers are this machine's; the ratios are what counts."""
    rows = [
        ("**wall time**, s", ours_.seconds, plain_.seconds),
        ("**disk of programs**, MiB", ours_.disk_bytes / 2**20, plain_.disk_bytes / 2**20),
        ("**idle memory**, MiB", ours_.memory / 2**20, plain_.memory / 2**20),
    ]
    rows += [
        (f"of it {n}, MiB", ours_.memory_bytes.get(n, 0) / 2**20, v / 2**20) for n, v in plain_.memory_bytes.items()
    ]
    lines = ["| | ownstack | plain | ratio | goal |", "| --- | --- | --- | --- | --- |"]
    for name, a, b in rows:
        goal = f"{GOAL}, {'met' if a / b <= GOAL else 'missed'}" if name.startswith("**") else ""
        lines.append(f"| {name} | {a:.0f} | {b:.0f} | {a / b:.2f} | {goal} |")
    return "\n".join(lines)


def page(text: str, versions: dict[str, str], commit: str, machine: str) -> str:
    """The reference page: what was compared, on what, and the table."""
    build = "a CPU build."
    if not versions["torch"].endswith("+cpu"):
        build = """for CUDA: pip found no CPU build here. Its installation is left out of the plain side's time, and
            CUDA's files out of its disk; what its libraries take of memory is in."""
    same = ", ".join(f"{name} {versions[name]}" for name in ("open-webui", "n8n", "qdrant", "ollama", "node"))
    words = (
        f"""The same four services, set up by `ownstack up` and by the vendors' own instructions: `pip install` of Open
        WebUI, `npm install` of n8n, and the binaries of Qdrant and Ollama. PyTorch is {versions["torch"]}, {build}""",
        f"""Made by `python -m tools.compare_plain` at commit {commit} on {datetime.date.today()}, on {machine}; the
        load over the last quarter of an hour was {os.getloadavg()[2]:.1f}. Other work makes both times longer. Both
        sides have the same versions ({same}) and warm package caches, filled by a run of each that is not counted.
        Time is from the first command until all services answer; ownstack's includes two small
        models, the plain side has none. Memory is proportional (PSS), a minute after the start. Ratios count;
        the other figures are of one machine.""",
    )
    told = [textwrap.fill(" ".join(part.split()), 118) for part in words]
    return "\n\n".join(["# Against the vendors' plain way", *told, text]) + "\n"


def this_machine() -> str:
    """Processors and memory, in words."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} processors and {size:.0f} GiB of memory"


def timed(what: str, action: Callable[[], Side]) -> Side:
    print(f"{what} ...", flush=True)
    side = action()
    print(
        f"  {side.seconds:.0f} s, {side.disk_bytes / 2**20:.0f} MiB, {side.memory / 2**20:.0f} MiB of memory",
        flush=True,
    )
    return side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, required=True, help="a new folder that every account may enter")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--idle", type=int, default=60, help="seconds of rest before memory is read")
    parser.add_argument("--cold", action="store_true", help="do not fill the caches by a first run of each")
    chosen = parser.parse_args()
    root, ready, other = chosen.work / "ours", chosen.work / "ready", chosen.work / "plain"
    shutil.rmtree(chosen.work, ignore_errors=True)
    first = timed(
        "ownstack, first run" if not chosen.cold else "ownstack",
        lambda: ours(root, 5 if not chosen.cold else chosen.idle),
    )
    keep_binaries(root, ready)
    down(root)
    if not chosen.cold:
        first = timed("ownstack, caches warm", lambda: ours(root, chosen.idle))
        down(root)
        timed("plain, first run", lambda: plain(other, ready, 5))
        shutil.rmtree(other)
    second = timed("plain", lambda: plain(other, ready, chosen.idle))
    text = table(first, second)
    print(text)
    if chosen.out is not None:
        commit = run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]).strip()
        versions = json.loads((ready / "versions.json").read_text())
        chosen.out.write_text(page(text, versions, commit, this_machine()))
    shutil.rmtree(chosen.work)


if __name__ == "__main__":
    main()
