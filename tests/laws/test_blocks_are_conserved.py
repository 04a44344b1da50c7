"""Laws of the KV cache, the scheduler and the loop, under random traffic on virtual time."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cost.time import StepTime
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.prefix import prefix_root
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence
from penstock.events.list import StepDone
from penstock.policy.batch import BatchRules
from penstock.sim.clock import VirtualClock
from penstock.sim.executor import SimulatedExecutor
from penstock.sim.replay import Recorder, TracedRequest, replay
from penstock.wire.engine import Sampling
from penstock.wire.errors import Problem

STEP_TIME = StepTime(base_s=1e-3, per_token_s=1e-4, per_kv_token_s=1e-7)
BLOCK_TOKENS = 4


def check_laws(loop: Loop) -> None:
    """Blocks are conserved, every lease is accounted for, and no block that somebody writes has a second owner."""
    scheduler = loop.scheduler
    pool = scheduler.pool
    pool.check()
    owners = Counter(block for sequence in scheduler.running for block in sequence.block_ids)
    assert len(owners) == pool.num_used
    assert all(not sequence.block_ids for sequence in scheduler.waiting)
    assert len(list(scheduler.waiting)) == len(scheduler.waiting)
    assert [one.level for one in scheduler.running] == sorted(one.level for one in scheduler.running)
    for sequence in scheduler.running:
        assert len(sequence.block_ids) <= -(-sequence.num_tokens // BLOCK_TOKENS), "a block without a token of its own"
        for index in range(sequence.num_computed // BLOCK_TOKENS, len(sequence.block_ids)):
            assert owners[sequence.block_ids[index]] == 1, "a block that is not full yet has two writers"


@st.composite
def traces(draw: st.DrawFn) -> list[TracedRequest]:
    """Requests of tenants and classes that share prefixes, come in bursts, and each fit alone into 16 blocks of 4."""
    requests = []
    for _ in range(draw(st.integers(1, 25))):
        shared = draw(st.integers(0, 20))
        own = draw(st.integers(1, 20))
        output = draw(st.integers(0, 64 - shared - own))
        family = draw(st.integers(0, 2))
        tail = draw(st.integers(0, 3))
        requests.append(
            TracedRequest(
                draw(st.integers(0, 50)) / 1000,
                [family] * shared + [10 + tail] * own,
                output,
                tenant=draw(st.sampled_from(["", "a", "b"])),
                weight=draw(st.sampled_from([1.0, 3.0])),
                priority=draw(st.integers(-1, 1)),
            )
        )
    return requests


@settings(max_examples=150, deadline=None)
@given(
    traces(),
    st.integers(1, 40),
    st.integers(1, 8),
    st.integers(16, 40),
    st.booleans(),
    st.sampled_from([(0, False), (9, False), (5, True)]),
)
def test_every_step_keeps_the_laws_and_every_request_ends_once(
    trace: list[TracedRequest],
    max_step_tokens: int,
    max_num_seqs: int,
    num_blocks: int,
    caching: bool,
    speculation: tuple[int, bool],
) -> None:
    """Whatever the traffic and the memory: blocks are conserved at every step and each request ends exactly once."""
    rules = BatchRules(
        max_step_tokens=max_step_tokens,
        max_num_seqs=max_num_seqs,
        block_tokens=BLOCK_TOKENS,
        speculative_tokens=speculation[0],
        drafts=speculation[1],
    )
    ended = replay(
        trace,
        rules=rules,
        num_blocks=num_blocks,
        step_time=STEP_TIME,
        prefix_caching=caching,
        vocab_size=2,
        after_step=check_laws,
    )
    for request, recorder in zip(trace, ended.requests, strict=True):
        assert recorder.num_terminal == 1
        assert recorder.reason == "length"
        assert len(recorder.token_ids) == request.output_tokens


@settings(max_examples=60, deadline=None)
@given(traces(), st.integers(1, 40), st.integers(16, 24))
def test_memory_and_company_do_not_change_tokens(
    trace: list[TracedRequest], max_step_tokens: int, num_blocks: int
) -> None:
    """A request's tokens are the same alone with all the memory and in a crowd that preempts it and speculates."""
    crowded = replay(
        trace,
        rules=BatchRules(
            max_step_tokens=max_step_tokens, max_num_seqs=8, block_tokens=BLOCK_TOKENS, speculative_tokens=5
        ),
        num_blocks=num_blocks,
        step_time=STEP_TIME,
        vocab_size=2,
    )
    for index, request in enumerate(trace):
        alone = replay(
            [dataclasses.replace(other, output_tokens=0) for other in trace[:index]] + [request],
            rules=BatchRules(max_step_tokens=64, max_num_seqs=1, block_tokens=BLOCK_TOKENS),
            num_blocks=4096,
            step_time=STEP_TIME,
            prefix_caching=False,
            vocab_size=2,
        )
        assert crowded.requests[index].token_ids == alone.requests[index].token_ids


