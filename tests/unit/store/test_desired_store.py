"""The desired state at rest: versions, writers, watchers, and disks that fail."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.config.desired import Acknowledgement, DesiredState, Model, Replica
from penstock.store.desired import DesiredStore
from penstock.wire.errors import Problem


def models(*ids: str) -> list[Model]:
    return [Model(name="m", replicas=[Replica(id=id, socket=f"/{id}.sock") for id in ids])]


@pytest.fixture
def store(tmp_path: Path) -> DesiredStore:
    return DesiredStore(tmp_path / "store.sqlite")


def test_an_empty_store_reads_as_version_zero(store: DesiredStore) -> None:
    """Before anything was published the state is the empty one."""
    assert store.read() == DesiredState()


def test_publishing_counts_versions_and_keeps_only_the_last(store: DesiredStore, tmp_path: Path) -> None:
    """Another handle reads exactly what was published last, with the version one higher."""
    store.publish(models("a"))
    last = store.publish(models("a", "b"), admitting=False)
    assert last.version == 2
    assert DesiredStore(tmp_path / "store.sqlite").read() == last


def test_two_writers_never_get_the_same_version(tmp_path: Path) -> None:
    """Versions published by two writers at once are all different and leave no hole."""
    versions: list[int] = []

    def write() -> None:
        store = DesiredStore(tmp_path / "store.sqlite", lock_timeout_s=20.0)
        versions.extend([store.publish(models("a")).version for _ in range(25)])

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(versions) == list(range(1, 51))


async def _next(states: AsyncIterator[DesiredState], timeout_s: float = 5.0) -> DesiredState:
    async with asyncio.timeout(timeout_s):
        return await anext(states)


def test_a_watcher_sees_the_current_state_and_each_change_within_half_a_second(tmp_path: Path) -> None:
    """The current state comes at once, and another handle's change in less than 0.5 s where the machine has time."""

    async def check() -> None:
        writer, reader = DesiredStore(tmp_path / "s"), DesiredStore(tmp_path / "s")
        writer.publish(models("a"))
        states = reader.watch()
        assert (await _next(states)).version == 1
        took_s = []
        for version in (2, 3, 4):
            coming = asyncio.create_task(_next(states))
            await asyncio.sleep(0)  # the watcher polls before the change exists
            began = time.monotonic()
            writer.publish(models("a", "b"))
            assert (await coming).version == version
            took_s.append(time.monotonic() - began)
        assert min(took_s) < 0.5

    asyncio.run(check())


def test_acknowledgements_do_not_wake_a_watcher(store: DesiredStore) -> None:
    """A commit that leaves the version alone yields nothing."""

    async def check() -> None:
        states = store.watch(interval_s=0.005)
        assert (await _next(states)).version == 0
        store.acknowledge(Acknowledgement(gateway="g", version=0, in_flight=1, at=1.0))
        with pytest.raises(TimeoutError):
            await _next(states, timeout_s=0.05)

    asyncio.run(check())


def test_a_gateway_acknowledges_over_what_it_said_before(store: DesiredStore) -> None:
    """There is one acknowledgement per gateway: its last."""
    for gateway, version in (("g1", 1), ("g0", 1), ("g1", 2)):
        store.acknowledge(Acknowledgement(gateway=gateway, version=version, in_flight=version, at=0.5))
    assert [(a.gateway, a.version) for a in store.acknowledgements()] == [("g0", 1), ("g1", 2)]


def test_a_store_that_stays_locked_is_a_problem_and_not_a_hang(tmp_path: Path) -> None:
    """When another writer keeps the lock, publishing ends with store_unavailable and the bound it waited."""
    store = DesiredStore(tmp_path / "s", lock_timeout_s=0.05)
    other = sqlite3.connect(tmp_path / "s", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Problem, match=r"0\.05 s") as caught:
        store.publish(models("a"))
    assert caught.value.code == "store_unavailable"
    other.execute("ROLLBACK")
    assert store.publish(models("a")).version == 1


def test_a_full_disk_is_a_problem_and_leaves_the_last_state(store: DesiredStore) -> None:
    """A publication that does not fit is insufficient_disk, and the state before it is untouched."""
    store.publish(models("a"))
    store._db.execute("PRAGMA max_page_count = 4")
    with pytest.raises(Problem) as caught:
        store.publish(models(*(f"replica-{n}" for n in range(2000))))
    assert caught.value.code == "insufficient_disk"
    assert store.read().models == models("a")


def test_a_file_that_is_no_database_is_a_problem(tmp_path: Path) -> None:
    """The message names the file."""
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"not a database, but long enough to look for a header in it" * 20)
    with pytest.raises(Problem, match=r"store\.sqlite") as caught:
        DesiredStore(path)
    assert caught.value.code == "store_unavailable"
