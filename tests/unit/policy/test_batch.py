"""The batch policy: who computes how much, who waits, who gives way, and the stated why."""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.policy.batch import BatchRules, batch

RULES = BatchRules(max_step_tokens=10, max_num_seqs=4, block_tokens=4)


@dataclass
class FakeWork:
    num_tokens: int
    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list)

    @property
    def num_remaining(self) -> int:
        return self.num_tokens - self.num_computed


@dataclass
class FakeView:
    running: list[FakeWork]
    waiting: list[FakeWork]
    num_idle_blocks: int = 100
    cached: int = 0

    def count_private_blocks(self, work: FakeWork) -> int:
        return len(work.block_ids)

    def cached_prefix(self, work: FakeWork) -> tuple[int, int]:
        return self.cached, self.cached


def running(num_tokens: int, num_computed: int) -> FakeWork:
    return FakeWork(num_tokens, num_computed, list(range(-(-num_computed // 4))))


def test_decodes_come_before_prompts_whatever_the_order_of_admission() -> None:
    """A long prompt that was admitted first gets what the decodes leave of the budget."""
    prompt, decode = running(40, 8), running(6, 5)

    verdict = batch(FakeView([prompt, decode], []), RULES)

    assert verdict.works == [decode, prompt]
    assert verdict.counts == [1, 9]
    assert verdict.num_decodes == 1


def test_a_waiting_request_starts_behind_its_cached_prefix() -> None:
    """Cached blocks are not computed again, and the budget is spent on what is left."""
    waiting = FakeWork(13)

    verdict = batch(FakeView([], [waiting], cached=2), RULES)

    assert (verdict.works, verdict.counts, verdict.num_admitted) == ([waiting], [5], 1)


def test_the_latest_gives_way_when_the_first_needs_a_block() -> None:
    """Blocks are taken from whoever was admitted last, and nobody is admitted in the same step."""
    first, last = running(5, 4), running(9, 8)

    verdict = batch(FakeView([first, last], [FakeWork(1)], num_idle_blocks=0), RULES)

    assert verdict.preempted == [last]
    assert verdict.works == [first]
    assert verdict.num_admitted == 0
    assert verdict.held == "preempting"


def test_the_why_of_waiting_is_named() -> None:
    """Out of budget, of blocks or of places: the verdict says which."""
    busy = running(100, 4)

    assert batch(FakeView([busy], [FakeWork(1)]), RULES).held == "budget"
    assert batch(FakeView([], [FakeWork(40)], num_idle_blocks=9), RULES).held == "blocks"
    assert batch(FakeView([running(5, 4)] * 4, [FakeWork(1)]), RULES).held == "sequences"
    assert batch(FakeView([], [FakeWork(4)]), RULES).held == ""


def test_a_decode_without_a_block_stalls_rather_than_harming_those_before_it() -> None:
    """The last sequence cannot take blocks from earlier ones."""
    first, last = running(6, 5), running(5, 4)

    verdict = batch(FakeView([first, last], [], num_idle_blocks=0), RULES)

    assert verdict.works == [first]
    assert verdict.preempted == []


STATELESS = BatchRules(max_step_tokens=10, max_num_seqs=4, block_tokens=4, stateless=True)


def test_a_stateless_model_computes_prompts_whole() -> None:
    """Prompts that fit together share a step; the next waits for one into which it fits whole, and that is said."""
    short, medium, long = FakeWork(3), FakeWork(6), FakeWork(2)

    verdict = batch(FakeView([], [short, medium, long], num_idle_blocks=0), STATELESS)

    assert (verdict.works, verdict.counts) == ([short, medium], [3, 6])
    assert (verdict.num_admitted, verdict.num_decodes, verdict.held) == (2, 0, "whole")


def test_a_prompt_longer_than_a_step_has_one_of_its_own() -> None:
    """What is never cut would otherwise never run."""
    verdict = batch(FakeView([], [FakeWork(25), FakeWork(1)]), STATELESS)

    assert (verdict.counts, verdict.held) == ([25], "whole")


def test_a_stateless_step_holds_no_more_than_its_sequences() -> None:
    """However short the prompts, a step has at most max_num_seqs of them."""
    verdict = batch(FakeView([], [FakeWork(1) for _ in range(9)]), STATELESS)

    assert (verdict.counts, verdict.held) == ([1, 1, 1, 1], "sequences")
