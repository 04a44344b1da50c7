"""From the tables of any earlier release to those of this one: once, whole, and with everything kept."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from killed import killed
from stores import contents, earlier

from penstock.config.tenants import Access
from penstock.store.backup import write_backup
from penstock.store.places import Opened, default_url, open_access
from penstock.store.restore import restore
from penstock.store.sql.migrations import STEPS, migrate, schema_of
from penstock.store.sql.tables import METADATA
from penstock.store.status import check
from penstock.wire.errors import Problem

RELEASED = {1: "882bb761e68afc12", 2: "64e5a13b779ac8a8"}
"""Of each schema that was released, the digest of its statements: none may be changed any more."""


@pytest.fixture
def opened(tmp_path: Path):
    opened = open_access(tmp_path, default_url(tmp_path))
    yield opened
    opened.store.close()


@pytest.mark.parametrize("schema", range(1, len(STEPS) + 1))
def test_every_earlier_schema_comes_to_this_one_with_all_it_held(opened: Opened, schema: int) -> None:
    """Rows are the same before and after, the tables are this release's, and the next time nothing is due."""
    earlier(opened, schema)
    before = contents(opened)
    assert opened.store.prepare() == (schema, len(STEPS))
    after = contents(opened)
    assert {name: after[name] for name in before if name != "facts"} == {
        name: rows for name, rows in before.items() if name != "facts"
    }
    assert opened.store.read().version == 7
    assert opened.store.prepare() == (len(STEPS), len(STEPS))
    assert [finding for finding in check(opened) if finding.problem] == []


def test_the_steps_make_the_tables_that_are_read(opened: Opened) -> None:
    """Columns with their order, kind and whether they may be empty; keys, and what is indexed or unique."""
    opened.database.create()
    migrate(opened.database)
    with opened.database.read() as connection:
        inspector = sa.inspect(connection)
        assert set(inspector.get_table_names()) == set(METADATA.tables)
        for table in METADATA.tables.values():
            made = {column["name"]: column for column in inspector.get_columns(table.name)}
            assert list(made) == [column.name for column in table.columns]
            for column in table.columns:
                assert made[column.name]["nullable"] == column.nullable, column
                assert type(made[column.name]["type"].as_generic()) is type(column.type.as_generic()), column
            assert inspector.get_pk_constraint(table.name)["constrained_columns"] == [
                column.name for column in table.primary_key
            ]
            indexed = {tuple(index["column_names"]) for index in inspector.get_indexes(table.name)}
            assert indexed == {tuple(column.name for column in index.columns) for index in table.indexes}
            unique = {tuple(found["column_names"]) for found in inspector.get_unique_constraints(table.name)}
            assert unique == {(column.name,) for column in table.columns if column.unique}


def test_what_was_released_is_not_changed() -> None:
    """A store in the world has run these statements; another change is another step."""
    digests = {n: hashlib.sha256("\n".join(step).encode()).hexdigest()[:16] for n, step in enumerate(STEPS, 1)}
    assert digests == RELEASED


def test_a_killed_migration_leaves_the_schema_that_it_found(opened: Opened, tmp_path: Path) -> None:
    """SIGKILL before any statement of it: the rows and the schema are as before, and the next one does it all."""
    earlier(opened, 1)
    before = contents(opened)
    after = 0
    while killed(tmp_path, "migrate", tmp_path / "none", after):
        with opened.database.read() as connection:
            schema = schema_of(connection)
        if schema == 1:
            assert contents(opened) == before
        else:
            assert schema == len(STEPS)
        after += 2
    assert after > 6 and [finding for finding in check(opened) if finding.problem] == []


def test_two_that_migrate_at_once_do_it_once(opened: Opened, tmp_path: Path) -> None:
    """The second waits for the first and finds nothing due."""
    earlier(opened, 1)
    code = (
        "import sys; from pathlib import Path; from penstock.store.places import default_url, open_access; "
        "home = Path(sys.argv[1]); print(*open_access(home, default_url(home)).store.prepare())"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate(timeout=60)[0].split() for process in both)
    newest = str(len(STEPS))
    assert said == [["1", newest], [newest, newest]]


async def test_a_gateway_at_an_older_store_says_what_to_do_and_then_goes_on(opened: Opened) -> None:
    """It does not migrate itself: whoever keeps the store does."""
    earlier(opened, 1)
    watch = opened.store.watch(0.01)
    lost = await anext(watch)
    assert isinstance(lost, Problem) and "penstock store migrate" in lost.message
    opened.store.prepare()
    assert isinstance(await anext(watch), Access)


@pytest.mark.parametrize("schema", range(1, len(STEPS) + 1))
def test_a_backup_of_an_earlier_schema_is_restored_into_this_one(opened: Opened, tmp_path: Path, schema: int) -> None:
    """What is backed up before a migration comes back after it."""
    earlier(opened, schema)
    before = contents(opened)
    write_backup(opened.database, opened.secret, tmp_path / "b", now=1.0)
    opened.store.prepare()
    restore(opened, tmp_path / "b", now=2.0, replace=True)
    after = contents(opened)
    assert all(after[name] == rows for name, rows in before.items() if name not in ("facts", "audit"))
    assert [finding for finding in check(opened) if finding.problem] == []
