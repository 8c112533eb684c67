"""Updates that go wrong: what is spoiled, on a box of older versions, before `upgrade` is called.

An update of Open WebUI or n8n is spoiled in the release that lies ready on the clone, one of Ollama or Qdrant in its
vendor's archive, which a copy of the kit then names. Faults of the host itself are made on the host.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.hosts import Host, lab
from tests.hosts.commands import run
from tests.hosts.kit import wait_ready

WEBUI = "/opt/ownstack/open_webui/releases/0.12.4-*/lib/python3.*/site-packages/open_webui"
N8N = "/opt/ownstack/n8n/releases/2.41.1-*/node_modules"
STATE = "/var/lib/ownstack/run/upgrade.json"
SECRET = "/etc/ownstack/secrets/n8n_encryption_key"
# the last migration is followed by one that has moved the passwords away when it stops
HALF_WEBUI = r"""
import glob, pathlib, re
(folder,) = glob.glob('WEBUI/migrations/versions')
texts = [path.read_text() for path in pathlib.Path(folder).glob('*.py')]
def found(name):
    said = re.compile(rf"(?m)^{name}\b.*?=\s*['\"](\w+)['\"]")
    return {one for text in texts for one in said.findall(text)}
(head,) = found('revision') - found('down_revision')
pathlib.Path(folder, 'ffffffffffff_half.py').write_text(f'''
from alembic import op
revision, down_revision, branch_labels, depends_on = 'ffffffffffff', '{head}', None, None
def upgrade():
    op.rename_table('auth', 'auth_old')
    raise RuntimeError('stopped half-way')
def downgrade():
    pass
''')
"""
# the last migration writes until there is no space left
FILLS_WEBUI = HALF_WEBUI.replace("_half", "_fills").replace(
    """op.rename_table('auth', 'auth_old')
    raise RuntimeError('stopped half-way')""",
    """op.execute('CREATE TABLE fills (data BLOB)')
    while True:
        op.execute('INSERT INTO fills VALUES (zeroblob(16777216))')""",
)
HALF_N8N = """
import glob, pathlib
(file,) = map(pathlib.Path, glob.glob('N8N/@n8n/db/dist/migrations/sqlite/index.js'))
file.write_text(file.read_text() + '''
class HalfWay1999999999999 {
    constructor() { this.transaction = false; }
    async up({ queryRunner }) {
        await queryRunner.query('ALTER TABLE webhook_entity RENAME TO webhook_entity_old');
        throw new Error('stopped half-way');
    }
}
exports.sqliteMigrations.push(HalfWay1999999999999);
''')
"""
REFUSES = """
import glob, pathlib
(file,) = map(pathlib.Path, glob.glob('WEBUI/routers/auths.py'))
text = file.read_text()
whole, sign_in, inner = text.partition('async def signin(')
before, line, after = inner.partition('    if not ENABLE_PASSWORD_AUTH:')
file.write_text(whole + sign_in + before + '    raise HTTPException(500)\\n' + line + after)
"""
# in place of n8n's program: another key for all that follows, or no start at all
OTHER_KEY = """
const fs = require('fs'), file = process.env.N8N_USER_FOLDER + '/.n8n/config';
process.env.N8N_ENCRYPTION_KEY = 'another-key-than-the-one-of-this-box';
fs.writeFileSync(file, JSON.stringify({ encryptionKey: process.env.N8N_ENCRYPTION_KEY }), { mode: 0o600 });
"""
NO_KEY = "require('fs').unlinkSync(process.env.N8N_USER_FOLDER + '/.n8n/config'); process.exit(1);"
# it starts, is ready and signs people in, and no webhook says what its workflow said
WRONG_ANSWERS = """
{
    const served = require('http').Server.prototype, emit = served.emit;
    served.emit = function (event, request, response) {
        if (event !== 'request' || !request.url.startsWith('/webhook/')) return emit.apply(this, arguments);
        response.setHeader('Content-Type', 'application/json');
        response.end('{"answer": ""}');
        return true;
    };
}
"""
SQUATTER = """
import os, socket, time
def old(): return '2.40.7' in os.readlink('/opt/ownstack/n8n/current')
while old(): time.sleep(0.02)
held = socket.socket()
held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
while True:
    try: held.bind(('127.0.0.1', 5678)); break
    except OSError: time.sleep(0.02)
