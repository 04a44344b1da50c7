"""The loop: aborts, late results, failing steps, and what a sequence's end looks like."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from penstock.cost.time import StepTime
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Pooling, Sequence, StepPlan, StepResult, TokenScore
from penstock.events.list import Event, SequenceEnded, StepDone
from penstock.policy.batch import BatchRules
from penstock.policy.speculate import Allowance, mix
from penstock.sim.clock import VirtualClock
from penstock.sim.executor import SimulatedExecutor
from penstock.sim.replay import Recorder
from penstock.wire.engine import Sampling
from penstock.wire.errors import Problem

CLOCK = VirtualClock()
EXECUTOR = SimulatedExecutor(CLOCK, StepTime(1e-3, 0, 0))


@dataclass
class ScoreRecorder(Recorder):
    """A recorder that takes prompt scores, which a simulation never asks for."""

    heard: list[int] = field(default_factory=list)

    def prompt_scored(self, scores: list[TokenScore]) -> None:
        self.heard += [score.token_id for score in scores]


def loop_of(num_blocks: int = 8, events: list[Event] | None = None) -> Loop:
    rules = BatchRules(max_step_tokens=64, max_num_seqs=8, block_tokens=4)
    seen: list[Event] = [] if events is None else events
    return Loop(Scheduler(rules, BlockPool(num_blocks)), seen.append)


def sequence(name: str, num_prompt: int = 6, max_tokens: int = 4, **fields: object) -> tuple[Sequence, Recorder]:
    recorder = Recorder(CLOCK, CLOCK.now())
    made = Sequence(name, list(range(num_prompt)), num_prompt, max_tokens, Sampling(seed=1), recorder, **fields)  # type: ignore[arg-type]  # fields of several types
    return made, recorder


def planned(loop: Loop) -> tuple[StepPlan, StepResult]:
    plan = loop.plan()
    assert plan is not None
    return plan, EXECUTOR.execute(plan)


def test_an_abort_during_a_step_frees_the_blocks_with_that_step() -> None:
    """While a step computes nothing changes hands; with its commit the aborted request's blocks are idle."""
    loop = loop_of()
    aborted, recorder = sequence("a")
    loop.submit(aborted)
    plan, result = planned(loop)

    loop.abort("a")
    assert loop.scheduler.pool.num_used == 2
    loop.commit(plan, result)

    assert loop.scheduler.pool.num_used == 0
    assert (recorder.reason, recorder.token_ids) == ("cancelled", [])


def test_an_abort_between_steps_takes_effect_at_once_and_shows() -> None:
    """Idle or waiting, an aborted request is gone immediately, and the gauges hear of it."""
    events: list[Event] = []
    loop = loop_of(events=events)
    aborted, recorder = sequence("a")
    loop.submit(aborted)
    loop.commit(*planned(loop))

    loop.abort("a")

    assert recorder.num_terminal == 1
    last = events[-1]
    assert isinstance(last, StepDone) and (last.running, last.kv_blocks_used) == (0, 0)
    assert loop.plan() is None


def test_a_result_from_before_a_preemption_is_dropped() -> None:
    """A token that was computed in an older epoch never reaches the sequence."""
    loop = loop_of()
    late, recorder = sequence("a")
    loop.submit(late)
    plan, result = planned(loop)
    late.epoch += 1

    loop.commit(plan, result)

    assert recorder.token_ids == []
    assert late.num_computed == 0


def test_a_step_that_raises_ends_its_sequences_and_no_others() -> None:
    """The planned sequences fail with the problem; one that was waiting goes on."""
    loop = loop_of(num_blocks=2)
    (failing, failed), (waiting, untouched) = sequence("a"), sequence("b", max_tokens=2)
    loop.submit(failing)
    loop.submit(waiting)
    plan = loop.plan()
    assert plan is not None and plan.sequences == [failing]

    loop.fail(plan, Problem("internal_error", "the step raised"))
    while len(loop):
        loop.commit(*planned(loop))

    assert failed.reason == "internal_error"
    assert (untouched.reason, len(untouched.token_ids)) == ("length", 2)


def test_a_step_that_raised_is_not_taken_for_one_that_looked_for_proposals() -> None:
    """The step behind it, of somebody's prompt alone, looks for none and is plain."""
    loop, _, recorder, plan, _ = verifying([11])
    speculation = loop.scheduler._speculation
    assert speculation is not None
    loop.fail(plan, Problem("internal_error", "the step raised"))
    assert recorder.reason == "internal_error"

    loop.submit(sequence("b")[0])
    later = loop.plan()
    assert later is not None and not speculation.fill(later, 0)


