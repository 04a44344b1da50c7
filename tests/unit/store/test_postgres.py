"""The store in PostgreSQL: the same acts, the same chain, the same recovery as in SQLite."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from stores import contents, earlier
from usage import row

from penstock.config.tenants import Access
from penstock.store.audit import Act
from penstock.store.backup import read_rows, write_backup
from penstock.store.places import Opened, default_url, open_access
from penstock.store.representations import NewKey, NewTenant, Rotation, TenantChange
from penstock.store.restore import restore
from penstock.store.spill import Spill
from penstock.store.sql.database import Database
from penstock.store.sql.migrations import STEPS
from penstock.store.sql.tables import METADATA
from penstock.store.status import check
from penstock.wire.errors import Problem

pytestmark = pytest.mark.debian
USER = "postgres"


@dataclass
class Server:
    """A cluster of its own.  PostgreSQL refuses to run as root, so that root runs it as Debian's user."""

    directory: Path
    bin: Path
    port: int

    def run(self, program: str, *args: str) -> None:
        command = [str(self.bin / program), *args]
        if os.geteuid() == 0:
            command = ["runuser", "-u", USER, "--", *command]
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.directory} -F"
        log = str(self.directory / "log")
        self.run("pg_ctl", "-D", str(self.directory / "data"), "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.directory / "data"), "-m", "immediate", "-w", "stop")

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:pa55word@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("Debian's postgresql is not installed")
    directory = Path(tempfile.mkdtemp(prefix="pg"))
    if os.geteuid() == 0:
        shutil.chown(directory, USER)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = Server(directory, found[-1].parent, port)
    server.run("initdb", "-D", str(directory / "data"), "-U", USER, "-A", "trust", "--no-sync")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def opened(server: Server, tmp_path: Path) -> Iterator[Opened]:
    """A store in a database of its own."""
    name = f"t{abs(hash(str(tmp_path))) % 10**9}"
    engine = sa.create_engine(
        server.url("postgres").replace("postgresql", "postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    opened = open_access(tmp_path, server.url(name))
    opened.store.prepare()
    yield opened
    opened.store.close()


def acts(opened: Opened):
    counter = itertools.count(1)
    return opened.administration(lambda: 1000.0, lambda n: next(counter).to_bytes(n, "big"))


def test_the_same_acts_and_the_same_chain(opened):
    """Keys and tenants are made, changed, rotated and revoked; every act has its row; the chain is whole."""
    office = acts(opened)
    office.create_tenant(None, NewTenant(name="lab", models=frozenset("ab")))
    issued = office.create_key(None, NewKey(tenant="lab"))
    office.rotate_key(None, issued.id, Rotation(grace_s=5))
    office.set_tenant(None, "lab", TenantChange(weight=2.0))
    office.revoke_key(None, issued.id)
    access = opened.store.read()
    assert access.keys[0].revoked_at == 1000.0 and {tenant.weight for tenant in access.tenants} == {1.0, 2.0}
    assert opened.store.audit.verify() == 5


def test_tampering_is_found(opened):
    """A changed row and a cut tail."""
    office = acts(opened)
    for _ in range(3):
        office.create_key(None, NewKey())
    database = opened.store._database
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE audit SET actor = 'x' WHERE seq = 2")
    with pytest.raises(Problem, match="Row 2 was changed"):
        opened.store.audit.verify()
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM audit")
    with pytest.raises(Problem, match="missing"):
        opened.store.audit.verify()


def test_many_writers_make_one_chain_and_one_sequence_of_versions(opened):
    """Rows and versions written at the same time are all there, in one order."""
    office = acts(opened)
    act = Act(actor="a", action="b", subject="c")
    before = opened.store.read().version

    def write() -> None:
        for _ in range(5):
            opened.store.audit.append([act], 1.0)
            office.create_tenant(None, NewTenant(name=f"t{threading.get_ident()}-{_}"))

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert opened.store.audit.verify() == 40
    assert opened.store.read().version == before + 20


def test_many_that_start_together_make_one_store(server, opened, tmp_path):
    """Migrating and filling happen once, whoever comes first."""
    name = f"{tmp_path.name[-8:].replace('-', '_')}_x".lower().lstrip("0123456789_")
    with opened.store._database._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    problems: list[BaseException] = []

    def start() -> None:
        one = open_access(tmp_path, server.url(name))
        try:
            one.store.prepare()
        except BaseException as error:
            problems.append(error)
        finally:
            one.store.close()

    starters = [threading.Thread(target=start) for _ in range(6)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert problems == []


def test_usage_adds_up_the_same(opened):
    """Rows are written once, sums are integers, and names with quotes are names."""
    opened.ledger.write([row(f"r{number}", cost_nusd=2**43 + 1) for number in range(600)])
    opened.ledger.write([row("r1"), row("x", tenant="o'neill")])
    quoted, total = opened.ledger.totals()
    assert (quoted.tenant, quoted.requests) == ("o'neill", 1)
    assert (total.requests, total.prompt_tokens, total.cost_nusd) == (600, 6000, 600 * (2**43 + 1))
    spent = {found.scope: found.requests for found in opened.ledger.spent(0.0, without="none")}
    assert spent == {"key:k": 601, "tenant:t": 601, "tenant:top": 601}


def test_usage_waits_while_it_is_down(server, opened):
    """What was used while the database was away is in it once it is back."""
    spill = Spill(opened.spill, "g", opened.ledger)
    server.stop()
    try:
        for number in range(5):
            spill.add(row(f"r{number}"))
        with pytest.raises(Problem):
            spill.move()
    finally:
        server.start()
    assert spill.move() == 5 and opened.ledger.totals()[0].requests == 5


async def test_while_it_is_down_watchers_know_and_then_go_on(server, opened):
    """A problem and no exception, without the password; what was written before is there when it is back."""
    acts(opened).create_key(None, NewKey())
    watch = opened.store.watch(0.05)
    assert isinstance(await anext(watch), Access)
    await asyncio.to_thread(server.stop)
    try:
        async with asyncio.timeout(30):
            lost = await anext(watch)
        assert isinstance(lost, Problem) and lost.code == "store_unavailable" and "pa55word" not in lost.message
        with pytest.raises(Problem) as refused:
            await asyncio.to_thread(acts(opened).create_key, None, NewKey())
        assert refused.value.code == "store_unavailable"
        known = opened.store.last_known()
        assert known is not None and len(known.keys) == 1
    finally:
        await asyncio.to_thread(server.start)
    async with asyncio.timeout(30):
        back = await anext(watch)
    assert isinstance(back, Access) and len(back.keys) == 1


def test_a_database_that_is_not_there_is_unavailable(server):
    """Named without the password."""
    with pytest.raises(Problem) as refused, Database(server.url("nowhere")).read():
        pass
    assert refused.value.code == "store_unavailable"
    assert "nowhere" in refused.value.message and "pa55word" not in refused.value.message


def test_a_store_moves_to_the_other_database_and_back(opened, tmp_path):
    """Every row the same, keys and chain with it: from SQLite into PostgreSQL, from there into SQLite."""
    lite = open_access(tmp_path, default_url(tmp_path))
    lite.store.prepare()
    office = acts(lite)
    office.create_tenant(None, NewTenant(name="o'neill", weight=0.1))
    issued = office.create_key(None, NewKey(tenant="o'neill", name="\u2603", expires_in_s=1e9))
    lite.ledger.write([row(f"r{number}", at=number / 7, cost_nusd=2**53 + 1) for number in range(1_500)])
    before = contents(lite)
    write_backup(lite.database, lite.secret, tmp_path / "there", now=5.0)
    restore(opened, tmp_path / "there", now=6.0, replace=True)
    assert [finding for finding in check(opened) if finding.problem] == []
    middle = contents(opened)
    write_backup(opened.database, opened.secret, tmp_path / "back", now=7.0)
    restore(lite, tmp_path / "back", now=8.0, replace=True)
    assert [finding for finding in check(lite) if finding.problem] == []
    after = contents(lite)
    for name in ("tenants", "api_keys", "usage"):
        assert before[name] == middle[name] == after[name]
    assert set(before["audit"]) < set(middle["audit"]) < set(after["audit"])
    assert opened.store.read().keys[0].id == lite.store.read().keys[0].id == issued.id
    lite.store.close()


def test_a_backup_is_one_moment_of_it(opened, tmp_path):
    """What is written together while it runs is in it together or not at all."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            opened.ledger.write([row(f"a{number}")])
            opened.ledger.write([row(f"b{number}")])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            write_backup(opened.database, opened.secret, tmp_path / "b", now=5.0)
            ids = [values[0] for head, values in read_rows(tmp_path / "b", opened.secret) if head.name == "usage"]
            # Rows come one by one, so that the second of each pair is there unless it is the newest.
            assert 0 <= sum(id[0] == "a" for id in ids) - sum(id[0] == "b" for id in ids) <= 1
    finally:
        stop.set()
        writer.join()


def test_a_restore_that_fails_leaves_it_as_it_was(opened, tmp_path):
    """Tables that were emptied and rows that were written are undone together."""
    acts(opened).create_key(None, NewKey())
    opened.ledger.write([row("r1")])
    write_backup(opened.database, opened.secret, tmp_path / "b", now=5.0)
    before = contents(opened)

    def stop(done: int, total: int) -> None:
        raise Problem("store_unavailable", "scripted")

    with pytest.raises(Problem, match="scripted"):
        restore(opened, tmp_path / "b", now=6.0, replace=True, progress=stop)
    assert contents(opened) == before and opened.store.audit.verify() == 1


@pytest.mark.parametrize("schema", range(1, len(STEPS)))
def test_an_earlier_schema_comes_to_this_one(opened, schema):
    """In one transaction, with what it held."""
    with opened.database.write() as connection:
        METADATA.drop_all(connection)
    earlier(opened, schema)
    before = contents(opened)
    assert opened.store.prepare() == (schema, len(STEPS))
    after = contents(opened)
    assert all(after[name] == rows for name, rows in before.items() if name != "facts")
    assert [finding for finding in check(opened) if finding.problem] == []