held.listen()
while not old(): time.sleep(0.02)
"""
# fills the small disk as soon as the upgrade is that far, and frees it when it has gone back
FILLER = """
import json, os, time
def status():
    try: return json.load(open('STATE'))['status']
    except (OSError, ValueError, KeyError): return ''
while status() != 'WHEN': time.sleep(0.005)
with open('/var/lib/ownstack/filler', 'wb', 0) as out:
    try:
        while True: out.write(bytes(1 << 20))
    except OSError: out.truncate(out.seek(0, 2) - (1 << 20))  # the little that file systems keep for root
while status() == 'WHEN': time.sleep(0.05)
os.unlink('/var/lib/ownstack/filler')
"""


@dataclass
class Case:
    """One clone, and the kit that its upgrade is called with."""

    box: Host
    built: lab.Lab
    folder: Path
    kit: Path

    def patch(self, code: str) -> None:
        """Run Python on the host that changes files of the release lying ready."""
        self.box.run("python3 -", data=code.replace("WEBUI", WEBUI).replace("N8N", N8N))

    def meanwhile(self, code: str) -> None:
        """Run Python on the host while the upgrade is going on."""
        self.box.run("cat > /root/meanwhile.py", data=code.replace("STATE", STATE))
        self.box.run("systemd-run -q --unit=meanwhile python3 /root/meanwhile.py")

    def before_n8n(self, code: str) -> None:
        """Have n8n's program begin with something else."""
        self.box.run(f"cd {N8N}/n8n/bin && cat - n8n > new && cat new > n8n && rm new", data=f"{code}\n")
        self.box.run(f"cd {N8N}/n8n/bin && sed -i '/^#!/d' n8n && sed -i '1i #!/usr/bin/env node' n8n")

    def archive(self, role: str, version: str, change: Callable[[Path], None], include: tuple[str, ...] = ()) -> None:
        """Let the kit name an archive with another version whose content was changed."""
        table = self._table(role)
        row = self._row(table)
        made = next(one for one in self.built.made.values() if one.url == row["url"])
        url = row["url"].replace(row["version"], version)
        place = self.built.mirror / lab.place_of(url)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            run("tar", "-C", name, "-xf", made.path)
            change(Path(name))
            run("tar", "-C", name, "-c", "-I", "zstd -1" if url.endswith(".zst") else "gzip -1", "-f", place, ".")
        digest = hashlib.sha256(place.read_bytes()).hexdigest()
        row.update(url=url, version=version, sha256=digest, size=place.stat().st_size)
        if include:
            row["unpack"]["include"] = list(include)
        self._write(role, table)

    def wrong_hash(self, role: str) -> None:
        """The lock names the newer version with a hash that no file has."""
        table = self._table(role)
        self._row(table)["sha256"] = "0" * 64
        self._write(role, table)

    def _table(self, role: str) -> lab.Row:
        return tomllib.loads((self.kit / "roles" / role / "artifacts.toml").read_text())

    def _row(self, table: lab.Row) -> lab.Row:
        rows = (row for artifact in table["artifact"] for row in artifact["variant"])
        found: lab.Row = next(row for row in rows if row.get("url") and lab.fits(row))
        return found

    def _write(self, role: str, table: lab.Row) -> None:
        own = self.folder / "kit"
        if self.kit != own:
            shutil.copytree(self.kit, own)
            self.kit = own
        (own / "roles" / role / "artifacts.toml").write_text(lab.toml(table))

    def small_disk(self, spare_mib: int) -> None:
        """The data on a disk of its own with so much free space."""
        # bound, not moved: what lies below a shared mount cannot be
        self.box.run(
            "systemctl stop 'ownstack-*' && mkdir /run/small && mount -t tmpfs -o mode=755 small /run/small && "
            "cp -a /var/lib/ownstack/. /run/small/ && mount --bind /run/small /var/lib/ownstack"
        )
        used = int(self.box.output("df --output=used -m /run/small").split()[-1])
        self.box.run(f"mount -o remount,size={used + spare_mib}m /run/small")
        self.box.run("systemctl start ownstack-qdrant ownstack-ollama ownstack-open-webui ownstack-n8n")
        wait_ready(self.box)

    def enough(self) -> None:
        """A disk that has what an upgrade of Open WebUI asks for, and little more."""
        kept = self.box.output("du -sm /var/lib/ownstack/open_webui /var/lib/ownstack/qdrant").splitlines()
        self.small_disk(200 + 3 * sum(int(line.split()[0]) for line in kept))

    def filled_by(self, code: str) -> None:
        self.patch(code)
        self.enough()

    def filled(self, status: str) -> None:
        """The disk has enough space until the upgrade is that far, and then none."""
        self.enough()
        self.meanwhile(FILLER.replace("WHEN", status))


