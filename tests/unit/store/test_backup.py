"""A store as one file and back: whole or not at all, whoever writes, kills or damages."""

from __future__ import annotations

import errno
import gzip
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from killed import killed
from offices import Office
from stores import contents
from usage import row

from penstock.config.tenants import Access
from penstock.policy.keyring import Keyring
from penstock.store.audit import Act
from penstock.store.backup import read_rows, verify_backup, write_backup
from penstock.store.places import Opened, default_url, open_access
from penstock.store.representations import NewKey, NewTenant, Rotation, TenantChange
from penstock.store.restore import Restored, restore
from penstock.store.status import check
from penstock.wire.errors import Problem


@pytest.fixture
def filled(office: Office) -> Office:
    """Tenants, keys in every state, usage, and the acts in the log."""
    office.acts.create_tenant(None, NewTenant(name="lab", models=frozenset("ab"), weight=0.1))
    issued = office.acts.create_key(None, NewKey(tenant="lab", expires_in_s=1e9))
    office.acts.rotate_key(None, issued.id, Rotation(grace_s=5))
    office.acts.revoke_key(None, office.acts.create_key(None, NewKey(name="o'neill \u2603")).id)
    office.opened.ledger.write([row(f"r{number}", at=number / 7, cost_nusd=2**53 + 1) for number in range(2_500)])
    return office


@pytest.fixture
def elsewhere(filled: Office, tmp_path: Path) -> Opened:
    """An empty home with the same secret: a machine that takes over."""
    home = tmp_path / "elsewhere"
    home.mkdir(mode=0o700)
    (home / "secret").write_bytes((filled.home / "secret").read_bytes())
    (home / "secret").chmod(0o600)
    return open_access(home, default_url(home))


def backed_up(office: Office, name: str = "b") -> Path:
    path = office.home / "backups" / name
    path.parent.mkdir(exist_ok=True)
    write_backup(office.opened.database, office.opened.secret, path, now=5.0)
    return path


def _rows_or_code(path: Path, secret: bytes) -> Any:
    try:
        return list(read_rows(path, secret))
    except Problem as problem:
        return problem.code


def put_back(opened: Opened, path: Path, *, replace: bool = False) -> Restored:
    return restore(opened, path, now=6.0, replace=replace)


def test_what_comes_back_is_what_was_there(filled: Office, elsewhere: Opened) -> None:
    """Every row of every table, floats and large numbers to the last bit; and then one act, that of the restore."""
    before = contents(filled.opened)
    done = put_back(elsewhere, backed_up(filled))
    after = contents(elsewhere)
    assert {name: after[name] for name in ("tenants", "api_keys", "usage")} == {
        name: before[name] for name in ("tenants", "api_keys", "usage")
    }
    assert after["audit"][: len(before["audit"])] == before["audit"] and len(after["audit"]) == len(before["audit"]) + 1
    assert (done.audit_rows, done.held.usage, done.held.keys) == (len(after["audit"]), 2_500, 2)
    assert [finding for finding in check(elsewhere) if finding.problem] == []
    elsewhere.store.close()


def test_only_its_owner_reads_it_and_nothing_lies_beside_it(filled: Office) -> None:
    """Mode 600, one file, and written again over itself."""
    path = backed_up(filled)
    backed_up(filled)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_backup_is_one_moment_whoever_writes_meanwhile(filled: Office, elsewhere: Opened) -> None:
    """Rows of the log are whole and in place, and what is written together is there together or not at all."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            filled.opened.ledger.write([row(f"a{number}"), row(f"b{number}")])
            filled.store.audit.append([Act(actor="w", action="x", subject=str(number))], 1.0)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            path = backed_up(filled, str(number))
            put_back(elsewhere, path, replace=True)
            ids = {values[0] for head, values in read_rows(path, elsewhere.secret) if head.name == "usage"}
            assert {id[1:] for id in ids if id[0] == "a"} == {id[1:] for id in ids if id[0] == "b"}
    finally:
        stop.set()
        writer.join()
    elsewhere.store.close()


def test_a_full_disk_leaves_the_backup_before(filled: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte, and no draft stays behind."""
    path = backed_up(filled)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Problem) as refused:
        backed_up(filled)
    assert refused.value.code == "insufficient_disk"
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_killed_backup_leaves_the_backup_before(filled: Office) -> None:
    """SIGKILL while it reads."""
    path = backed_up(filled)
    before = path.read_bytes()
    assert killed(filled.home, "backup", path, 12)
    assert path.read_bytes() == before
    verify_backup(path, filled.opened.secret)


