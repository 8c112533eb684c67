"""Measure what the kit promises of speed, on a test host, and write docs/reference/performance.md.

    python -m tools.performance [--ansible PATH-OF-ANSIBLE-PLAYBOOK]

Needs root, and a machine that does nothing else meanwhile: the page says how busy it was.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ownstack.plan import Plan
from tests import results
from tests.e2e.conftest import Mirror
from tests.hosts import Host, Network, Options, lab
from tests.hosts.commands import cache
from tests.hosts.kit import CHECKOUT, Ownstack, wait_ready
from tests.hosts.serve import FileServer, folder

PAGE = CHECKOUT / "docs/reference/performance.md"
TIMES = 5
# the lab's chat model, and the same with as many times its blocks: as slow as models that people chat with
SMALL, BLOCKS = "smollm2:135m-q8_0", 6
# one question, answered through the web server and by the engine itself, streamed
STREAM = """
import json, sys, time, urllib.request
url, token, model, path = sys.argv[1:5]
ask = {"model": model, "stream": True, "options": {"num_predict": 64, "temperature": 0, "seed": 1},
       "temperature": 0, "max_tokens": 64,
       "messages": [{"role": "user", "content": "Tell me a long story about a ship."}]}
request = urllib.request.Request(url + path, json.dumps(ask).encode(), {"content-type": "application/json"})
if token != "-":
    request.add_header("authorization", "Bearer " + open(token).read())
began, first, words = time.monotonic(), None, 0
for line in urllib.request.urlopen(request, timeout=600):
    text = line.decode().strip().removeprefix("data:").strip()
    if not text.startswith("{"):
        continue
    event = json.loads(text)
    delta = event.get("message") or (event.get("choices") or [{}])[0].get("delta") or {}
    if delta.get("content"):
        first = first or time.monotonic()
        words += 1
print(json.dumps({"first": first - began, "rate": (words - 1) / (time.monotonic() - first)}))
"""


def seconds(action: Callable[[], Any], times: int = TIMES) -> list[float]:
    """Wall-clock seconds of each of `times` runs, sorted."""
    found = []
    for _ in range(times):
        began = time.monotonic()
        action()
        found.append(time.monotonic() - began)
    return sorted(found)


def unchanged(result: dict[str, Any]) -> None:
    """Raises where a run had something to do: then it is not what is to be measured."""
    if result["changed"]:
        raise RuntimeError(f"changed: {[one['name'] for one in result['operations'] if one['changed']]}")


def second_up(ownstack: Ownstack) -> list[float]:
    """The whole command, of which nothing may be left to do."""

    def once() -> None:
        unchanged(ownstack.json("up", "--yes", "--no-verify"))

    return seconds(once)


def detect(host: Host) -> list[float]:
    """From an open connection to the report."""
    code = (
        "import sys, time\nfrom ownstack.engine.session import Session, Target\n"
        "from ownstack.hardware.collect import collect\nfrom ownstack.hardware.interpret import interpret\n"
        "with Session(Target.parse(sys.argv[1], sys.argv[2])) as session:\n"
        f"  for _ in range({TIMES}):\n"
        "    began = time.monotonic(); interpret(collect(session)); print(time.monotonic() - began)\n"
    )
    argv = [str(CHECKOUT / ".venv/bin/python"), "-P", "-c", code, f"root@{host.hostname}", ""]
    variables = host.caller()
    argv[-1] = variables["OWNSTACK_SSH_CONFIG"]
    done = subprocess.run(argv, env=variables, capture_output=True, text=True, check=True, cwd="/")
    return sorted(map(float, done.stdout.split()))


def streams(host: Host, ownstack: Ownstack, models: dict[str, str]) -> dict[str, list[float]]:
    """First words (seconds) and words a second, in turns: through Open WebUI, and by the engine itself.

    `models`: the names by which the figures are told apart, and those that the engine knows.
    """
    email, password = ownstack.first_password("open_webui")
    sign_in = "curl -s -H 'content-type: application/json' -d @- http://127.0.0.1:8080/api/v1/auths/signin"
    token = json.loads(host.run(sign_in, data=json.dumps({"email": email, "password": password})).stdout)["token"]
    host.run("umask 077; cat > /root/token", data=token)
    host.run("cat > /root/stream.py", data=STREAM)
    # Open WebUI knows a new model from when somebody has looked at its list
    look = 'curl -sf -o /dev/null -H "authorization: Bearer $(cat /root/token)" http://127.0.0.1:8080/api/models'
    host.run(look)
    listed = json.loads(host.output("curl -s http://127.0.0.1:11434/api/tags"))["models"]
    sizes = {one["name"]: float(one["size"]) for one in listed}
    found: dict[str, list[float]] = {}
    for key, name in models.items():
        found[f"{key} bytes"] = [sizes[name]]
        ways = {
            "box": f"http://127.0.0.1:8080 /root/token {name} /api/chat/completions",
            "engine": f"http://127.0.0.1:11434 - {name} /api/chat",
        }
        for turn in range(TIMES + 1):
            for way, words in ways.items():
                said = json.loads(host.output(f"python3 /root/stream.py {words}"))
                if turn:  # the first turn loads the model
                    for what in ("first", "rate"):
                        found.setdefault(f"{key} {way} {what}", []).append(said[what])
    host.run("rm /root/token")
    return found


def chats(host: Host, ownstack: Ownstack, deep: str) -> dict[str, list[float]]:
    """`streams` with the box's own model, and with a slower one that is there for as long as this takes."""
    ownstack("models", "pull", deep, "--yes")
    found = streams(host, ownstack, {"small": SMALL, "deep": deep})
    for method, path, more in (("POST", "generate", {"keep_alive": 0}), ("DELETE", "delete", {})):
        ask = f"curl -sf -o /dev/null -X {method} -d @- http://127.0.0.1:11434/api/{path}"
        host.run(ask, data=json.dumps({"model": deep, **more}))
    return found