def script(path: str, text: str) -> Callable[[Path], None]:
    """Put a script in the place of a program."""

    def change(tree: Path) -> None:
        (tree / path).write_text(text)
        (tree / path).chmod(0o755)

    return change


def wrapped(text: str) -> Callable[[Path], None]:
    """Qdrant's own program behind a script."""

    def change(tree: Path) -> None:
        (tree / "qdrant").rename(tree / "qdrant.real")
        script("qdrant", text)(tree)

    return change


@dataclass(frozen=True)
class Bad:
    """A bad update of `service`; `code` is that of its error, `options` are those of `upgrade`."""

    name: str
    service: str
    spoil: Callable[[Case], object]
    code: str = "upgrade-reverted"
    options: tuple[str, ...] = ("--no-rehearse",)


REAL = 'exec "${0%/*}/qdrant.real" "$@"'
BOTH = ("qdrant", "qdrant.real")
UPDATES = (
    Bad("the file is not the one that the lock names", "ollama", lambda case: case.wrong_hash("ollama"),
        code="fetch-hash"),
    Bad("the program crashes", "ollama",
        lambda case: case.archive("ollama", "0.34.3", script("bin/ollama", "#!/bin/sh\nexit 7\n"))),
    Bad("the program starts and answers wrongly: its models do not load", "ollama",
        lambda case: case.archive("ollama", "0.34.3", script("lib/ollama/llama-server", "#!/bin/sh\nexit 1\n"))),
    Bad("the program crashes", "qdrant",
        lambda case: case.archive("qdrant", "1.16.4", script("qdrant", "#!/bin/sh\nexit 7\n"))),
    Bad("the program starts and answers wrongly: the collections are not there", "qdrant",
        lambda case: case.archive(
            "qdrant", "1.16.4",
            wrapped(f"#!/bin/sh\nexport QDRANT__STORAGE__STORAGE_PATH=/tmp/elsewhere\n{REAL}\n"), BOTH)),
    Bad("time-out: the program runs and never answers", "qdrant",
        lambda case: case.archive("qdrant", "1.16.4", script("qdrant", "#!/bin/sh\nexec sleep infinity\n")),
        options=("--patience", "20")),
    Bad("the migration stops half-way", "open_webui", lambda case: case.patch(HALF_WEBUI)),
    Bad("the migration stops half-way, in the rehearsal", "open_webui", lambda case: case.patch(HALF_WEBUI),
        code="rehearsal-failed", options=("--rehearse",)),
    Bad("the gate fails: nobody can sign in", "open_webui", lambda case: case.patch(REFUSES)),
    Bad("the migration stops half-way", "n8n", lambda case: case.patch(HALF_N8N)),
    Bad("the key is lost: the new version deletes it", "n8n", lambda case: case.before_n8n(NO_KEY)),
    Bad("the key is changed: stored credentials cannot be read", "n8n", lambda case: case.before_n8n(OTHER_KEY)),
    Bad("the key is lost before the upgrade", "n8n", lambda case: case.box.run(f"mv {SECRET} /root/key"),
        code="n8n-key"),
    Bad("the gate fails: workflows answer wrongly", "n8n", lambda case: case.before_n8n(WRONG_ANSWERS)),
    Bad("the port is taken while the service stands still", "n8n", lambda case: case.meanwhile(SQUATTER)),
    Bad("the disk is too small for a snapshot", "n8n", lambda case: case.small_disk(40), code="disk-full"),
    Bad("the disk fills up during the snapshot", "open_webui",
        lambda case: case.filled("taking"),
        code="disk-full"),
    Bad("the disk fills up during the migration", "open_webui", lambda case: case.filled_by(FILLS_WEBUI)),
    Bad("the disk fills up when the new version has started", "open_webui",
        lambda case: case.filled("taken")),
)  # fmt: skip
