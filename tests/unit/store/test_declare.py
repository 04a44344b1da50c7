"""Tenants of the service's file."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from penstock.config.tenants import TOP, DeclaredTenant, Limit
from penstock.store.declare import _from_the_top, declare
from penstock.wire.errors import Problem


def read(text: str) -> dict[str, DeclaredTenant]:
    return msgspec.convert(msgspec.yaml.decode(text), dict[str, DeclaredTenant])


FILE = """
nightly: {parent: research, priority: 3, limits: [concurrency=2]}
research:
  models: [large, small]
  limits: [tokens=200000/minute, usd=500/month, tokens=50000/day@large]
  weight: 3
  priority: -1
"""


def test_what_is_declared_is_there_and_what_is_not_stays(office) -> None:
    """Parents come before their children, whatever their order; a tenant of the command line is not touched."""
    store = office.opened.store
    declare(store, read(FILE), 5.0)
    tenants = {tenant.name: tenant for tenant in store.read().tenants}
    research, nightly = tenants["research"], tenants["nightly"]
    assert research.rights.models == {"large", "small"} and research.weight == 3 and research.rights.priority == -1
    assert Limit(unit="tokens", amount=50_000, window="day", model="large") in research.rights.limits
    assert nightly.parent == "research" and nightly.rights.priority == 3
    declare(store, read("only: {weight: 2}"), 6.0)
    assert {tenant.name for tenant in store.read().tenants} == {TOP, "research", "nightly", "only"}


def test_the_same_file_again_writes_nothing(office) -> None:
    """Neither a version nor a row of the audit log; a changed line is one change with one row."""
    store = office.opened.store
    declare(store, read(FILE), 5.0)
    version, rows = store.read().version, len(store.audit.list(newest=100))
    declare(store, read(FILE), 6.0)
    assert (store.read().version, len(store.audit.list(newest=100))) == (version, rows)
    declare(store, read(FILE.replace("weight: 3", "weight: 4")), 7.0)
    assert store.read().version == version + 1
    newest = store.audit.list(newest=1)[0]
    assert (newest.actor, newest.action, newest.subject) == ("operator", "tenants.declare", "research")
    assert len(store.audit.list(newest=100)) == rows + 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: {parent: b}\nb: {parent: a}", "a, b are above one another"),
        ("a: {parent: a}", "a are above one another"),
        ("a: {parent: nobody}", "'nobody', above 'a', does not exist"),
        ("a: {models: [x]}\nb: {parent: a, models: [x, y]}", "'b' is to have the models y, which is more than 'a' may"),
        ("a: {priority: 2}\nb: {parent: a, priority: 0}", "'b' is to have priority 0"),
        ("a: {}\nb: {parent: a, role: admin}", "'b' is to have the role admin"),
        ("'a b': {}", "'a b' is no name"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_done(office, text: str, what: str) -> None:
    """All or none, with the tenant's name."""
    store = office.opened.store
    before = store.read()
    with pytest.raises(Problem, match=what) as refused:
        declare(store, read("good: {}\n" + text), 5.0)
    assert refused.value.code == "invalid_setting" and store.read() == before


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: {limits: [tokens=5/week]}", "is not UNIT="),
        ("a: {limits: [usd=-1/day]}", "is no limit"),
        ("a: {weight: 0}", "weight"),
        ("a: {priority: 9}", "priority"),
        ("a: {keys: [{secret: pk-hunter}]}", "unknown field `keys`"),
    ],
)
def test_a_wrong_line_is_named(text: str, what: str) -> None:
    """And keys are no part of a file."""
    with pytest.raises((msgspec.ValidationError, ValueError), match=what) as refused:
        read(text)
    assert "hunter" not in str(refused.value)


def test_the_top_tenant_stays_an_administrators(office: Any) -> None:
    """Its limits may be declared; that it administers everything may not be taken away."""
    store = office.opened.store
    declare(store, read("default: {limits: [concurrency=100]}"), 5.0)
    [top] = store.read().tenants
    assert top.rights.role == "admin" and top.parent is None
    assert top.rights.limits == (Limit(unit="concurrency", amount=100),)


def test_many_tenants_are_put_in_order_at_once_and_no_line_is_endless(office) -> None:
    """Ten thousand, last things first, are looked at once each; a tenant has fifteen above it at most."""
    lines = [f"t{number}: {{parent: {f't{number - 1}' if number % 10 else 'default'}}}" for number in range(10_000)]
    declared = read("\n".join(reversed(lines)))
    began = time.process_time()
    order = _from_the_top(declared)
    assert time.process_time() - began < 1.0
    place = {name: number for number, name in enumerate(order)}
    assert all(place[one.parent] < place[name] for name, one in declared.items() if one.parent != TOP)
    deep = "\n".join(f"d{number}: {{parent: {f'd{number - 1}' if number else 'default'}}}" for number in range(15))
    declare(office.opened.store, read(deep), 5.0)
    with pytest.raises(Problem, match="'d14' has 15 tenants above it, and 'd15' cannot be below it"):
        declare(office.opened.store, read(deep + "\nd15: {parent: d14}"), 6.0)