def playbook(plan: Plan) -> list[dict[str, Any]]:
    """The same state for Ansible: accounts, folders, releases that are there, files, units, services that run."""
    from ownstack.engine import units
    from ownstack.kit import activate

    activate()
    from roles import roles_of

    tasks: list[dict[str, Any]] = []
    for role in roles_of(plan):
        for artifact in plan.role(role.name).artifacts:
            if artifact.kind != "host":
                tasks.append({"stat": {"path": plan.layout.current(artifact.name)}})
        tasks.append({"file": {"path": plan.layout.config(role.name), "state": "directory"}})
        files = [one for one in role.files(plan) if not one.secret]
        for service in role.services(plan):
            account = plan.account(service.name)
            tasks.append({"user": {"name": account, "system": True, "create_home": False}})
            about = {"path": service.state_directory, "state": "directory", "owner": account, "group": account}
            tasks.append({"file": {**about, "mode": "0700"}})
            files += units.unit_files(plan, service)
        for one in files:
            tasks.append({"copy": {"dest": one.path, "content": "{% raw %}" + one.content + "{% endraw %}"}})
        for service in role.services(plan):
            unit = plan.layout.unit(service.name)
            tasks.append({"systemd_service": {"name": unit, "state": "started", "enabled": True}})
    return [{"hosts": "all", "gather_facts": True, "tasks": tasks}]


