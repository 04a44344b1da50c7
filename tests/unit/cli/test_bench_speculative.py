"""Speculation compared with going without, in virtual time, and the texts that it is tried on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.cli.bench_speculative import Scripted, compare, table
from penstock.cost.time import StepTime
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence, StepPlan
from penstock.loadgen.repeats import ANSWER_TOKENS, KINDS, PROMPT_TOKENS, exchanges, passages
from penstock.policy.batch import BatchRules
from penstock.sim.clock import VirtualClock
from penstock.sim.executor import SimulatedExecutor
from penstock.sim.replay import Recorder
from penstock.wire.engine import Sampling
from penstock.wire.errors import Problem


def engine(clock: VirtualClock, context_tokens: int = 4096) -> Any:
    """An engine whose rows are cheap, and whose text is its characters' numbers."""
    rules = BatchRules(max_step_tokens=512, max_num_seqs=64, block_tokens=32, speculative_tokens=8)
    return SimpleNamespace(
        loop=Loop(Scheduler(rules, BlockPool(4096), prefix_caching=False), lambda event: None),
        executor=SimulatedExecutor(clock, StepTime(0.01, 0.0001, 0.0)),
        context_tokens=context_tokens,
        tokenizer=SimpleNamespace(encode=lambda text, add_special_tokens: [ord(char) for char in text]),
    )


def test_quoting_pays_and_what_never_repeats_costs_nothing() -> None:
    """By virtual time, for one stream: rows are cheap, so a step saved is nearly all gain."""
    clock = VirtualClock()
    found = compare(engine(clock), [1], 3, 15_000, clock.now, say=lambda text: None)
    by_name = {one.workload: one for one in found}
    assert by_name.keys() >= set(KINDS)
    quoting, random = by_name["quoting"], by_name["random"]
    assert quoting.speedup > 1.8 and quoting.accepted_share is not None and quoting.accepted_share > 0.5
    assert quoting.mean_accepted_length == 1 + quoting.accepted_tokens / quoting.proposals > 3
    assert random.speedup == pytest.approx(1.0, abs=0.01) and random.accepted_share is None
    assert len(quoting.off_s) == len(quoting.on_s) == 3
    assert by_name["misleading"].speedup > 0.95
    lines = table(found)
    assert len(lines) == 1 + len(found)
    assert lines[1].split()[:2] == ["quoting", "1"] and " - " in lines[1 + found.index(random)]


def test_a_context_that_is_too_short_is_refused() -> None:
    """With both numbers, before anything runs."""
    clock = VirtualClock()
    with pytest.raises(Problem, match="512 tokens; the context is 500"):
        compare(engine(clock, 500), [1], 1, 15_000, clock.now, say=lambda text: None)
    assert clock.now() == 0.0


@pytest.mark.parametrize(
    ("proposal", "taken"),
    [([], [5]), ([5, 6], [5, 6, 7]), ([5, 9, 7], [5, 6]), ([9], [5])],
)
def test_a_script_takes_what_was_proposed_as_far_as_it_agrees(proposal: list[int], taken: list[int]) -> None:
    """And its own token behind that."""
    clock = VirtualClock()
    sequence = Sequence("offline-0", [1, 2, 4], 2, 9, Sampling(seed=1), Recorder(clock, 0.0), num_computed=2)
    plan = StepPlan(1, [sequence], [2], [1 + len(proposal)], [0], 0 if proposal else 1)
    if proposal:
        plan.proposed, plan.proposals = {0: len(proposal)}, {0: proposal}
    executor = Scripted(SimulatedExecutor(clock, StepTime(0.01, 0.0, 0.0)), [[4, 5, 6, 7, 8]])

    result = executor.execute(plan)

    assert [result.token_ids[0], *(token for token, _ in result.further.get(0, []))] == taken


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_the_same_again_and_of_the_vocabulary(kind: Any) -> None:
    """So many prompts and answers of a fixed length."""
    given = exchanges(kind, 3, vocabulary=300)
    assert given == exchanges(kind, 3, vocabulary=300) != exchanges(kind, 3, seed=1, vocabulary=300)
    for prompt, answer in given:
        assert (len(prompt), len(answer)) == (PROMPT_TOKENS, ANSWER_TOKENS)
        assert all(10 <= token_id < 300 for token_id in prompt + answer)


def test_a_misleading_text_never_goes_on_as_it_did_the_last_time() -> None:
    """Behind three tokens that were there before."""
    prompt, answer = exchanges("misleading", 1)[0]
    text, known = prompt + answer, 0
    for at in range(PROMPT_TOKENS, len(text)):
        before = [place for place in range(3, at) if text[place - 3 : place] == text[at - 3 : at]]
        known += bool(before)
        assert not before or text[at] != text[before[-1]]
    assert known > ANSWER_TOKENS / 2


def test_a_short_text_begins_again() -> None:
    """Where there are more passages than text."""
    cut = passages(list(range(700)), 2)
    assert cut[1].prompt[:188] == list(range(512, 700)) and cut[1].prompt[188] == 0
