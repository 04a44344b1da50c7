"""Decodes that go on by what the step before left: the tokens are those of steps that begin anew."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from random_checkpoints import make_checkpoint

from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.drafter import Drafter
from penstock.engine.cpu.executor import CpuExecutor
from penstock.engine.cpu.planned import PlannedStep
from penstock.engine.kv_cache import BlockPool
from penstock.engine.loop import Loop
from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Draft, Sequence, StepPlan
from penstock.models.decoder import Decoder
from penstock.models.fast import pack
from penstock.models.fast.step import StepOutputs
from penstock.models.load import load_decoder
from penstock.policy.batch import BatchRules
from penstock.sim.clock import VirtualClock
from penstock.sim.replay import Recorder
from penstock.wire.engine import Sampling

BLOCK_TOKENS = 16
pytestmark = pytest.mark.skipif(pack.packing() is None, reason="the CPU has no AVX2")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    directory: Path = tmp_path_factory.mktemp("decoder")
    make_checkpoint("llama", directory)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, long sequences are cut by the threads that happen to be tried
    yield load_decoder(directory, "bfloat16", pack=pack.packing()).requires_grad_(False)
    torch.set_num_threads(before)


def executor_of(decoder: Decoder, num_blocks: int) -> CpuExecutor:
    return CpuExecutor(
        decoder,
        num_blocks=num_blocks,
        block_tokens=BLOCK_TOKENS,
        dtype=torch.bfloat16,
        sampling_defaults=SamplingDefaults(),
    )


def some(count: int, seed: int, vocab: int, **fields: Any) -> list[tuple[int, Sequence]]:
    """Sequences and the plans after which each comes; some greedy, some drawn, some with penalties or stop tokens."""
    dice = random.Random(seed)
    made = []
    for i in range(count):
        prompt = [dice.randrange(vocab) for _ in range(dice.randrange(1, 40))]
        kind = dice.randrange(4)
        sampling = Sampling(seed=i, temperature=0.0 if kind < 2 else 0.9, presence_penalty=0.5 if kind == 3 else 0.0)
        sequence = Sequence(
            id=str(i),
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            max_tokens=dice.randrange(1, 60),
            sampling=sampling,
            sink=Recorder(VirtualClock(), 0.0),
            stop_token_ids=frozenset(dice.sample(range(vocab), 4)),
            min_tokens=dice.choice((0, 0, 5)),
            num_logprobs=2 if dice.random() < 0.1 else None,
        )
        made.append((dice.randrange(0, 3 * count), sequence))
    return sorted(made, key=lambda pair: pair[0])


def run(executor: CpuExecutor, coming: list[tuple[int, Sequence]], num_blocks: int, step_s: float) -> tuple[int, int]:
    """All of them to their ends; plans, and rounds that were computed."""
    rules = BatchRules(max_step_tokens=64, max_num_seqs=8, block_tokens=BLOCK_TOKENS)
    loop = Loop(Scheduler(rules, BlockPool(num_blocks)), lambda event: None)
    plans = rounds = 0
    while coming or len(loop):
        while coming and (coming[0][0] <= plans or not len(loop)):
            loop.submit(coming.pop(0)[1])
        plan = loop.plan()
        assert plan is not None
        result = executor.execute(plan)
        loop.commit(plan, replace(result, seconds=step_s * result.num_rounds))
        plans, rounds = plans + 1, rounds + result.num_rounds
    return plans, rounds


def tokens(sequences: list[tuple[int, Sequence]]) -> list[tuple[list[int], str]]:
    return [
        (sequence.sink.token_ids, sequence.sink.reason)
        for _, sequence in sequences
        if isinstance(sequence.sink, Recorder)
    ]


@pytest.mark.parametrize(("num_blocks", "step_s"), [(64, 1.0), (64, 1e-3), (64, 1e-4), (12, 1e-3)])
@pytest.mark.parametrize("count", [1, 12])
def test_tokens_are_those_of_steps_that_begin_anew(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, count: int, num_blocks: int, step_s: float
) -> None:
    """Whoever joins, leaves, begins a page or gives way meanwhile, and however many steps are one call."""
    vocab = decoder.config.vocab_size
    num_gone_on = num_further_rounds = 0
    go_on = PlannedStep.go_on

    def counted(planned: PlannedStep) -> StepOutputs:
        nonlocal num_gone_on
        num_gone_on += 1
        return go_on(planned)

    monkeypatch.setattr(PlannedStep, "go_on", counted)
    for seed in range(6):
        anew, going_on = executor_of(decoder, num_blocks), executor_of(decoder, num_blocks)
        assert anew.planned is not None
        anew._decodes = None
        expected, found = some(count, seed, vocab), some(count, seed, vocab)
        num_gone_on_before = num_gone_on
        plans, rounds = run(anew, list(expected), num_blocks, 1.0)
        assert plans == rounds and num_gone_on == num_gone_on_before
        plans, rounds = run(going_on, list(found), num_blocks, step_s)
        assert tokens(found) == tokens(expected)
        num_further_rounds += rounds - plans
    # In a step of a second nobody waits for a second one.
    assert num_gone_on > num_further_rounds and (num_further_rounds > 0) == (step_s < 1)


def test_a_profile_tells_steps_with_prompts_from_decodes(decoder: Decoder) -> None:
    """Through larger steps too, for which all is made anew; a decode that goes on is a decode."""
    executor = executor_of(decoder, 64)
    loop = Loop(Scheduler(BatchRules(64, 8, BLOCK_TOKENS), BlockPool(64)), lambda event: None)
    planned = executor.planned
    assert planned is not None
    planned.watch()
    assert planned.profile is not None
    ticks, counted = planned.profile.ticks, []
    for length in (5, 40):
        sequence = some(1, 0, decoder.config.vocab_size)[0][1]
        sequence.token_ids, sequence.num_prompt_tokens, sequence.max_tokens = [1] * length, length, 4
        sequence.stop_token_ids, sequence.num_logprobs = frozenset(), None
        loop.submit(sequence)
        while (plan := loop.plan()) is not None:
            before = {kind: own.sum() for kind, own in ticks.items()}
            # In a step of a second nobody waits for a second one: each is a call.
            loop.commit(plan, replace(executor.execute(plan), seconds=1.0))
            grown = [kind for kind, own in ticks.items() if own.sum() > before[kind]]
            counted.append((plan.num_tokens, grown))
    decodes = [(1, ["decode"])] * 3
    assert counted == [(5, ["prefill"]), *decodes, (40, ["prefill"]), *decodes]


def test_a_step_that_raises_leaves_nothing_behind(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one begins anew, with whoever is left."""
    executor = executor_of(decoder, 64)
    loop = Loop(Scheduler(BatchRules(64, 8, BLOCK_TOKENS), BlockPool(64)), lambda event: None)
    expected = some(1, 3, decoder.config.vocab_size)[0][1]
    expected.max_tokens, expected.stop_token_ids, expected.num_logprobs = 30, frozenset(), None
    loop.submit(expected)
    for _ in range(5):
        plan = loop.plan()
        assert plan is not None
        loop.commit(plan, executor.execute(plan))
    plan = loop.plan()
    assert plan is not None
    assert executor.planned is not None

    def fails(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(type(executor.planned), "go_on", fails)
        with pytest.raises(RuntimeError):
            executor.execute(plan)
    before = list(expected.token_ids)
    again = executor.execute(plan)
    executor._decodes = None
    assert executor.execute(plan).token_ids == again.token_ids
    assert expected.token_ids == before


@pytest.mark.parametrize("drafts", [{}, {0: Draft(0, 1, 0)}], ids=["a prompt", "a draft"])
def test_another_plan_between_two_decodes_changes_nothing(decoder: Decoder, drafts: dict[int, Draft]) -> None:
    """A sequence may be left out of a step that computes somebody else's prompt, or drafts for it, and go on after it;
    what drafts take is told apart.
    """

    def tokens_of(executor: CpuExecutor) -> list[int | None]:
        (_, one), (_, other) = some(2, 5, decoder.config.vocab_size)
        for sequence, block_ids in ((one, [0, 1, 2]), (other, [3, 4, 5])):
            sequence.token_ids = (sequence.token_ids * 20)[:20]
            sequence.sampling, sequence.num_logprobs, sequence.min_tokens = Sampling(seed=0, temperature=0.0), None, 0
            sequence.block_ids = block_ids
        found: list[int | None] = []
        between = (other, 20, 1) if drafts else (other, 0, 21)
        for step, (sequence, start, count) in enumerate(
            [(other, 0, 20), (one, 0, 20), (one, 20, 1), (one, 21, 1), between, (one, 22, 1), (one, 23, 1)]
        ):
            plan = StepPlan(step, [sequence], [start], [count], [0], int(count == 1))
            plan.drafts = drafts if step == 4 else {}
            result = executor.execute(plan)
            assert (result.draft_s > 0) == bool(plan.drafts)
            (token_id,) = result.token_ids
            assert token_id is not None
            found.append(token_id)
            sequence.token_ids.append(token_id)
        return found

    anew, going_on = executor_of(decoder, 8), executor_of(decoder, 8)
    anew._decodes = None
    for executor in (anew, going_on):
        executor._drafter = cast(Drafter, SimpleNamespace(propose=lambda plan: {}))
    assert tokens_of(going_on) == tokens_of(anew)