def ansible(program: str, host: Host, plan: Plan) -> list[float]:
    """A run of the playbook in which nothing changes."""
    book = host.folder / "book.json"
    book.write_text(json.dumps(playbook(plan)))
    config = f"-F {host.home}/.ssh/config -o ControlMaster=auto -o ControlPersist=60s"
    argv = [program, "-i", f"{host.hostname},", "-u", "root", str(book)]
    variables = {**host.caller(), "ANSIBLE_SSH_ARGS": config, "ANSIBLE_PIPELINING": "1", "ANSIBLE_NOCOLOR": "1"}

    def once() -> str:
        done = subprocess.run(argv, env=variables, capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        return done.stdout

    once()  # file modes and the like that it sees otherwise
    if "changed=0" not in once():
        raise RuntimeError("the playbook changes something each time")
    return seconds(once)


def inside(host: Host, mirror: Mirror) -> list[float]:
    """`./ownstack up` on the host itself."""
    host.run("mkdir -p /root/kit")
    without = [f"--exclude={name}" for name in (".git", ".venv*", "__pycache__", ".*_cache", "tests")]
    for source in (CHECKOUT, mirror.lab.kit):
        tar = subprocess.run(["tar", "-cz", *without, "-C", str(source), "."], capture_output=True, check=True)
        subprocess.run([*host.ssh(), "tar -xz -C /root/kit"], input=tar.stdout, check=True)
    host.run("cat > /root/kit/ownstack.toml", data=mirror.toml)
    run = "cd /root/kit && ./ownstack up --yes --no-verify --json"
    host.run(run)

    def once() -> None:
        unchanged(json.loads(host.run(run).stdout)["data"])

    return seconds(once)


def measure(host: Host, mirror: Mirror, deep: str, program: str | None) -> dict[str, list[float]]:
    """All figures of a host on which the box stands."""
    ownstack = mirror.ownstack(host)
    plan = Plan.model_validate(json.loads(host.output("cat /var/lib/ownstack/manifest.json"))["plan"])
    found = {"up over SSH": second_up(ownstack), "detect": detect(host), **chats(host, ownstack, deep)}
    if program:
        found["ansible"] = ansible(program, host, plan)
    found["up local"] = inside(host, mirror)
    return found


def page(found: dict[str, list[float]], busy: str) -> str:
    """The page, from what was measured."""
    middle = {name: statistics.median(values) for name, values in found.items()}
    rows = [
        ("second `up`, on the box itself", "up local", "2 s"),
        ("second `up`, over SSH", "up over SSH", "3 s"),
        ("detection, from an open SSH connection", "detect", "0.5 s"),
    ]
    lines = [f"| {what} | {middle[key]:.2f} s | {found[key][0]:.2f} to {found[key][-1]:.2f} s | {goal} |"
             for what, key, goal in rows]  # fmt: skip
    if "ansible" in found:
        span = f"{found['ansible'][0]:.2f} to {found['ansible'][-1]:.2f} s"
        lines.append(
            f"| the same state as an Ansible playbook, over SSH, nothing to do | {middle['ansible']:.2f} s | {span} | |"
        )
    models = [("SmolLM2 of 135 M parameters, Q8_0", "small"), (f"the same with {BLOCKS} times its blocks", "deep")]
    asked = [f"| {what} | {middle[f'{key} bytes'] / 1e9:.2f} GB | {middle[f'{key} engine rate']:.0f} "
             f"| {middle[f'{key} box rate'] / middle[f'{key} engine rate']:.2f} times "
             f"| {(middle[f'{key} box first'] - middle[f'{key} engine first']) * 1000:.0f} ms |"
             for what, key in models]  # fmt: skip
    five = middle["five at once"] / middle["one of five"]
    parts = {"rows": "\n".join(lines), "chats": "\n".join(asked), "five": five, "at_once": middle["five at once"]}
    today = datetime.datetime.now(datetime.UTC).date()
    return HEAD.format(busy=busy, times=TIMES, blocks=BLOCKS, today=today, commit=results.commit(), **parts)


HEAD = """# Performance

<!-- Written by `python -m tools.performance` from what it measured. -->

Measured on a test host (Debian 12 under systemd-nspawn, all four services running) of a machine with two cores; the
median and the span of {times} runs. {busy} Figures of a busy machine are too high.

Measured on {today} at commit {commit}.

| what | median | span | goal |
| --- | --- | --- | --- |
{rows}

The whole command is timed, from its start to its end, without `verify`. The playbook has a task for each account,
folder, file, unit and service of the box, SSH pipelining and a kept connection; it knows nothing of models, of the
secrets, or of what is set inside the services, which `up` looks after too.

## A chat through the box

Through Open WebUI against the engine alone, same question, in turns; the engine has one thread. The goal is 0.97 times
the tokens a second, and the first words 50 ms later.

| model | size | engine alone, tokens a second | through Open WebUI | first words later |
| --- | --- | --- | --- | --- |
{chats}

Open WebUI takes about as much processor time for a token of any model. So on a busy machine it shows with the first
model most, which is many times quicker than those that people chat with. The second one is as slow as such a model,
and answers like the first one: it has {blocks} times the blocks, of which the further ones add nothing.

## Compose, on paper

No container runtime runs on the test hosts. `docker compose up -d` with nothing to do asks the daemon for each
container and compares a hash of its description: a fraction of a second. It does not look at what is inside: a changed
setting, a missing model, an unpublished workflow or a lost account stay as they are.

## Several hosts

A second `up` on five hosts at once, five commands side by side: {at_once:.2f} s, {five:.2f} times the time of one (goal
1.5). Each command is a process of its own that reads the machine and builds the plan; the five share two cores with the
hosts. What makes one quicker makes this ratio larger.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.performance", description=__doc__)
    parser.add_argument("--ansible", default=shutil.which("ansible-playbook"), help="path of ansible-playbook")
    named = parser.parse_args()
    with Network.open() as network, tempfile.TemporaryDirectory(dir=cache().parent) as root:
        built = lab.build(Path(root))
        lab.languages(built)
        lab.packages_of_n8n(built)
        registry = lab.models(built, Path(root, "registry"))
        deep = lab.deep_model(built, registry, BLOCKS)
        with FileServer(folder(built.mirror), network.gateway) as files, registry.serve(network.gateway) as models:
            mirror = Mirror(built, files, models)
            host = Host(network, "measured")
            try:
                host.boot()
                mirror.ownstack(host)("up", "--yes", check=False)
                wait_ready(host)
                before = os.getloadavg()[0]
                found = measure(host, mirror, deep, named.ansible)
                print(json.dumps(found))
                found |= several(network, mirror, host.freeze())
            finally:
                host.destroy()
            print(json.dumps(found))
            PAGE.write_text(page(found, f"Its load was {before:.1f} before the first figure was taken."))


def several(network: Network, mirror: Mirror, layer: Path, number: int = 5) -> dict[str, list[float]]:
    """A second `up` of one host and of `number` at once, in turns; clones of one host."""
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(Host(network, f"many{n}", Options(lower=(layer,)))) for n in range(number)]
        for host in hosts:
            host.boot()
            wait_ready(host)
        kits = [mirror.ownstack(host) for host in hosts]

        def again(kit: Ownstack) -> None:
            unchanged(kit.json("up", "--yes", "--no-verify"))

        with ThreadPoolExecutor(number) as pool:
            list(pool.map(again, kits))
            found: dict[str, list[float]] = {"one of five": [], "five at once": []}
            for _ in range(TIMES):
                found["one of five"] += seconds(lambda: again(kits[0]), 1)
                found["five at once"] += seconds(lambda: list(pool.map(again, kits)), 1)
    return {name: sorted(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