def test_a_stop_token_ends_a_sequence_only_behind_min_tokens() -> None:
    """The same token is text before min_tokens and the end afterwards."""
    loop = loop_of()
    stopping, recorder = sequence("a", max_tokens=6, min_tokens=2, stop_token_ids=frozenset({7}))
    loop.submit(stopping)
    while len(loop):
        plan, result = planned(loop)
        loop.commit(plan, replace(result, token_ids=[7]))

    assert recorder.reason == "stop"
    assert recorder.token_ids == [7, 7]


def test_prompt_scores_are_handed_out_once_even_if_computed_twice() -> None:
    """After a preemption in the middle of scoring, the scores that were given already are not given again."""
    loop = loop_of()
    scored, _ = sequence("a", num_prompt=8, max_tokens=1, score_prompt=True)
    recorder = ScoreRecorder(CLOCK, CLOCK.now())
    scored.sink = recorder
    loop.submit(scored)

    def step(start: int, count: int, token: int | None) -> None:
        plan, result = planned(loop)
        plan.starts, plan.counts = [start], [count]
        scores = [[TokenScore(position, -1.0, []) for position in range(start + 1, min(start + count, 7) + 1)]]
        loop.commit(plan, replace(result, token_ids=[token], prompt_scores=scores))

    step(0, 5, None)
    scored.num_computed = 0
    step(0, 8, 3)

    assert recorder.heard == [1, 2, 3, 4, 5, 6, 7]


def test_every_end_is_an_event() -> None:
    """A sequence that leaves the engine is counted with its tokens."""
    events: list[Event] = []
    loop = loop_of(events=events)
    loop.submit(sequence("a", max_tokens=3)[0])
    while len(loop):
        loop.commit(*planned(loop))

    (ended,) = [event for event in events if isinstance(event, SequenceEnded)]
    assert (ended.reason, ended.prompt_tokens, ended.output_tokens) == ("length", 6, 3)


def pooled_result(plan: StepPlan, vectors: dict[int, bytes | None]) -> StepResult:
    empty: list[None] = [None] * len(plan.sequences)
    return StepResult(plan.step, empty, empty, [[] for _ in empty], pooled=vectors)


def test_a_pooled_sequence_ends_with_its_prompt_and_keeps_its_vector() -> None:
    """The step that computes the last prompt token finishes it, without output; a later reader finds the vector."""
    events: list[Event] = []
    loop = loop_of(events=events)
    pooled, recorder = sequence("a", max_tokens=0, pooling=Pooling("last"))
    loop.submit(pooled)
    plan = loop.plan()
    assert plan is not None
    loop.commit(plan, pooled_result(plan, {0: b"\0\0\x80?"}))

    assert (recorder.reason, recorder.token_ids, pooled.pooled) == ("stop", [], b"\0\0\x80?")
    assert [event.output_tokens for event in events if isinstance(event, SequenceEnded)] == [0]
    assert loop.scheduler.pool.num_used == 0


def test_a_vector_that_is_not_finite_fails_its_sequence_alone() -> None:
    """Of two texts in a step, the one without a vector fails with the reason, the other finishes."""
    loop = loop_of()
    (sick, sick_recorder), (well, well_recorder) = (
        sequence(name, max_tokens=0, pooling=Pooling("last")) for name in ("sick", "well")
    )
    loop.submit(sick)
    loop.submit(well)
    plan = loop.plan()
    assert plan is not None
    loop.commit(plan, pooled_result(plan, {0: None, 1: b"\0\0\x80?"}))

    assert sick_recorder.reason == "not_finite"
    assert well_recorder.reason == "stop"
    assert len(loop) == 0


@pytest.mark.parametrize(("rows", "reused"), [("last", 4), ("mean", 0), ("cls", 0)])
def test_only_what_needs_the_last_row_alone_starts_from_a_cached_prefix(rows: str, reused: int) -> None:
    """A mean or a first row needs hidden states that the prefix cache does not keep."""
    loop = loop_of()
    starts = []
    for name in ("first", "again"):
        pooled, _ = sequence(name, max_tokens=0, pooling=Pooling(rows))  # type: ignore[arg-type]  # parametrised over the literal's values
        loop.submit(pooled)
        plan = loop.plan()
        assert plan is not None
        starts += plan.starts
        loop.commit(plan, pooled_result(plan, {0: b""}))
    assert (starts, pooled.num_cached) == ([0, reused], reused)


