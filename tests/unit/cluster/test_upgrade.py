"""Upgrades as people ask for them: one at a time, written down, told to the end.  The engines are simulated."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from controlled import Fleet

from penstock.cluster.rollout import Member
from penstock.cluster.upgrade import NewUpgrade, Upgrades, UpgradeView
from penstock.config.tenants import Principal
from penstock.store.audit import Act
from penstock.wire.errors import Problem

ASKED = NewUpgrade(model="m", source="/new", drain_timeout_s=0.0)


class Place:
    """Where engines run: fetching may fail, and what is kept is remembered."""

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.kept: list[str] = []
        self.answers = threading.Event()
        self.answers.set()

    def fetch(self, source: str) -> object:
        self.answers.wait()
        if self.problem is not None:
            raise self.problem
        return source

    def prepare(self, fetched: object, model: str, number: int) -> list[Member]:
        return [Member(id=f"n{n}", kind="engine", socket=f"/n{n}") for n in range(number)]

    def keep(self, model: str, source: str) -> None:
        self.kept.append(source)


class Desk:
    """The acts over a controller whose engines are ready as soon as they are started."""

    def __init__(self) -> None:
        self.fleet = Fleet(2).all_ready()
        self.place = Place()
        self.acts: list[Act] = []
        self.lost = False
        self.upgrades = Upgrades(self.fleet.machine, self.place, self, 5.0, self.write)

    def now(self) -> float:
        return self.fleet.now

    def write(self, act: Act) -> None:
        if self.lost:
            raise Problem("store_unavailable", "gone")
        self.acts.append(act)

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        return [(act.actor, act.action, act.verdict, act.why) for act in self.acts]

    async def over(self) -> UpgradeView:
        while not self.upgrades.show(None).is_over:
            await asyncio.sleep(0.05)
            for id, seen in self.fleet.seen.items():
                if seen.load is None:
                    self.fleet.answer(id, "ready")
            self.fleet.run(0.5)
        await asyncio.sleep(0.2)
        return self.upgrades.show(None)


@asynccontextmanager
async def running() -> AsyncIterator[Desk]:
    desk = Desk()
    task = asyncio.create_task(desk.upgrades.run())
    yield desk
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_it_is_carried_out_kept_and_written_down() -> None:
    """From the request to the end: begin and end are rows, the source is kept, and another one may follow."""

    async def act() -> None:
        async with running() as desk:
            assert desk.upgrades.start(None, ASKED).state == "fetching"
            with pytest.raises(Problem, match="under way"):
                desk.upgrades.start(None, ASKED)
            view = await desk.over()
            assert (view.state, view.replaced, view.replicas) == ("done", 2, 2)
            assert desk.place.kept == ["/new"] and desk.fleet.alive() == {"g", "n0", "n1"}
            assert [row[:3] for row in desk.rows] == [
                ("operator", "upgrade.start", "allowed"),
                ("operator", "upgrade.end", "allowed"),
            ]

    asyncio.run(act())


@pytest.mark.parametrize("problem", [Problem("hub_offline", "The hub is not reached."), RuntimeError("a bug")])
def test_what_cannot_be_fetched_changes_nothing(problem: Exception) -> None:
    """The old engines never hear of it, and the next upgrade is not held up."""

    async def act() -> None:
        async with running() as desk:
            desk.place.problem = problem
            desk.upgrades.start(None, ASKED)
            view = await desk.over()
            assert (view.state, view.replaced) == ("failed", 0) and desk.place.kept == []
            assert desk.fleet.alive() == {"g", "e0", "e1"}
            assert desk.rows[-1][1:3] == ("upgrade.end", "denied")
            desk.place.problem = None
            desk.upgrades.start(None, ASKED)
            assert (await desk.over()).state == "done"

    asyncio.run(act())


def test_of_many_that_are_asked_for_at_once_one_begins() -> None:
    """The admin API answers in threads: the others hear that one is under way, and the log has the one alone."""

    async def act() -> None:
        async with running() as desk:
            told: list[str] = []
            begin = threading.Barrier(4)

            def ask(number: int) -> None:
                begin.wait()
                try:
                    told.append(desk.upgrades.start(None, NewUpgrade(model="m", source=f"/new-{number}")).source)
                except Problem as problem:
                    told.append(problem.code)

            await asyncio.gather(*(asyncio.to_thread(ask, number) for number in range(4)))
            assert told.count("conflict") == 3
            [source] = set(told) - {"conflict"}
            assert (await desk.over()).source == source == desk.place.kept[0]
            assert [row[1] for row in desk.rows] == ["upgrade.start", "upgrade.end"]

    asyncio.run(act())


def test_what_cannot_be_written_down_is_not_begun() -> None:
    """A lost audit log refuses the upgrade, and nothing is under way afterwards."""

    async def act() -> None:
        async with running() as desk:
            desk.lost = True
            with pytest.raises(Problem, match="gone"):
                desk.upgrades.start(None, ASKED)
            desk.lost = False
            desk.upgrades.start(None, ASKED)
            assert (await desk.over()).state == "done"

    asyncio.run(act())


def test_others_may_not_even_look() -> None:
    """A user's key, a tenant's administrator and one of some models are denied all three, and that is written down."""

    async def act() -> None:
        async with running() as desk:
            for actor in (
                Principal(tenant="default", key_id="key_1", role="user"),
                Principal(tenant="below", key_id="key_2", role="admin"),
                Principal(tenant="default", key_id="key_3", role="admin", models=frozenset({"m2"})),
            ):
                for ask in (
                    lambda actor=actor: desk.upgrades.start(actor, ASKED),
                    lambda actor=actor: desk.upgrades.show(actor),
                    lambda actor=actor: desk.upgrades.stop(actor),
                ):
                    with pytest.raises(Problem) as raised:
                        ask()
                    assert raised.value.code == "permission_denied"
            assert [row[1:3] for row in desk.rows] == 3 * [("upgrade.start", "denied"), ("upgrade.stop", "denied")]
            with pytest.raises(Problem, match="not served"):
                desk.upgrades.start(None, NewUpgrade(model="other", source="/new"))
            with pytest.raises(Problem, match="Nothing was upgraded"):
                desk.upgrades.show(None)

    asyncio.run(act())


def test_stopping_goes_back() -> None:
    """While it rolls it can be stopped; before and after there is nothing to stop."""

    async def act() -> None:
        async with running() as desk:
            with pytest.raises(Problem, match="No upgrade is under way"):
                desk.upgrades.stop(None)
            desk.upgrades.start(None, ASKED)
            while desk.upgrades.show(None).state == "fetching":
                await asyncio.sleep(0.01)
            desk.upgrades.stop(None)
            view = await desk.over()
            assert (view.state, view.why) == ("rolled_back", "operator stopped it") and desk.place.kept == []
            assert desk.fleet.alive() == {"g", "e0", "e1"}

    asyncio.run(act())


@pytest.mark.parametrize("how", ["stop", "time"])
def test_a_source_that_hangs_holds_nobody_up(how: str) -> None:
    """A file system that does not answer: the upgrade is stopped, or over in its time, and the next one goes its way.

    Nothing waits for the read that hangs, the end of the service included.
    """

    async def act(place: list[Place]) -> None:
        async with running() as desk:
            place.append(desk.place)
            desk.place.answers.clear()
            asked = NewUpgrade(model="m", source="/gone", fetch_timeout_s=0.2 if how == "time" else 100.0)
            desk.upgrades.start(None, asked)
            if how == "stop":
                await asyncio.sleep(0.05)
                assert desk.upgrades.stop(None).state == "fetching"
            view = await desk.over()
            assert (view.state, view.replaced) == ("failed", 0)
            assert ("stopped it" if how == "stop" else "not there after 0.2 s") in view.why
            assert desk.fleet.alive() == {"g", "e0", "e1"}
            desk.place.fetch = lambda source: source  # type: ignore[method-assign]
            desk.upgrades.start(None, ASKED)
            assert (await desk.over()).state == "done"

    place: list[Place] = []
    try:
        asyncio.run(act(place))
    finally:
        place[0].answers.set()


def test_what_is_stopped_at_once_is_not_begun() -> None:
    """Between the request and its first step, too."""

    async def act() -> None:
        async with running() as desk:
            desk.upgrades.start(None, ASKED)
            desk.upgrades.stop(None)
            view = await desk.over()
            assert view.state == "failed" and desk.fleet.alive() == {"g", "e0", "e1"}

    asyncio.run(act())
