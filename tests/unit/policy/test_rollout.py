"""A rolling upgrade decided step by step, over replicas that are a dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from penstock.policy.rollout import Duty, ReplicaView, RolloutMemory, RolloutRules, RolloutVerdict, RolloutView, decide

RULES = RolloutRules(drain_timeout_s=30.0, prove_s=3.0, start_timeout_s=100.0)


@dataclass
class Fleet:
    """Does what it is told, one step a second: a replica is ready ``load_s`` after its start, a leaving one ends."""

    size: int
    load_s: float = 2.0
    busy: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    hopeless: set[str] = field(default_factory=set)
    vocabulary: dict[str, str] = field(default_factory=dict)
    settled: bool = True
    stop: str = ""
    now: float = 0.0
    memory: RolloutMemory = RolloutMemory()
    fewest_ready: int = 99
    most_running: int = 0
    verdict: RolloutVerdict | None = None

    def __post_init__(self) -> None:
        self.started = {f"o{n}": -99.0 for n in range(self.size)}

    @property
    def is_over(self) -> bool:
        return self.memory.outcome is not None

    def view(self, id: str) -> ReplicaView:
        present = id in self.started
        ready = present and id not in self.failed and self.now - self.started[id] >= self.load_s
        return ReplicaView(
            id=id,
            present=present,
            ready=ready,
            failed=self.failed.get(id, ""),
            hopeless=id in self.hopeless,
            num_busy=self.busy.get(id, 0),
            vocabulary=self.vocabulary.get(id, "v") if ready else "",
        )

    def views(self, kind: str) -> list[ReplicaView]:
        return [self.view(f"{kind}{n}") for n in range(self.size)]

    def step(self) -> dict[str, Duty]:
        view = RolloutView(old=self.views("o"), new=self.views("n"), settled=self.settled, stop=self.stop)
        self.verdict, self.memory = decide(view, RULES, self.memory, self.now)
        duties = self.verdict.duties
        for id in list(self.started):
            if duties.get(id, "leave") == "leave":
                del self.started[id]
        for id, duty in duties.items():
            if duty in ("serve", "warm"):
                self.started.setdefault(id, self.now)
        serving = [id for id, duty in duties.items() if duty == "serve" and self.view(id).ready]
        self.fewest_ready = min(self.fewest_ready, len(serving))
        self.most_running = max(self.most_running, len(self.started))
        self.now += 1.0
        return duties

    def run(self, limit: int = 500) -> Fleet:
        for _ in range(limit):
            self.step()
            if self.memory.outcome is not None:
                self.step()
                return self
        raise AssertionError(f"not over: {self.memory}")


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_replica_is_replaced_and_none_is_missed(size: int) -> None:
    """In the end only new ones run; on the way as many serve as before and one more runs."""
    fleet = Fleet(size).run()
    assert fleet.memory.outcome == "done"
    assert set(fleet.started) == {f"n{n}" for n in range(size)}
    assert (fleet.fewest_ready, fleet.most_running) == (size, size + 1)


def test_a_busy_replica_gets_its_time_and_no_more() -> None:
    """One that keeps its streams is ended when the time to drain is over."""
    fleet = Fleet(1, busy={"o0": 3})
    while "drain" not in fleet.step().values():
        pass
    began = fleet.now
    fleet.run()
    assert 29 <= fleet.now - began <= 35


def test_nothing_ends_before_every_gateway_knows() -> None:
    """As long as a gateway routes by an older state, the old replica goes on."""
    fleet = Fleet(1, settled=False)
    for _ in range(300):
        fleet.step()
    assert set(fleet.started) == {"o0", "n0"} and fleet.memory.outcome is None
    fleet.settled = True
    assert set(fleet.run().started) == {"n0"}


def test_a_source_that_does_not_load_costs_nothing() -> None:
    """The first new replica fails: it goes, no old one was touched, and the reason is told."""
    fleet = Fleet(3, failed={"n0": "model.norm.weight is missing"}).run()
    assert fleet.memory.outcome == "rolled_back" and set(fleet.started) == {"o0", "o1", "o2"}
    assert fleet.fewest_ready == 3
    assert fleet.memory.reason == "n0: model.norm.weight is missing"


@pytest.mark.parametrize("moment", range(1, 20))
def test_a_crash_at_any_moment_brings_all_old_ones_back(moment: int) -> None:
    """Whenever new replicas begin to fail, the old source serves in the end, with at most one place short."""
    fleet = Fleet(3)
    for _ in range(moment):
        fleet.step()
    if not fleet.is_over:
        fleet.failed = {f"n{n}": "ended by signal 11" for n in range(3)}
        fleet.run()
        assert fleet.memory.outcome == "rolled_back" and set(fleet.started) == {"o0", "o1", "o2"}


def test_a_crash_after_two_places_starts_the_old_ones_again_first() -> None:
    """Going back, a new replica that is well serves until the old one is ready again."""
    fleet = Fleet(3)
    while fleet.memory.place < 2:
        fleet.step()
    fleet.fewest_ready = 99
    fleet.failed = {"n2": "ended by signal 11"}
    fleet.run()
    assert fleet.memory.outcome == "rolled_back" and set(fleet.started) == {"o0", "o1", "o2"}
    assert fleet.fewest_ready == 3


def test_another_vocabulary_is_refused() -> None:
    """The token ids of a running stream would stand for other text, so the new replica goes again."""
    fleet = Fleet(2, vocabulary={"n0": "w"}).run()
    assert fleet.memory.outcome == "rolled_back" and set(fleet.started) == {"o0", "o1"}
    assert "another vocabulary" in fleet.memory.reason


def test_one_that_never_gets_ready_is_given_up() -> None:
    """A start without an end is bounded."""
    fleet = Fleet(2, load_s=2.0)
    fleet.vocabulary = {}
    fleet.load_s = 2.0
    fleet.started = {"o0": -999.0, "o1": -999.0}
    fleet.load_s = 500.0
    fleet.run()
    assert fleet.memory.outcome == "rolled_back" and "was not ready within 100 s" in fleet.memory.reason


def test_somebody_may_stop_it() -> None:
    """Asked to stop after the first place, it goes back."""
    fleet = Fleet(2)
    while fleet.memory.place < 1:
        fleet.step()
    fleet.stop = "an administrator stopped it"
    fleet.run()
    assert fleet.memory.outcome == "rolled_back" and set(fleet.started) == {"o0", "o1"}


def test_an_old_replica_that_is_lost_on_the_way_back_is_waited_for() -> None:
    """It is started again like any other that ended, and the way back goes on."""
    fleet = Fleet(2)
    while fleet.memory.place < 1:
        fleet.step()
    fleet.failed = {"n1": "ended by signal 11", "o0": "killed by signal 9", "o1": "killed by signal 9"}
    for _ in range(20):
        fleet.step()
    assert not fleet.is_over and "n0" in fleet.started
    fleet.failed = {"n1": "ended by signal 11"}
    fleet.run()
    assert fleet.memory.outcome == "rolled_back" and set(fleet.started) == {"o0", "o1"}


def test_going_back_an_old_replica_that_serves_goes_on_serving() -> None:
    """It takes work all the while: it has nothing to prove."""
    fleet = Fleet(1)
    while "drain" not in fleet.step().values():
        pass
    fleet.failed = {"n0": "ended by signal 11"}
    assert fleet.step()["o0"] == "serve"


def test_where_neither_works_what_serves_stays() -> None:
    """An old source that does not load any more leaves the new replicas that are well, and the state says stuck."""
    fleet = Fleet(2)
    while fleet.memory.place < 1:
        fleet.step()
    fleet.failed = {"n1": "ended by signal 11", "o0": "the directory is gone"}
    fleet.hopeless = {"o0"}
    fleet.run()
    assert fleet.memory.outcome == "stuck"
    assert set(fleet.started) == {"n0", "o1"}