@pytest.mark.parametrize("after", [12, 25, 32])
def test_a_killed_restore_leaves_the_store_before(filled: Office, after: int) -> None:
    """SIGKILL between any two statements: every row is as it was, and the store is whole."""
    path = backed_up(filled)
    filled.acts.set_tenant(None, "lab", TenantChange(weight=3.0))
    before = contents(filled.opened)
    assert killed(filled.home, "restore", path, after)
    assert contents(filled.opened) == before
    assert [finding for finding in check(filled.opened) if finding.problem] == []


def test_what_is_not_whole_is_refused_and_changes_nothing(filled: Office, elsewhere: Opened) -> None:
    """Cut off anywhere, or with any byte turned over, it is refused, or its rows are the same all the same."""
    elsewhere.store.prepare()
    path = backed_up(filled)
    whole, rows = path.read_bytes(), list(read_rows(path, elsewhere.secret))
    for cut in (0, 1, 10, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(Problem) as refused:
            put_back(elsewhere, path)
        assert refused.value.code == "backup_invalid"
    for place in range(0, len(whole), max(1, len(whole) // 120)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert _rows_or_code(path, elsewhere.secret) in (rows, "backup_invalid")
    assert elsewhere.store.read().keys == ()
    elsewhere.store.close()


def test_a_row_that_nobody_signed_is_refused(filled: Office, tmp_path: Path) -> None:
    """Whoever can write the file but not read the secret puts no key of theirs into it."""
    path = backed_up(filled)
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join([*lines[:-1], lines[1], lines[-1]])))
    with pytest.raises(Problem, match="not as it was written"):
        verify_backup(path, filled.opened.secret)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        (0, b'"format":"', b'"format":"\xff'),
        (0, b'"secret":"', '"secret":"é'.encode()),
        (1, b'"', b'"\xff'),
        (-1, b'"signature":"', '"signature":"é'.encode()),
    ],
)
def test_texts_that_nobody_writes_are_refused_like_others(filled: Office, place: int, old: bytes, new: bytes) -> None:
    """Bytes that are no text, and digests that are no digits, end in the same words as any other damage."""
    path = backed_up(filled)
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    if place == 1:
        place = next(number for number, line in enumerate(lines) if number and b'"' in line)
    assert old in lines[place]
    lines[place] = lines[place].replace(old, new, 1)
    path.write_bytes(gzip.compress(b"".join(lines)))
    with pytest.raises(Problem) as refused:
        verify_backup(path, filled.opened.secret)
    assert refused.value.code == "backup_invalid"


@pytest.mark.parametrize(
    "content", [b"", b"no backup", b"\x1f\x8b rest", gzip.compress(b'{"format":"\xff"}', mtime=0), None]
)
def test_what_is_no_backup_is_neither_restored_nor_written_over(filled: Office, content: bytes | None) -> None:
    """Another file, and the store itself."""
    path = filled.home / ("penstock.sqlite" if content is None else "notes")
    if content is not None:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(Problem) as refused:
        put_back(filled.opened, path, replace=True)
    assert refused.value.code == "backup_invalid"
    with pytest.raises(Problem) as refused:
        write_backup(filled.opened.database, filled.opened.secret, path, now=5.0)
    assert refused.value.code == "conflict" and path.read_bytes() == before


def test_another_secret_is_told_what_is_missing(filled: Office, tmp_path: Path) -> None:
    """Keys cannot be checked with another one, so nothing is restored."""
    home = tmp_path / "other"
    other = open_access(home, default_url(home))
    with pytest.raises(Problem, match="`secret`") as refused:
        put_back(other, backed_up(filled))
    assert refused.value.code == "backup_invalid" and not (home / "penstock.sqlite").exists()


