"""What `verify` looks at in Qdrant."""

from __future__ import annotations

from ownstack.plan import Plan
from ownstack.verify.check import Check, Context, Outcome
from roles.qdrant import NAME, config_path


def url(plan: Plan) -> str:
    return f"http://127.0.0.1:{plan.role(NAME).ports['port']}"


def keys(context: Context) -> Outcome:
    data = context.step("qdrant.probe", url=url(context.plan), secrets_dir=context.plan.layout.secrets)
    reader = f"read-only key reads {data['reader_reads']} and writes {data['reader_writes']}"
    measured = f"without key {data['without_key']}, {reader}"
    right = data["without_key"] == 401 and data["reader_reads"] == 200 and data["reader_writes"] == 403
    return (Outcome.ok if right else Outcome.failed)(measured, **{k: v for k, v in data.items() if k != "collections"})


def config_there(context: Context) -> Outcome:
    """Qdrant ignores a missing configuration file and would listen openly."""
    path = config_path(context.plan)
    file = context.host.file(path)
    if not file.exists:
        return Outcome.failed(f"{path} is missing")
    return Outcome.ok(f"{path} is there, mode {file.mode:04o}", mode=file.mode)


def version(context: Context) -> Outcome:
    wanted = context.plan.role(NAME).artifact("qdrant").version
    data = context.step("qdrant.probe", url=url(context.plan), secrets_dir=context.plan.layout.secrets)
    measured = f"Qdrant {data['version']} runs, {wanted} is recorded"
    return (Outcome.ok if data["version"] == wanted else Outcome.failed)(measured, version=data["version"])


def checks(plan: Plan) -> list[Check]:
    again = "run `ownstack up`, it writes the configuration again and restarts Qdrant"
    return [
        Check("qdrant-config", "Qdrant's configuration file is there", config_there, again, NAME),
        Check("qdrant-key-required", "Qdrant refuses without its key", keys, again, NAME),
        Check("qdrant-version", "Qdrant runs in the recorded version", version, "`ownstack restart qdrant`", NAME),
    ]
