"""A constraint in the loop: when it advances, and the ends that it gives a sequence."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from penstock.cost.time import StepTime
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence
from penstock.policy.batch import BatchRules
from penstock.sim.clock import VirtualClock
from penstock.sim.executor import SimulatedExecutor
from penstock.sim.replay import Recorder
from penstock.wire.engine import Sampling
from penstock.wire.errors import Problem

CLOCK = VirtualClock()
EXECUTOR = SimulatedExecutor(CLOCK, StepTime(1e-3, 0, 0))
END, WRONG = 99, 66


@dataclass
class Scripted:
    """Ends at one token, fails at another, and keeps the others."""

    taken: list[int] = field(default_factory=list)

    def mask(self) -> bytes | None:
        return None

    def advance(self, token_id: int) -> bool:
        if token_id == WRONG:
            raise Problem("grammar_too_complex", "wrong")
        if token_id != END:
            self.taken.append(token_id)
        return token_id != END


def started(max_tokens: int = 5, **fields: object) -> tuple[Loop, Sequence, Scripted, Recorder]:
    rules = BatchRules(max_step_tokens=64, max_num_seqs=8, block_tokens=4)
    loop = Loop(Scheduler(rules, BlockPool(8)), lambda event: None)
    recorder, constraint = Recorder(CLOCK, CLOCK.now()), Scripted()
    sequence = Sequence("a", [1, 2, 3], 3, max_tokens, Sampling(seed=1), recorder, constraint=constraint, **fields)  # type: ignore[arg-type]  # fields of several types
    loop.submit(sequence)
    return loop, sequence, constraint, recorder


def step(loop: Loop, token_id: int) -> None:
    plan = loop.plan()
    assert plan is not None
    loop.commit(plan, replace(EXECUTOR.execute(plan), token_ids=[token_id]))


def test_a_token_that_ends_the_text_is_not_handed_out() -> None:
    """The sequence stops although the token is no stop token, before min_tokens too: nothing else could follow."""
    loop, _, constraint, recorder = started(min_tokens=4)
    step(loop, 7)
    step(loop, END)
    assert (recorder.reason, recorder.token_ids, constraint.taken) == ("stop", [7], [7])


def test_a_problem_of_the_constraint_ends_its_sequence_alone() -> None:
    """The token is not handed out, the sequence fails, and another one of the same step goes on."""
    loop, _, _, recorder = started()
    other = Recorder(CLOCK, CLOCK.now())
    loop.submit(Sequence("b", [4, 5], 2, 2, Sampling(seed=1), other))
    while len(loop):
        plan = loop.plan()
        assert plan is not None
        tokens = [WRONG if sequence.id == "a" else 8 for sequence in plan.sequences]
        loop.commit(plan, replace(EXECUTOR.execute(plan), token_ids=tokens))
    assert (recorder.reason, recorder.token_ids) == ("grammar_too_complex", [])
    assert (other.reason, other.token_ids) == ("length", [8, 8])


def test_a_dropped_result_does_not_advance_the_constraint() -> None:
    """A token from before a preemption leaves no trace; the one drawn again counts once."""
    loop, sequence, constraint, recorder = started(max_tokens=1)
    plan = loop.plan()
    assert plan is not None
    sequence.epoch += 1
    loop.commit(plan, replace(EXECUTOR.execute(plan), token_ids=[7]))
    assert constraint.taken == []
    step(loop, 7)
    assert (constraint.taken, recorder.token_ids, recorder.reason) == ([7], [7], "length")
