"""Tenants and keys at rest: who sees which version, and what is left when the store is lost."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from penstock.config.tenants import TOP, Access
from penstock.store.places import default_url, open_access
from penstock.store.representations import NewKey, NewTenant
from penstock.store.snapshot import read_snapshot
from penstock.store.sql.database import Database
from penstock.wire.credentials import digest_of
from penstock.wire.errors import Problem


def test_a_new_store_has_the_top_tenant_and_no_key(office):
    """Nothing opens it, and everything hangs below one tenant."""
    access = office.store.read()
    assert [tenant.name for tenant in access.tenants] == [TOP] and not access.keys


def test_keys_survive_a_restart_and_their_secrets_are_nowhere(office):
    """A second handle knows the key by its secret; no file below PENSTOCK_HOME contains it."""
    issued = office.acts.create_key(None, NewKey(name="ci"))
    office.store.close()
    again = open_access(office.home, default_url(office.home))
    again.store.prepare()
    [key] = again.store.read().keys
    assert key.digest == digest_of(issued.secret.encode(), again.secret) and key.name == "ci"
    again.store.close()
    for path in office.home.iterdir():
        assert issued.secret.encode() not in path.read_bytes(), path
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_secret_has_256_bits_and_is_never_the_same(tmp_path: Path):
    """It begins with pk- and is 43 characters of base64 after that."""
    opened = open_access(tmp_path, default_url(tmp_path))
    opened.store.prepare()
    acts = opened.administration(lambda: 1.0, os.urandom)
    found = {acts.create_key(None, NewKey()).secret for _ in range(3)}
    assert len(found) == 3 and all(secret.startswith("pk-") and len(secret) == 46 for secret in found)
    opened.store.close()


def test_a_secret_that_others_can_read_is_refused(office):
    """The servers' secret has to be its owner's alone."""
    (office.home / "secret").chmod(0o644)
    with pytest.raises(Problem, match="chmod 600") as refused:
        open_access(office.home, default_url(office.home))
    assert refused.value.code == "invalid_setting"


def test_what_others_could_write_is_its_owners_alone_again(office, caplog: pytest.LogCaptureFixture):
    """Store, snapshot and the end of the audit log: their modes are mended and told; a folder's is only told."""
    office.acts.create_tenant(None, NewTenant(name="lab"))
    office.store.close()
    files = ["penstock.sqlite", "access.snapshot", "audit.head"]
    office.home.chmod(0o777)
    for name in files:
        (office.home / name).chmod(0o666)
    again = open_access(office.home, default_url(office.home))
    assert all(f"{office.home / name} could be read or written by others (mode 666)" in caplog.text for name in files)
    assert f"others can write into {office.home} (mode 777)" in caplog.text
    assert {stat.S_IMODE((office.home / name).stat().st_mode) for name in files} == {0o600}
    assert [tenant.name for tenant in again.store.read().tenants] == [TOP, "lab"]
    again.store.close()
    caplog.clear()
    office.home.chmod(0o1777)  # in such a folder nobody replaces what is another's
    open_access(office.home, default_url(office.home)).store.close()
    assert not caplog.text


def test_a_store_of_another_secret_is_refused(office):
    """Rather than refusing every key it says that the secret was exchanged."""
    (office.home / "secret").unlink()
    other = open_access(office.home, default_url(office.home))
    with pytest.raises(Problem, match="another secret"):
        other.store.prepare()


def test_two_that_start_together_share_one_secret(tmp_path: Path):
    """Whoever comes second takes the first one's."""
    assert open_access(tmp_path, "sqlite:///a").secret == open_access(tmp_path, "sqlite:///a").secret


async def test_a_watcher_sees_every_newer_version(office):
    """The current state first, then each change."""
    watch = office.store.watch(0.01)
    first = await anext(watch)
    assert isinstance(first, Access) and not first.keys
    await asyncio.to_thread(office.acts.create_key, None, NewKey())
    async with asyncio.timeout(5):
        second = await anext(watch)
    assert isinstance(second, Access) and len(second.keys) == 1 and second.version > first.version


def test_every_commit_leaves_traces(office):
    """Files that look as they did hold what they held."""
    database = Database(default_url(office.home))
    seen = {database.traces()}
    for number in range(1, 6):
        office.acts.create_key(None, NewKey())
        seen.add(database.traces())
        assert len(seen) == number + 1
    assert None not in seen and Database("postgresql://nobody@nowhere/db").traces() is None


async def test_a_watcher_asks_also_where_nothing_looks_changed(office, monkeypatch):
    """Should two commits ever leave the same traces, the second is seen a few looks later."""
    monkeypatch.setattr(Database, "traces", lambda self: ((1, 1, 1),))
    watch = office.store.watch(0.01)
    await anext(watch)
    await asyncio.to_thread(office.acts.create_key, None, NewKey())
    async with asyncio.timeout(5):
        second = await anext(watch)
    assert isinstance(second, Access) and len(second.keys) == 1