def test_a_newer_backup_is_refused(filled: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it may hold is not known here."""
    path = backed_up(filled)
    monkeypatch.setattr("penstock.store.backup.STEPS", ())
    with pytest.raises(Problem, match="newer release"):
        put_back(filled.opened, path, replace=True)


def test_a_store_that_holds_something_is_not_given_up_by_the_way(filled: Office) -> None:
    """The refusal says what is there and which flag gives it up."""
    path, before = backed_up(filled), contents(filled.opened)
    with pytest.raises(Problem, match=r"2500 rows of usage.*--replace") as refused:
        put_back(filled.opened, path)
    assert refused.value.code == "conflict" and contents(filled.opened) == before


def test_a_key_that_was_revoked_or_rotated_since_stays_so(filled: Office) -> None:
    """Its old secret is refused after the restore as before it; what else was changed comes back."""
    kept, rotated = (filled.acts.create_key(None, NewKey(name=name)) for name in ("kept", "rotated"))
    path = backed_up(filled)
    filled.acts.revoke_key(None, kept.id)
    new = filled.acts.rotate_key(None, rotated.id, Rotation())
    filled.acts.set_tenant(None, "lab", TenantChange(weight=9.0))
    version = filled.store.read().version
    done = put_back(filled.opened, path, replace=True)
    assert sorted(done.kept_secrets) == sorted([kept.id, rotated.id])
    keyring = filled.keyring()
    with pytest.raises(Problem):
        keyring.find(kept.secret.encode(), 1001.0)
    assert keyring.find(new.secret.encode(), 1001.0) is not None
    with pytest.raises(Problem):
        keyring.find(rotated.secret.encode(), 1001.0)
    access = filled.store.read()
    assert next(tenant for tenant in access.tenants if tenant.name == "lab").weight == 0.1
    assert access.version > version and filled.store.last_known() == access


def test_a_lost_store_does_not_make_revoked_keys_good_again(filled: Office) -> None:
    """The signed snapshot remembers what the deleted file knew."""
    issued = filled.acts.create_key(None, NewKey())
    path = backed_up(filled)
    filled.acts.revoke_key(None, issued.id)
    filled.store.close()
    (filled.home / "penstock.sqlite").unlink()
    late = open_access(filled.home, default_url(filled.home))
    assert put_back(late, path).kept_secrets == [issued.id]
    late.store.close()


def test_a_restore_does_not_open_a_store_that_had_keys(tmp_path: Path) -> None:
    """Neither a second one, nor the loss of the store and a third; the first key made afterwards works."""
    office = Office(tmp_path / "open", open_access(tmp_path / "open", default_url(tmp_path / "open")))
    office.store.prepare()
    path = backed_up(office)
    assert not put_back(office.opened, path, replace=True).is_closed and office.keyring().is_empty
    office.acts.create_key(None, NewKey())
    for _ in range(2):
        assert put_back(office.opened, path, replace=True).is_closed and not office.keyring().is_empty
    assert not Keyring(office.store.last_known() or Access(), office.opened.secret).is_empty
    office.store.close()
    (office.home / "penstock.sqlite").unlink()
    office.store.prepare()
    assert not office.keyring().is_empty and put_back(office.opened, path, replace=True).is_closed
    issued = office.acts.create_key(None, NewKey())
    assert office.keyring().find(issued.secret.encode(), 1001.0) is not None
    office.store.close()


def test_the_right_backup_undoes_the_restore_of_a_wrong_one(filled: Office) -> None:
    """Keys that an earlier backup did not know work again with one that does; those that were revoked since do not."""
    early = backed_up(filled, "early")
    good, bad = (filled.acts.create_key(None, NewKey(name=name)) for name in ("good", "bad"))
    late = backed_up(filled, "late")
    filled.acts.revoke_key(None, bad.id)
    put_back(filled.opened, early, replace=True)
    assert filled.keyring().find(good.secret.encode(), 1001.0) is None
    assert not put_back(filled.opened, late, replace=True).is_closed
    assert filled.keyring().find(good.secret.encode(), 1001.0) is not None
    with pytest.raises(Problem, match="revoked"):
        filled.keyring().find(bad.secret.encode(), 1001.0)


async def test_who_watches_takes_over_what_was_restored(filled: Office) -> None:
    """Without being started again."""
    path = backed_up(filled)
    filled.acts.create_key(None, NewKey(name="since"))
    watch = filled.store.watch(0.01)
    before = await anext(watch)
    put_back(filled.opened, path, replace=True)
    after = await anext(watch)
    assert isinstance(before, Access) and isinstance(after, Access)
    assert len(after.keys) == len(before.keys) - 1


def test_a_chain_that_was_not_whole_is_not_restored(filled: Office, elsewhere: Opened) -> None:
    """A row that was changed in the database before the backup is found in it."""
    with sqlite3.connect(filled.home / "penstock.sqlite") as db:
        db.execute("UPDATE audit SET actor = 'x' WHERE seq = 2")
    with pytest.raises(Problem, match="Row 2 was changed") as refused:
        put_back(elsewhere, backed_up(filled))
    assert refused.value.code == "audit_broken" and not contents(elsewhere)
    elsewhere.store.close()


def test_after_a_restore_the_log_says_so(filled: Office) -> None:
    """The chain is whole, goes on from the backup, and its last row names what was given up."""
    path = backed_up(filled)
    for _ in range(3):
        filled.acts.create_key(None, NewKey())
    put_back(filled.opened, path, replace=True)
    last = filled.store.audit.list(newest=1)[0]
    assert (last.actor, last.action) == ("operator", "store.restore") and "rows of usage" in last.why
    assert filled.store.audit.verify() == last.seq
    filled.acts.create_key(None, NewKey())
    assert filled.store.audit.verify() == last.seq + 1


@pytest.mark.parametrize("moment", ["after the restore", "while it runs"])
def test_who_writes_during_a_restore_does_not_break_the_chain(
    filled: Office, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A row is written, the store is restored to fewer, and only then the first writer notes where the chain ends."""
    path = backed_up(filled)
    for number in range(5):
        filled.store.audit.append([Act(actor="key_1", action="keys.create", subject=str(number))], 6.0)
    other = open_access(filled.home, f"sqlite:///{filled.opened.database.name}")
    with filled.opened.database.write() as connection:
        head = filled.store.audit.append_within(
            connection, [Act(actor="key_1", action="keys.create", subject="x")], 6.0
        )
    if moment == "after the restore":
        put_back(other, path, replace=True)
        filled.store.audit.remember(head)
    else:
        forget = other.store.audit.forget

        def interrupted() -> None:
            forget()
            filled.store.audit.remember(head)

        monkeypatch.setattr(other.store.audit, "forget", interrupted)
        put_back(other, path, replace=True)
    filled.store.audit.append([Act(actor="key_1", action="keys.create", subject="x")], 7.0)
    assert filled.store.audit.verify() == other.store.audit.verify()
    other.store.close()


def test_two_restores_at_once_are_one_after_the_other(filled: Office, elsewhere: Opened) -> None:
    """Into an empty store one wins, and the other is told that something is there."""
    paths = [backed_up(filled, "one")]
    filled.acts.create_tenant(None, NewTenant(name="later"))
    paths.append(backed_up(filled, "two"))
    both = threading.Barrier(2)
    done: list[Restored | str] = []

    def one(path: Path) -> None:
        opened = open_access(Path(elsewhere.database.name).parent, f"sqlite:///{elsewhere.database.name}")
        both.wait()
        try:
            done.append(put_back(opened, path))
        except Problem as problem:
            done.append(problem.code)
        finally:
            opened.store.close()

    threads = [threading.Thread(target=one, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [restored] = [entry for entry in done if isinstance(entry, Restored)]
    assert len(done) == 2 and ({"conflict", "store_unavailable"} & {e for e in done if isinstance(e, str)})
    assert elsewhere.store.audit.verify() == restored.audit_rows
    elsewhere.store.close()
