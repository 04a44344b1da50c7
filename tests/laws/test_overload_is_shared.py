"""Laws of admission under overload: shares, order, bounds, and that nobody waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.policy.admit import AdmitRules, AdmitVerdict, Entry, Room, Shares, arrive, next_up


@dataclass
class Door:
    """The machine around the policy in its least form."""

    rules: AdmitRules
    capacity: int
    shares: Shares = field(default_factory=Shares)
    waiting: list[Entry] = field(default_factory=list)
    running: list[Entry] = field(default_factory=list)
    served: list[Entry] = field(default_factory=list)
    now: float = 0.0
    count: int = 0

    @property
    def room(self) -> Room:
        return Room(capacity=self.capacity, running=sum(entry.cost for entry in self.running), drained_per_s=100.0)

    def come(self, tenant: str, cost: int, weight: float = 1.0, priority: int = 0) -> AdmitVerdict:
        self.count += 1
        entry = Entry(id=str(self.count), tenant=tenant, cost=cost, weight=weight, priority=priority)
        verdict, self.shares = arrive(entry, self.waiting, self.room, self.rules, self.shares, self.now)
        if verdict.shed is not None:
            self.waiting.remove(verdict.shed)
        if verdict.action == "go":
            self.start(verdict.entry)
        elif verdict.action == "wait":
            self.waiting.append(verdict.entry)
        return verdict

    def start(self, entry: Entry) -> None:
        self.running.append(entry)
        self.served.append(entry)
        assert len(self.running) == 1 or self.room.running <= self.capacity

    def end_one(self) -> None:
        if self.running:
            self.running.pop(0)
        while True:
            entry, self.shares = next_up(self.waiting, self.room, self.rules, self.shares, self.now)
            if entry is None:
                break
            self.waiting.remove(entry)
            self.start(entry)


PATIENT = AdmitRules(max_waiting=10_000, max_wait_s=1e9, ageing_s=1e9)
costs = st.integers(1, 400)
tenants = st.sampled_from(["a", "b", "c"])
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 5.0}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(tenants, costs), min_size=20, max_size=120), st.integers(100, 1000))
def test_backlogged_tenants_share_by_weight(arrivals: list[tuple[str, int]], capacity: int) -> None:
    """While two tenants both wait, what each is served per weight differs by no more than one request of each."""
    door = Door(PATIENT, capacity)
    for tenant, cost in arrivals:
        door.come(tenant, cost, WEIGHTS[tenant])
        door.now += 0.01
    before = len(door.served)
    largest = {tenant: max((c for t, c in arrivals if t == tenant), default=0) for tenant in WEIGHTS}
    got = dict.fromkeys(WEIGHTS, 0.0)
    backlogged = {entry.tenant for entry in door.waiting}
    while door.waiting:
        door.end_one()
        for entry in door.served[before:]:
            got[entry.tenant] += entry.cost / entry.weight
        before = len(door.served)
        backlogged &= {entry.tenant for entry in door.waiting}
        for one in backlogged:
            for other in backlogged:
                bound = largest[one] / WEIGHTS[one] + largest[other] / WEIGHTS[other]
                assert abs(got[one] - got[other]) <= bound + 1e-6


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(tenants, costs, st.integers(-2, 2), st.floats(0, 3)), max_size=150), st.integers(1, 20))
def test_everybody_is_served_or_told_once(arrivals: list[tuple[str, int, int, float]], max_waiting: int) -> None:
    """Each request goes on once or is refused once; the queue stays in its bound; nobody is overtaken for ever."""
    door = Door(AdmitRules(max_waiting=max_waiting, max_wait_s=60.0, ageing_s=2.0), 500)
    told = 0
    for tenant, cost, priority, pause in arrivals:
        verdict = door.come(tenant, cost, WEIGHTS[tenant], priority)
        told += (verdict.action == "refuse") + (verdict.shed is not None)
        assert len(door.waiting) <= max_waiting and verdict.retry_after_s >= 1 and verdict.why
        door.now += pause
        if pause > 1:
            door.end_one()
    while door.running:
        door.end_one()
    assert not door.waiting
    assert len(door.served) == len({entry.id for entry in door.served}) == len(arrivals) - told


def test_a_flood_does_not_keep_the_others_out() -> None:
    """A tenant that fills the queue gives way, from its last request on, until the others have their shares."""
    door = Door(AdmitRules(max_waiting=10, max_wait_s=1e9), 100)
    for _ in range(50):
        flood = door.come("flood", 100)
    assert flood.action == "refuse" and "flood" in flood.why
    verdicts = [door.come("quiet", 10) for _ in range(6)]
    assert [verdict.action for verdict in verdicts] == ["wait"] * 5 + ["refuse"]
    assert {verdict.shed.tenant for verdict in verdicts[:5] if verdict.shed is not None} == {"flood"}
    door.end_one()
    assert door.served[-1].tenant == "quiet"


def test_a_newcomer_is_served_before_the_backlog_of_others() -> None:
    """Who asks seldom does not pay for who asked much: its first request starts where the shares stand now."""
    door = Door(PATIENT, 100)
    for _ in range(100):
        door.come("busy", 100)
    door.end_one()
    door.come("seldom", 100)
    door.end_one()
    assert [entry.tenant for entry in door.served[-2:]].count("seldom") == 1 or door.waiting[0].tenant != "seldom"
    for _ in range(2):
        door.end_one()
    assert "seldom" in {entry.tenant for entry in door.served[-4:]}


def test_priorities_go_first_until_others_have_aged() -> None:
    """A stream of high priority delays a low one, and no longer than ageing allows."""
    door = Door(AdmitRules(max_wait_s=1e9, ageing_s=5.0), 100)
    door.come("a", 100)
    door.come("a", 100, priority=-1)
    waited = 0.0
    while not any(entry.priority == -1 for entry in door.served):
        door.come("b", 100, priority=1)
        door.now += 1.0
        waited += 1.0
        door.end_one()
    assert 10.0 <= waited <= 20.0


def test_age_does_not_undo_the_shares() -> None:
    """A backlog that has waited long goes before nobody of the same priority: the newcomers get their share at once."""
    door = Door(AdmitRules(max_wait_s=1e9, ageing_s=5.0), 100)
    for _ in range(100):
        door.come("flood", 100)
    door.now += 60.0
    for _ in range(20):
        door.come("quiet", 100, weight=3.0)
    before = len(door.served)
    for _ in range(20):
        door.end_one()
    served = [entry.tenant for entry in door.served[before:]]
    assert 14 <= served.count("quiet") <= 16


def test_a_queue_that_takes_too_long_is_not_joined() -> None:
    """Refused at once with the predicted time, rather than after having waited for it."""
    door = Door(AdmitRules(max_wait_s=30.0), 100)
    verdicts = [door.come("a", 100) for _ in range(40)]
    assert [verdict.action for verdict in verdicts].count("wait") == 30
    assert verdicts[-1].action == "refuse" and verdicts[-1].retry_after_s == 30.0
    assert door.come("b", 10).action == "wait"