async def test_a_deleted_store_is_lost_and_then_made_again_from_the_snapshot(office):
    """Watchers hear of the loss; the keeper makes the store anew with every tenant and key in it."""
    office.acts.create_tenant(None, NewTenant(name="lab"))
    issued = office.acts.create_key(None, NewKey(tenant="lab"))
    watch = office.store.watch(0.01)
    assert isinstance(await anext(watch), Access)
    for path in office.home.glob("penstock.sqlite*"):
        path.unlink()
    async with asyncio.timeout(5):
        lost = await anext(watch)
    assert isinstance(lost, Problem) and lost.code == "store_unavailable"
    keeper = asyncio.create_task(office.store.keep(0.01))
    async with asyncio.timeout(5):
        found = await anext(watch)
    keeper.cancel()
    assert isinstance(found, Access) and {tenant.name for tenant in found.tenants} == {TOP, "lab"}
    assert office.keyring().find(issued.secret.encode(), 0.0) is not None


async def test_whoever_starts_while_the_store_is_lost_goes_on_from_the_snapshot(office):
    """The first thing a watcher hears is what was known, the second that the store is lost."""
    office.acts.create_key(None, NewKey())
    office.store.close()
    (office.home / "penstock.sqlite").unlink()
    late = open_access(office.home, default_url(office.home))
    watch = late.store.watch(0.01)
    known, lost = await anext(watch), await anext(watch)
    assert isinstance(known, Access) and len(known.keys) == 1 and isinstance(lost, Problem)


def test_a_snapshot_that_was_changed_is_not_believed(office):
    """One flipped byte, or another secret's signature, and there is no snapshot."""
    office.acts.create_key(None, NewKey())
    path = office.home / "access.snapshot"
    content = path.read_bytes()
    assert read_snapshot(path, office.opened.secret) == office.store.read()
    assert read_snapshot(path, b"x" * 32) is None
    path.write_bytes(content.replace(b'"role":"user"', b'"role":"admin"', 1))
    assert read_snapshot(path, office.opened.secret) is None


def test_a_file_that_is_no_database_is_unavailable(office):
    """Garbage in its place is a problem with a code, for readers and writers."""
    office.store.close()
    for path in office.home.glob("penstock.sqlite*"):
        path.unlink()
    (office.home / "penstock.sqlite").write_bytes(b"no database" * 1000)
    for act in (office.store.read, lambda: office.acts.create_key(None, NewKey())):
        with pytest.raises(Problem) as refused:
            act()
        assert refused.value.code == "store_unavailable"


def test_a_locked_store_is_unavailable_and_changes_nothing(office, monkeypatch):
    """Another process that holds the lock too long ends in a problem, not in half a change."""
    other = sqlite3.connect(office.home / "penstock.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Problem) as refused:
        office.acts.create_key(None, NewKey())
    assert refused.value.code == "store_unavailable"
    other.execute("ROLLBACK")
    other.close()
    assert not office.store.read().keys


def test_a_store_that_is_half_made_is_not_one_without_keys(office):
    """Tables alone are unavailable: taken for an empty store they would open a service that has keys."""
    with sqlite3.connect(office.home / "penstock.sqlite") as db:
        db.execute("DELETE FROM facts WHERE name = 'access'")
    with pytest.raises(Problem) as refused:
        office.store.read()
    assert refused.value.code == "store_unavailable"


def test_a_store_of_a_newer_release_is_not_touched(office):
    """A schema number beyond ours is refused with that number."""
    with sqlite3.connect(office.home / "penstock.sqlite") as db:
        db.execute("UPDATE facts SET value = '99' WHERE name = 'schema'")
    with pytest.raises(Problem, match="newer release"):
        office.store.prepare()


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:pa55word@h/d", "http://x"])
def test_another_kind_of_url_is_refused_without_repeating_it(tmp_path: Path, url: str):
    """The message names what is allowed and not what was given: that may hold a password."""
    with pytest.raises(Problem) as refused:
        open_access(tmp_path, url)
    assert refused.value.code == "invalid_setting" and "pa55word" not in refused.value.message


def test_a_full_disk_refuses_changes_and_nothing_else(office):
    """The act is undone as a whole; keys are still read, and the snapshot is the one before."""
    office.acts.create_key(None, NewKey())
    engine = office.store._database._engine
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # SQLite's own disk that is full
    with pytest.raises(Problem) as refused:
        for number in range(200):
            office.acts.create_tenant(None, NewTenant(name=f"t{number}"))
    assert refused.value.code == "insufficient_disk"
    access = office.store.read()
    assert len(access.keys) == 1 and office.store.last_known() == access
    assert office.store.audit.verify() == len(office.store.audit.list(newest=1000))