def test_a_preempted_mean_starts_again_from_nothing() -> None:
    """What was summed before a preemption is forgotten with the blocks: it would be counted twice."""
    loop = loop_of(num_blocks=4)
    pooled, _ = sequence("pooled", num_prompt=12, max_tokens=0, pooling=Pooling("mean"))
    loop.scheduler.rules = replace(loop.scheduler.rules, max_step_tokens=8)
    loop.submit(pooled)
    plan = loop.plan()
    assert plan is not None and plan.counts == [8]
    loop.commit(plan, pooled_result(plan, {0: b"half"}))
    kept = [pooled.pooled]
    loop.scheduler._preempt(pooled)

    assert [*kept, pooled.pooled] == [b"half", None]
    plan = loop.plan()
    assert plan is not None and plan.starts == [0]


def verifying(proposal: list[int]) -> tuple[Loop, Sequence, Recorder, StepPlan, list[Event]]:
    """A sequence with six prompt tokens and one of output in a step that verifies ``proposal``."""
    events: list[Event] = []
    loop = loop_of(events=events)
    loop.scheduler = Scheduler(replace(loop.scheduler.rules, speculative_tokens=8), BlockPool(8))
    proposing, recorder = sequence("a", max_tokens=9, stop_token_ids=frozenset({99}), tenant="t")
    loop.submit(proposing)
    loop.commit(*planned(loop))
    speculation = loop.scheduler._speculation
    assert speculation is not None
    speculation._allowances[mix(1)] = Allowance(1.0, 1.0, num_plain=10, to_come=10)
    plan = loop.plan()
    assert plan is not None
    plan.proposed, plan.counts, plan.num_decodes = {0: len(proposal)}, [1 + len(proposal)], 0
    proposing.block_ids += loop.scheduler.pool.lease(
        -(-(proposing.num_tokens + len(proposal)) // 4) - len(proposing.block_ids)
    )
    return loop, proposing, recorder, plan, events


def result_of(plan: StepPlan, first: int, *further: int) -> StepResult:
    return StepResult(plan.step, [first], [None], [[]], 0.01, further={0: [(token, None) for token in further]})


def test_right_tokens_are_taken_one_after_the_other_and_wrong_ones_leave_nothing() -> None:
    """Of five proposed tokens with two right three tokens come; blocks that hold none of them are free again."""
    loop, proposing, recorder, plan, events = verifying([11, 12, 13, 14, 15])
    before = loop.scheduler.counters.charged.get("t", -8192.0)

    loop.commit(plan, result_of(plan, 11, 12, 55))

    assert recorder.token_ids[1:] == [11, 12, 55]
    assert (proposing.num_tokens, proposing.num_computed, len(proposing.block_ids)) == (10, 9, 3)
    loop.scheduler.pool.check()
    assert loop.scheduler.pool.num_used == 3
    last = events[-1]
    assert isinstance(last, StepDone)
    assert (last.proposals, last.proposed_tokens, last.accepted_tokens) == (1, 5, 2)
    assert (last.decode_tokens, last.prefill_tokens) == (3, 0)
    loop.plan()  # charges the tenant for two tokens that the step brought, and for the next one
    assert loop.scheduler.counters.charged["t"] == before + 2 * 2.0 + 2.0


@pytest.mark.parametrize(
    ("drawn", "reason", "kept"), [((11, 99, 13), "stop", [11, 99]), ((11, 12, 13), "length", [11])]
)
def test_an_end_among_right_tokens_ends_the_sequence_there(
    drawn: tuple[int, ...], reason: str, kept: list[int]
) -> None:
    """What was right behind a stop token or behind max_tokens is nobody's."""
    loop, proposing, recorder, plan, _ = verifying([11, 99 if reason == "stop" else 12, 13])
    if reason == "length":
        proposing.max_tokens = proposing.num_output_tokens + 1

    loop.commit(plan, result_of(plan, *drawn))

    taken = kept[:-1] if reason == "stop" else kept
    assert (recorder.reason, recorder.token_ids[1:]) == (reason, taken)
    assert recorder.num_terminal == 1
    assert loop.scheduler.pool.num_used == 0


def test_an_abort_while_tokens_are_verified_drops_them_all() -> None:
    """The step's tokens reach nobody and its blocks are idle."""
    loop, _, recorder, plan, _ = verifying([11, 12])
    loop.abort("a")

    loop.commit(plan, result_of(plan, 11, 12, 13))

    assert (recorder.reason, recorder.token_ids[1:]) == ("cancelled", [])
    assert loop.scheduler.pool.num_used == 0
    loop.scheduler.pool.check()


def test_only_right_tokens_enter_the_prefix_cache() -> None:
    """A later prompt that goes on with the wrong tokens starts from the block before them."""
    loop, _, _, plan, _ = verifying([11, 12, 13, 14, 15, 16])
    loop.commit(plan, result_of(plan, 11, 12, 55))
    first = list(plan.sequences[0].token_ids)
    loop.abort("a")

    for text, cached in (([*first[:9], 13, 14, 15, 16, 0], 8), ([*first[:8], 0], 8)):
        again, _ = sequence("b", num_prompt=len(text))
        again.token_ids = text
        loop.submit(again)
        loop.plan()
        assert again.num_cached == cached
        loop._in_step = False
        loop.abort("b")


def lone(loop: Loop) -> tuple[StepPlan, StepResult]:
    """The first step that is three or more, of steps that take a tenth of a millisecond."""
    for _ in range(50):
        plan, result = planned(loop)
        if plan.rounds >= 3:
            return plan, result
        loop.commit(plan, replace(result, seconds=1e-4))
    raise AssertionError("never")


def test_a_lone_stream_is_given_several_steps_at_once() -> None:
    """Over the ends of blocks, each token as if it had had a step of its own; its tenant pays for each."""
    events: list[Event] = []
    loop = loop_of(64, events)
    alone, recorder = sequence("a", max_tokens=100)
    loop.submit(alone)
    plan, result = lone(loop)
    before, computed = len(recorder.token_ids), alone.num_computed
    assert plan.rounds == 8 == result.num_rounds
    assert len(alone.block_ids) * 4 >= computed + 8
    loop.commit(plan, result)
    assert recorder.token_ids[before:] == [result.token_ids[0], *(tokens[0] for tokens in result.later)]
    assert alone.num_computed == computed + plan.rounds
    assert events[-1].decode_tokens == plan.rounds  # type: ignore[union-attr]  # a StepDone
    loop.scheduler.pool.check()


@pytest.mark.parametrize(("num_blocks", "computed", "rounds"), [(5, 10, 6), (4, 12, 4)])
def test_several_steps_take_no_block_that_somebody_could_miss(num_blocks: int, computed: int, rounds: int) -> None:
    """Where one stays idle they go on to the answer's end; where none would, to the last place in the blocks it has."""
    loop = loop_of(num_blocks)
    alone, _ = sequence("a", max_tokens=11)
    loop.submit(alone)
    plan, _ = lone(loop)
    assert (alone.num_computed, plan.rounds, len(alone.block_ids)) == (computed, rounds, 4)


def test_nobody_who_waits_waits_for_several_steps() -> None:
    """With the next plan, whoever came has a part in it, and it is one step."""
    loop = loop_of(64)
    loop.submit(sequence("a", max_tokens=100)[0])
    loop.commit(*lone(loop))
    loop.submit(sequence("b", max_tokens=100)[0])
    plan, _ = planned(loop)
    assert (plan.rounds, len(plan.sequences)) == (1, 2)


@pytest.mark.parametrize("way", ["stop token", "max_tokens", "abort"])
def test_an_end_among_several_steps_drops_what_lies_behind_it(way: str) -> None:
    """Its tokens end there, its blocks are idle, and it ends once."""
    loop = loop_of(64)
    ending, recorder = sequence("a", max_tokens=100)
    loop.submit(ending)
    plan, result = lone(loop)
    before = len(recorder.token_ids)
    match way:
        case "stop token":
            ending.stop_token_ids = frozenset([result.later[0][0]])
        case "max_tokens":
            ending.max_tokens = before + 2
        case _:
            loop.abort("a")
    loop.commit(plan, result)
    assert len(recorder.token_ids) - before == {"stop token": 1, "max_tokens": 2, "abort": 0}[way]
    assert recorder.num_terminal == 1
    assert loop.scheduler.pool.num_used == 0


def test_a_constraint_is_asked_before_every_token() -> None:
    """Its mask is known for one token at a time."""

    class Anything:
        def mask(self) -> None:
            return None

        def advance(self, token_id: int) -> bool:
            return True

    loop = loop_of(64)
    loop.submit(sequence("a", max_tokens=60, constraint=Anything())[0])
    with pytest.raises(AssertionError, match="never"):
        lone(loop)
