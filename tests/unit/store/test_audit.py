"""The audit log: every act and denial has a row, and no row can be changed or removed unseen."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from penstock.config.tenants import Principal
from penstock.store.audit import Act
from penstock.store.denials import MAX_KINDS, Denials
from penstock.store.representations import NewKey, NewTenant, Rotation
from penstock.wire.errors import Problem


def rows(office):
    return [(row.actor, row.action, row.verdict, row.why) for row in office.store.audit.list(newest=100)]


def sql(office, statement: str) -> None:
    with sqlite3.connect(office.home / "penstock.sqlite") as db:
        db.execute(statement)


def test_every_act_has_a_row_with_who_what_when_and_verdict(office):
    """Also the denied ones, with the reason; the secret is in none of them."""
    issued = office.acts.create_key(None, NewKey())
    office.clock[0] = 2000.0
    office.acts.rotate_key(None, issued.id, Rotation())
    user = Principal(tenant="default", key_id="key_user")
    with pytest.raises(Problem):
        office.acts.create_tenant(user, NewTenant(name="mine"))
    assert rows(office) == [
        ("operator", "keys.create", "allowed", ""),
        ("operator", "keys.rotate", "allowed", ""),
        ("key_user", "tenants.create", "denied", "permission_denied"),
    ]
    listed = office.store.audit.list(newest=100)
    assert [row.at for row in listed] == [1000.0, 2000.0, 2000.0]
    assert issued.secret not in str(listed) and office.store.audit.verify() == 3


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE seq = 3", "Row 3 was changed"),
        ("UPDATE audit SET at = at + 1 WHERE seq = 1", "Row 1 was changed"),
        ("UPDATE audit SET hash = 'é' WHERE seq = 4", "Row 4 was changed"),
        ("UPDATE audit SET verdict = 'allowed', why = '' WHERE seq = 5", None),
        ("DELETE FROM audit WHERE seq = 2", "Row 2 is missing"),
        ("DELETE FROM audit WHERE seq = 1", "Row 1 is missing"),
        ("DELETE FROM audit WHERE seq = 5", "after 4 are missing"),
        ("DELETE FROM audit", "after 0 are missing"),
        ("UPDATE audit SET seq = 9 WHERE seq = 5", "Row 5 is missing"),
    ],
)
def test_what_was_changed_or_removed_is_named(office, statement, message):
    """A change, a gap, a cut tail and an emptied table are found; an update that changes nothing is not."""
    for _ in range(5):
        office.acts.create_key(None, NewKey())
    sql(office, statement)
    if message is None:
        assert office.store.audit.verify() == 5
        return
    with pytest.raises(Problem, match=message) as found:
        office.store.audit.verify()
    assert found.value.code == "audit_broken"


def test_a_tail_that_was_cut_off_together_with_the_head_is_found(office):
    """Whoever can write only to the database cannot roll it back: the end also stands beside the secret."""
    office.acts.create_key(None, NewKey())
    earlier = sqlite3.connect(office.home / "penstock.sqlite")
    head = earlier.execute("SELECT value FROM facts WHERE name = 'audit'").fetchone()[0]
    earlier.close()
    office.acts.create_key(None, NewKey())
    sql(office, "DELETE FROM audit WHERE seq = 2")
    sql(office, f"UPDATE facts SET value = '{head}' WHERE name = 'audit'")
    with pytest.raises(Problem, match="after 1 are missing"):
        office.store.audit.verify()


def test_rows_cannot_be_hashed_anew_without_the_secret(office):
    """A row with a hash of another chain is one that was changed."""
    office.acts.create_key(None, NewKey())
    sql(office, "UPDATE audit SET actor = 'x', hash = '" + "0" * 64 + "'")
    with pytest.raises(Problem, match="Row 1 was changed"):
        office.store.audit.verify()


def test_many_writers_make_one_chain(office):
    """Of rows written at the same time none is lost and each hangs on the one before it."""
    act = Act(actor="a", action="b", subject="c")
    writers = [
        threading.Thread(target=lambda: [office.store.audit.append([act], 1.0) for _ in range(10)]) for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert office.store.audit.verify() == 40


def test_after_a_lost_store_the_log_says_that_rows_are_missing(office):
    """It goes on counting where it was, so that the loss of the log itself is seen."""
    for _ in range(3):
        office.acts.create_key(None, NewKey())
    for path in office.home.glob("penstock.sqlite*"):
        path.unlink()
    office.store.prepare()
    office.acts.create_key(None, NewKey())
    assert [row.seq for row in office.store.audit.list(newest=9)] == [4, 5]
    with pytest.raises(Problem, match="Row 1 is missing"):
        office.store.audit.verify()


def test_denials_of_one_kind_share_a_row(office):
    """A flood of wrong keys costs the log one row per address and reason, which has their number."""
    denials = Denials(office.store.audit, lambda: 7.0)
    for _ in range(1000):
        denials("10.0.0.1", "invalid_api_key")
    denials.write()
    denials.write()
    [row] = office.store.audit.list(newest=9)
    assert (row.actor, row.subject, row.verdict, row.why, row.at) == (
        "10.0.0.1",
        "1000 requests",
        "denied",
        "invalid_api_key",
        7.0,
    )


def test_denials_from_everywhere_are_bounded_and_none_is_forgotten(office):
    """However many addresses there are, memory and rows have a bound, and the counts add up."""
    denials = Denials(office.store.audit, lambda: 7.0)
    for number in range(MAX_KINDS * 3):
        denials(str(number), "invalid_api_key")
    denials.write()
    listed = office.store.audit.list(newest=MAX_KINDS * 2)
    assert len(listed) == MAX_KINDS + 1
    assert sum(int(row.subject.split()[0]) for row in listed) == MAX_KINDS * 3


def test_denials_wait_for_a_store_that_is_lost(office):
    """They are written when it is back."""
    denials = Denials(office.store.audit, lambda: 7.0)
    denials("10.0.0.1", "invalid_api_key")
    path = office.home / "penstock.sqlite"
    path.rename(office.home / "away")
    denials.write()
    (office.home / "away").rename(path)
    denials("10.0.0.1", "invalid_api_key")
    denials.write()
    assert [row.subject for row in office.store.audit.list(newest=9)] == ["2 requests"]
