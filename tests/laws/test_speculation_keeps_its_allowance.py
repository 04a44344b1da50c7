"""Whatever becomes of proposals and however steps scatter: speculation costs next to nothing, and pays where it can."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from penstock.engine.kv_cache import BlockPool
from penstock.engine.lookup import Lookup
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence, StepPlan, StepResult, TokenScore
from penstock.events.list import Event, StepDone
from penstock.policy.batch import BatchRules
from penstock.wire.engine import FinishReason, Sampling
from penstock.wire.errors import Problem

Accepts = Callable[["Machine", int], int]
"""Of a step's proposal of so many tokens, how many the model accepts."""
STEP_S = 1.0


class Silent:
    """A sink that wants nothing."""

    def prompt_scored(self, scores: list[TokenScore]) -> None: ...

    def push(self, token_id: int, score: TokenScore | None) -> bool:
        return False

    def finish(self, reason: FinishReason, stop_token_id: int | None, num_cached_tokens: int) -> None: ...

    def fail(self, problem: Problem) -> None: ...


class Machine:
    """An engine in virtual time.

    A plain step takes a second.  ``row``: what each further row adds; ``look``: what asking a sequence adds;
    ``rework``: what a step that speculates takes longer, and the one behind it; ``turn``: what lies between two calls
    of the executor; all as shares of that second.  With ``short`` steps it is half a thousandth of one, so that
    plain ones are computed several in a call.
    ``scatter``: by how much each step's time varies; ``stalls``: how often a step takes 30 times as long;
    ``cold``: so many steps' time more take the first three that speculate;
    ``gear``: for 300 steps' time of each 600 the machine takes so many times as long.
    """

    def __init__(
        self,
        accepts: Accepts,
        *,
        streams: int,
        row: float,
        look: float,
        rework: float = 0.0,
        turn: float = 0.0,
        short: bool = False,
        scatter: float = 0.0,
        stalls: float = 0.0,
        gear: float = 1.0,
        cold: float = 0.0,
        proposes: bool = True,
    ) -> None:
        rules = BatchRules(512, 32, 16, speculative_tokens=8 if proposes else 0)
        self.num_tokens = self.num_proposed = self.num_accepted = 0
        self.loop = Loop(Scheduler(rules, BlockPool(16_384)), self._note)
        self.num_looked = 0
        self.now_s = 0.0
        self.streams = streams
        self.num_steps = 0
        self.step_s = STEP_S / 2000 if short else STEP_S
        self.call_s = self.step_s * (1 + turn)
        self._accepts, self._row, self._look, self._rework, self._turn = accepts, row, look, rework, turn
        self._scatter, self._stalls, self._gear = scatter, stalls, gear
        self._cold = [cold] * 3
        self._dice, self._tokens = random.Random(1), random.Random(2)
        self._spoke = False

    def _note(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.num_proposed += event.proposed_tokens
            self.num_accepted += event.accepted_tokens
            self.num_tokens += event.decode_tokens

    def generate(self, num_tokens: int) -> float:
        """The seconds in which new streams get so many tokens each, on average."""
        begin, wanted = self.now_s, self.num_tokens + self.streams * num_tokens
        names = [f"{self.num_steps}-{i}" for i in range(self.streams)]
        for name in names:
            prompt = [self._tokens.randrange(4) for _ in range(64)]
            sampling = Sampling(seed=1, temperature=0.0)
            self.loop.submit(Sequence(name, prompt, len(prompt), 10 * num_tokens, sampling, Silent()))
        while self.num_tokens < wanted:
            plan = self.loop.plan()
            assert plan is not None
            self.loop.commit(plan, self._execute(plan))
        for name in names:
            self.loop.abort(name)
        return self.now_s - begin

    def _execute(self, plan: StepPlan) -> StepResult:
        speaks = bool(plan.proposals) or self.num_looked > 0
        rows = self._row * (plan.num_tokens - len(plan.sequences))
        seconds = plan.rounds + rows + self._look * self.num_looked
        seconds = self.step_s * (seconds + self._turn + self._rework * (self._spoke or speaks))
        seconds *= 1 + self._scatter * self._dice.uniform(-1, 1)
        if self.now_s // (300 * self.step_s) % 2:
            seconds *= self._gear
        if self._dice.random() < self._stalls:
            seconds += 30 * self.step_s
        if speaks and self._cold:
            seconds += self._cold.pop() * self.step_s
        self.num_looked, self._spoke = 0, speaks
        self.now_s += seconds
        self.num_steps += 1
        token_ids: list[int | None] = [self._tokens.randrange(4) for _ in plan.sequences]
        further: dict[int, list[tuple[int, TokenScore | None]]] = {}
        for i, proposal in plan.proposals.items():
            count = min(self._accepts(self, len(proposal)), len(proposal))
            taken = [*proposal[:count], 3 - proposal[count] if count < len(proposal) else 0]
            token_ids[i] = taken[0]
            further[i] = [(token_id, None) for token_id in taken[1:]]
        nothing: list[None] = [None] * len(token_ids)
        later = [[self._tokens.randrange(4) for _ in plan.sequences] for _ in range(plan.rounds - 1)]
        empty: list[list[TokenScore]] = [[] for _ in token_ids]
        between_s = self.step_s * self._turn
        return StepResult(
            plan.step, token_ids, nothing, empty, seconds=seconds, between_s=between_s, further=further, later=later
        )


@pytest.fixture(autouse=True)
def machines(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """The machine that looks up now, last: it pays for that."""
    known: list[Machine] = []
    find = Lookup.find

    def counted(self: Lookup, token_ids: list[int], most: int) -> object:
        known[-1].num_looked += 1
        return find(self, token_ids, most)

    monkeypatch.setattr(Lookup, "find", counted)
    return known


def never(machine: Machine, proposed: int) -> int:
    return 0


def always(machine: Machine, proposed: int) -> int:
    return proposed


def one_of_two(machine: Machine, proposed: int) -> int:
    return machine.num_steps % 2 * proposed


def just_before_it_ends(machine: Machine, proposed: int) -> int:
    """Keeps it going at the least price: accepts one token when there is hardly anything left to lose."""
    return int(machine.loop.scheduler.allowance(machine.streams).seconds < 0.5 * machine.call_s)


def long_before_it_ends(machine: Machine, proposed: int) -> int:
    """The same with two steps' time left, so that proposals hardly ever rest."""
    return int(machine.loop.scheduler.allowance(machine.streams).seconds < 2.0 * machine.call_s)


def until_it_is_believed(machine: Machine, proposed: int) -> int:
    """Accepts all for fifty steps, then nothing for two hundred."""
    return proposed if machine.num_steps % 250 < 50 else 0


@pytest.mark.parametrize("streams", [1, 16])
@pytest.mark.parametrize("row", [0.01, 0.3])
@pytest.mark.parametrize(
    "accepts", [never, one_of_two, just_before_it_ends, until_it_is_believed], ids=lambda accepts: str(accepts.__name__)
)
@pytest.mark.parametrize(("scatter", "stalls", "most"), [(0.0, 0.0, 1.02), (0.4, 0.0, 1.05), (0.1, 0.01, 1.05)])
def test_no_pattern_of_what_is_accepted_makes_speculation_cost_more_than_it_may(
    machines: list[Machine], accepts: Accepts, streams: int, row: float, scatter: float, stalls: float, most: float
) -> None:
    """Two percent in some thousand steps, looking up and what a step leaves for the next to do again included.

    Where steps scatter the two runs differ by chance, too.
    """
    took = {}
    for proposes in (False, True):
        machine = Machine(
            accepts,
            streams=streams,
            row=row,
            look=0.02 / streams,
            rework=0.05,
            scatter=scatter,
            stalls=stalls,
            proposes=proposes,
        )
        machines.append(machine)
        took[proposes] = machine.generate(1200)
    assert machines[-1].num_proposed > 0
    assert took[True] < most * took[False]


@pytest.mark.parametrize("streams", [1, 16])
@pytest.mark.parametrize(
    "accepts", [never, just_before_it_ends, long_before_it_ends], ids=lambda accepts: str(accepts.__name__)
)
def test_steps_that_are_several_in_a_call_count_for_what_they_are_without(
    machines: list[Machine], accepts: Accepts, streams: int
) -> None:
    """A step that speculates is one in a call: what lies between calls is a part of its price.

    Streams that got ahead by what was accepted reach the ends of their blocks at other times, which costs nothing.
    """
    took, num_tokens = {}, 6000 // streams
    for proposes in (False, True):
        machine = Machine(
            accepts, streams=streams, row=0.05, look=0.02 / streams, turn=0.5, short=True, proposes=proposes
        )
        machines.append(machine)
        took[proposes] = sum(machine.generate(num_tokens) for _ in range(min(streams, 4)))
        assert proposes or machine.num_steps < num_tokens * min(streams, 4) / 3
    assert machines[-1].num_proposed > 0
    assert took[True] < 1.02 * took[False]


@pytest.mark.parametrize("row", [0.05, 0.3])
def test_a_machine_that_changes_its_speed_does_not_make_what_is_lost_seem_won(
    machines: list[Machine], row: float
) -> None:
    """Half of the time it is 1.4 times as slow, as beside a neighbour; nothing is accepted: five percent at most."""
    took = {}
    for proposes in (False, True):
        machine = Machine(never, streams=16, row=row, look=0.002, rework=0.05, gear=1.4, proposes=proposes)
        machines.append(machine)
        took[proposes] = machine.generate(6000)
    assert machines[-1].num_proposed > 0
    assert took[True] < 1.05 * took[False]


@pytest.mark.parametrize("streams", [1, 16])
@pytest.mark.parametrize("scatter", [0.0, 0.3])
def test_what_pays_goes_on(machines: list[Machine], streams: int, scatter: float) -> None:
    """Where all is accepted and rows cost little, tokens come several times as fast, but for the steps measured."""
    machine = Machine(always, streams=streams, row=0.02, look=0.001, scatter=scatter)
    machines.append(machine)
    assert machine.generate(4000) < 4000 * STEP_S / 2


def test_what_pays_goes_on_though_its_first_steps_came_slowly(machines: list[Machine]) -> None:
    """Their kernels are cold: eight times a step's time each says nothing of those to come."""
    machine = Machine(always, streams=1, row=0.02, look=0.001, cold=8.0)
    machines.append(machine)
    assert machine.generate(300) < 300 * STEP_S / 1.5


@pytest.mark.parametrize("streams", [1, 16])
def test_after_a_bad_time_it_is_found_out_that_it_pays(machines: list[Machine], streams: int) -> None:
    """A thousand steps in which nothing was accepted, then all is: soon tokens come several times as fast."""
    machine = Machine(
        lambda machine, proposed: proposed if machine.num_steps > 1000 else 0, streams=streams, row=0.01, look=0.002
    )
    machines.append(machine)
    assert machine.generate(1500) > 1100 * STEP_S * 0.9
    assert machine.generate(2000) < 2000 * STEP_S / 2


def test_a_step_of_a_resting_engine_looks_nothing_up(machines: list[Machine]) -> None:
    """Where nothing is accepted most steps are plain: no sequence is asked."""
    machine = Machine(never, streams=16, row=0.3, look=0.01)
    machines.append(machine)
    looked = []
    execute = machine._execute

    def noted(plan: StepPlan) -> StepResult:
        looked.append(machine.num_looked)
        return execute(plan)

    machine._execute = noted  # type: ignore[method-assign]
    machine.generate(2000)
    assert sum(count == 0 for count in looked) > 0.8 * len(looked)