class Lottery:
    """Random submits, aborts (also while a step is under way) and failing steps over one loop."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = VirtualClock()
        self.executor = SimulatedExecutor(self.clock, STEP_TIME, vocab_size=2)
        rules = BatchRules(max_step_tokens=16, max_num_seqs=6, block_tokens=BLOCK_TOKENS, speculative_tokens=4)
        self.loop = Loop(Scheduler(rules, BlockPool(20)), lambda event: None)
        self.recorders: list[Recorder] = []

    def submit(self) -> None:
        prompt = [self.dice.randrange(2)] * self.dice.randint(1, 40)
        recorder = Recorder(self.clock, self.clock.now())
        self.recorders.append(recorder)
        name = f"request-{len(self.recorders)}"
        sampling = Sampling(seed=len(self.recorders))
        root = prefix_root(cache_salt=self.dice.choice("ab"))
        limit = self.dice.randint(0, 40)
        sequence = Sequence(name, prompt, len(prompt), limit, sampling, recorder, prefix_root=root)
        sequence.tenant, sequence.priority = self.dice.choice("xyz"), self.dice.randint(-2, 2)
        self.loop.submit(sequence)

    def abort(self) -> None:
        self.loop.abort(f"request-{self.dice.randint(1, 60)}")

    def step(self) -> None:
        plan = self.loop.plan()
        if plan is None:
            return
        result = self.executor.execute(plan)
        if self.dice.random() < 0.3:
            self.abort()
        if self.dice.random() < 0.05:
            self.loop.fail(plan, Problem("internal_error", "the step raised"))
        else:
            self.loop.commit(plan, result)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32))
def test_aborts_and_failing_steps_leak_nothing(seed: int) -> None:
    """Aborts at any moment and steps that raise leave no block leased and no request without its one end."""
    lottery = Lottery(seed)
    for _ in range(150):
        lottery.dice.choices([lottery.submit, lottery.abort, lottery.step], weights=[3, 2, 8])[0]()
        check_laws(lottery.loop)
    while len(lottery.loop):
        lottery.step()
    check_laws(lottery.loop)
    assert lottery.loop.scheduler.pool.num_used == 0
    assert all(recorder.num_terminal == 1 for recorder in lottery.recorders)


def test_a_thousand_requests_replay_in_seconds_and_twice_the_same() -> None:
    """1,000 bursty requests run through the production scheduler on virtual time, twice with the same outcome."""
    dice = random.Random(7)
    trace = []
    now = 0.0
    for _ in range(1000):
        now += dice.expovariate(20.0)
        prompt = [dice.randrange(50) for _ in range(dice.randint(50, 1500))]
        trace.append(TracedRequest(now, prompt, dice.randint(1, 300)))
    rules = BatchRules(max_step_tokens=2048, max_num_seqs=128, block_tokens=32)

    first, second = (replay(trace, rules=rules, num_blocks=4000, step_time=STEP_TIME) for _ in range(2))

    assert all(recorder.num_terminal == 1 for recorder in first.requests)
    assert [(r.first_token_s, r.ended_s, r.token_ids) for r in first.requests] == [
        (r.first_token_s, r.ended_s, r.token_ids) for r in second.requests
    ]


@pytest.mark.parametrize("drafts", [False, True])
def test_proposals_that_are_right_and_wrong_leave_the_blocks_of_what_was_right(drafts: bool) -> None:
    """The laws above are checked over steps that accept some proposed tokens and refuse others, block after block."""
    rules = BatchRules(
        max_step_tokens=64, max_num_seqs=8, block_tokens=BLOCK_TOKENS, speculative_tokens=9, drafts=drafts
    )
    trace = [TracedRequest(0.0, [i % 2, 1, 0, 1], 200) for i in range(6)]
    ended = replay(trace, rules=rules, num_blocks=320, step_time=STEP_TIME, vocab_size=2, after_step=check_laws)

    events = [event for event in ended.events if isinstance(event, StepDone)]
    proposed, accepted = sum(e.proposed_tokens for e in events), sum(e.accepted_tokens for e in events)
    assert proposed > accepted > 100
    assert sum(e.decode_tokens for e in events) == 6 * 199
