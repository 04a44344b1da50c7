"""The batch policy: who computes how much, who waits, who gives way, and the stated why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from penstock.policy.batch import BatchRules, BatchVerdict
from penstock.policy.batch import batch as decide
from penstock.policy.fair import Counters, FairRules
from penstock.policy.speculate import Allowance, Candidate
from penstock.policy.step_time import StepModel

RULES = BatchRules(max_step_tokens=10, max_num_seqs=4, block_tokens=4)


@dataclass(eq=False)
class FakeWork:
    num_tokens: int
    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list)
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    level: int = 0
    arrived_s: float = 0.0
    num_charged: int = 0
    epoch: int = 0
    itl_target_s: float | None = None

    @property
    def num_remaining(self) -> int:
        return self.num_tokens - self.num_computed


@dataclass
class FakeLine:
    tenant: str
    priority: int
    works: list[FakeWork]

    def __iter__(self) -> Iterator[FakeWork]:
        return iter(self.works)


@dataclass
class FakeView:
    running: list[FakeWork]
    waiting: list[FakeWork]
    num_idle_blocks: int = 100
    cached: int = 0
    step_model: StepModel = field(default_factory=StepModel)
    proposable: dict[int, Candidate] = field(default_factory=dict)
    """By position among the running works."""

    @property
    def lines(self) -> list[FakeLine]:
        lines: dict[tuple[str, int], FakeLine] = {}
        for work in self.waiting:
            line = lines.setdefault((work.tenant, work.priority), FakeLine(work.tenant, work.priority, []))
            line.works.append(work)
        return list(lines.values())

    def allowance(self, num_decodes: int) -> Allowance:
        return Allowance(seconds=1.0, plain_s=1.0, decodes=num_decodes, num_plain=10)

    def candidates(self, works: Sequence[FakeWork]) -> list[Candidate | None]:
        return [self.proposable.get(self.running.index(work)) for work in works]

    def count_private_blocks(self, work: FakeWork) -> int:
        return len(work.block_ids)

    def cached_prefix(self, work: FakeWork) -> tuple[int, int]:
        return self.cached, self.cached


def running(num_tokens: int, num_computed: int, **who: object) -> FakeWork:
    return FakeWork(num_tokens, num_computed, list(range(-(-num_computed // 4))), **who)  # type: ignore[arg-type]


def batch(
    view: FakeView, rules: BatchRules, counters: Counters | None = None, now: float = 0.0
) -> BatchVerdict[FakeWork]:
    return decide(view, rules, counters or Counters(), now)[0]


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

    assert (verdict.works, verdict.counts, verdict.admitted) == ([waiting], [5], [waiting])


def test_the_latest_gives_way_when_the_first_needs_a_block() -> None:
    """Blocks are taken from whoever was admitted last, and nobody is admitted in the same step."""
    first, last = running(5, 4), running(9, 8)

    verdict = batch(FakeView([first, last], [FakeWork(1)], num_idle_blocks=0), RULES)

    assert verdict.preempted == [last]
    assert verdict.works == [first]
    assert verdict.admitted == []
    assert verdict.held == "preempting"


def test_the_why_of_waiting_is_named() -> None:
    """Out of budget, of blocks or of places: the verdict says which."""
    busy = running(100, 4)

    assert batch(FakeView([busy], [FakeWork(1)]), RULES).held == "budget"
    assert batch(FakeView([], [FakeWork(40)], num_idle_blocks=9), RULES).held == "blocks"
    assert batch(FakeView([running(5, 4) for _ in range(4)], [FakeWork(1)]), RULES).held == "sequences"
    assert batch(FakeView([], [FakeWork(4)]), RULES).held == ""


def test_a_decode_without_a_block_stalls_rather_than_harming_those_before_it() -> None:
    """The last sequence cannot take blocks from earlier ones."""
    first, last = running(6, 5), running(5, 4)

    verdict = batch(FakeView([first, last], [], num_idle_blocks=0), RULES)

    assert verdict.works == [first]
    assert verdict.preempted == []


def test_the_rest_of_a_prompt_under_way_is_not_given_to_newcomers() -> None:
    """Blocks that a half computed prompt will need are kept for it, so that no newcomer makes it stall."""
    prompt, newcomer = running(40, 12, tenant="a", epoch=1), FakeWork(2, tenant="b")
    counters = Counters(100.0, {"a": 100.0})

    verdict = batch(FakeView([prompt], [newcomer], num_idle_blocks=8), RULES, counters)

    assert (verdict.works, verdict.held) == ([prompt], "blocks")
    assert batch(FakeView([prompt], [newcomer], num_idle_blocks=9), RULES, counters).works == [newcomer, prompt]


STATELESS = BatchRules(max_step_tokens=10, max_num_seqs=4, block_tokens=4, stateless=True)


def test_a_stateless_model_computes_prompts_whole() -> None:
    """Prompts that fit together share a step; the next waits for one into which it fits whole, and that is said."""
    short, medium, long = FakeWork(3), FakeWork(6), FakeWork(2)

    verdict = batch(FakeView([], [short, medium, long], num_idle_blocks=0), STATELESS)

    assert (verdict.works, verdict.counts) == ([short, medium], [3, 6])
    assert (len(verdict.admitted), verdict.num_decodes, verdict.held) == (2, 0, "whole")


def test_a_prompt_longer_than_a_step_has_one_of_its_own() -> None:
    """What is never cut would otherwise never run."""
    verdict = batch(FakeView([], [FakeWork(25), FakeWork(1)]), STATELESS)

    assert (verdict.counts, verdict.held) == ([25], "whole")


def test_a_stateless_step_holds_no_more_than_its_sequences() -> None:
    """However short the prompts, a step has at most max_num_seqs of them."""
    verdict = batch(FakeView([], [FakeWork(1) for _ in range(9)]), STATELESS)

    assert (verdict.counts, verdict.held) == ([1, 1, 1, 1], "sequences")


def test_tenants_take_turns_by_what_they_were_charged() -> None:
    """Whoever was charged least goes first, and being served moves the turn on."""
    first, second = FakeWork(4, tenant="busy"), FakeWork(4, tenant="busy")
    other, another = FakeWork(4, tenant="seldom"), FakeWork(4, tenant="seldom")
    counters = Counters(10.0, {"busy": 13.0, "seldom": 10.0})

    verdict = batch(FakeView([], [first, second, other, another]), BatchRules(16, 4, 4), counters)

    assert verdict.works == [other, first, another, second]


def test_a_weight_makes_turns_longer() -> None:
    """A tenant of weight three has three tokens for every one of a tenant of weight one."""
    heavy = [FakeWork(4, tenant="heavy", weight=3.0) for _ in range(9)]
    light = [FakeWork(4, tenant="light") for _ in range(9)]

    verdict = batch(FakeView([], light + heavy), BatchRules(32, 16, 4))

    assert [work.tenant for work in verdict.works].count("heavy") == 6


def test_a_tenant_with_credit_goes_before_the_prompts_of_others_that_are_under_way() -> None:
    """A long prompt of whoever has had much leaves its budget to the request of whoever comes seldom."""
    long, quick = running(100, 40, tenant="busy"), FakeWork(6, tenant="seldom")

    verdict = batch(FakeView([long], [quick]), RULES, Counters(500.0, {"busy": 500.0}))

    assert (verdict.works, verdict.counts) == ([quick, long], [6, 4])


def test_charges_and_floor_are_remembered() -> None:
    """A prompt's token costs one, a cached one a tenth, one of the output two; what was paid for is not paid twice."""
    decode = running(9, 8, tenant="a", num_charged=8)
    again = running(12, 4, tenant="b", num_charged=11)
    new = FakeWork(11, tenant="c", weight=2.0)
    before = Counters(0.0, dict.fromkeys("abc", 0.0))

    _, after = decide(FakeView([decode, again], [new], cached=2), BatchRules(20, 4, 4), before, 0.0)

    assert after.charged == {"a": 2.0, "b": 1.0, "c": (0.8 + 3) / 2}
    assert after.floor == 1.0


def test_an_idle_tenant_keeps_a_bounded_credit() -> None:
    """However long it was away, it comes back behind the others by the credit and no further."""
    counters = Counters(90_000.0, {"busy": 90_000.0})
    work = FakeWork(4, tenant="seldom")

    _, after = decide(FakeView([], [work]), BatchRules(16, 4, 4, fair=FairRules(credit=1000.0)), counters, 0.0)

    assert after.charged["seldom"] == 89_004.0


def test_a_better_class_goes_first() -> None:
    """Whatever its tenant was charged, and whoever came before it."""
    batch_job, chat = FakeWork(4, priority=5, tenant="a"), FakeWork(4, priority=-1, tenant="b", arrived_s=3.0)

    verdict = batch(FakeView([], [batch_job, chat]), RULES, Counters(0.0, {"b": 1e6}), now=4.0)

    assert verdict.works == [chat, batch_job]


def test_waiting_makes_a_class_better_down_to_the_best_there_is() -> None:
    """A class further for every ageing_s; at the best one's, the tenants' counters decide again."""
    old, new = FakeWork(4, priority=3, tenant="a"), FakeWork(4, priority=1, tenant="b", arrived_s=100.0)
    counters = Counters(0.0, {"a": 0.0, "b": 1.0})

    for waited, first in ((19.0, new), (20.5, old), (1000.0, old)):
        new.arrived_s = waited
        verdict = batch(FakeView([], [new, old]), BatchRules(16, 4, 4), counters, now=waited)
        assert verdict.works[0] is first
    assert verdict.levels == [1, 1]


def test_the_worst_class_gives_way_first() -> None:
    """For a block that a stream needs: the worst class before the latest admitted."""
    first, low, last = running(5, 4), running(9, 8, level=0), running(9, 8, level=2, priority=2)

    verdict = batch(FakeView([first, low, last], [], num_idle_blocks=0), RULES)

    assert verdict.preempted[0] is last


def test_the_tenant_that_holds_most_gives_way_first() -> None:
    """The flood's own latest sequence pays for its growth, and not the latest of all."""
    flood = [running(9, 8, tenant="flood") for _ in range(3)]
    quiet = running(9, 8, tenant="quiet")

    verdict = batch(FakeView([*flood, quiet], [], num_idle_blocks=1), RULES)

    assert verdict.preempted == [flood[2]]


def test_one_that_holds_little_is_not_robbed_by_the_last_of_a_flood() -> None:
    """With nobody of its own behind it, a sequence of the larger holder stalls; only the first of all takes anyway."""
    large, quiet = running(17, 16, tenant="flood"), running(8, 6, tenant="quiet")
    first = running(6, 5, tenant="flood")

    verdict = batch(FakeView([first, large, quiet], [], num_idle_blocks=0), RULES)
    assert (verdict.preempted, verdict.works) == ([], [first, quiet])

    verdict = batch(FakeView([large, quiet], [], num_idle_blocks=0), RULES)
    assert (verdict.preempted, verdict.works) == ([quiet], [large])


def test_a_tenant_below_its_share_gets_room_from_one_above() -> None:
    """Of the flood's sequences the latest give way, only as many as are needed, and the policy is asked again."""
    flood = [running(9, 8, tenant="flood") for _ in range(4)]
    counters = Counters(100.0, {"flood": 100.0})
    view = FakeView(flood, [FakeWork(8, tenant="quiet")], num_idle_blocks=4)

    verdict, after = decide(view, BatchRules(10, 8, 4), counters, 0.0)

    assert (verdict.preempted, verdict.again, verdict.works) == ([flood[3], flood[2]], True, [])
    assert after is counters


def test_a_place_is_made_as_well_as_blocks() -> None:
    """With every place taken by one tenant, its latest sequence leaves one to another's."""
    flood = [running(9, 8, tenant="flood") for _ in range(4)]

    verdict = batch(FakeView(flood, [FakeWork(8, tenant="quiet")]), RULES)

    assert (verdict.preempted, verdict.again) == ([flood[3]], True)


def test_nobody_gives_way_twice_to_newcomers() -> None:
    """Whoever was preempted before keeps its room, so that it ends in the end."""
    flood = [running(9, 8, tenant="flood", epoch=1) for _ in range(4)]

    verdict = batch(FakeView(flood, [FakeWork(8, tenant="quiet")]), RULES)

    assert (verdict.preempted, verdict.held) == ([], "sequences")


def test_nobody_gives_way_in_vain() -> None:
    """Where all that may be taken would not suffice, nothing is taken."""
    flood = [running(9, 8, tenant="flood"), running(9, 8, tenant="flood", epoch=1)]

    verdict = batch(FakeView(flood, [FakeWork(40, tenant="quiet")], num_idle_blocks=2), BatchRules(10, 8, 4))

    assert (verdict.preempted, verdict.held) == ([], "blocks")


PROPOSING = BatchRules(max_step_tokens=10, max_num_seqs=4, block_tokens=4, speculative_tokens=8)
CHEAP_ROWS = StepModel(rates=(1.0, 1e-6, 0.0, 0.0, 0.0), num_steps=100)


def test_proposals_come_behind_the_decodes_and_get_what_is_left_of_the_step() -> None:
    """Three decodes leave room for seven proposed tokens of a budget of ten."""
    works = [running(6, 5), running(6, 5), running(6, 5)]
    view = FakeView(works, [], step_model=CHEAP_ROWS, proposable={0: Candidate(0.9, 8), 1: Candidate(0.01, 8)})

    verdict = batch(view, PROPOSING)

    assert verdict.works == [works[1], works[2], works[0]]
    assert verdict.counts == [1, 1, 8]
    assert (verdict.num_decodes, verdict.num_proposing) == (2, 1)


def test_a_proposal_makes_nobody_give_way_and_takes_no_block_that_somebody_will_need() -> None:
    """Without idle blocks proposals fill the block that is there; one block per running sequence is not theirs."""
    for num_idle, expected in ((0, 2), (2, 2), (3, 6)):
        works = [running(6, 5), running(6, 5)]
        view = FakeView(works, [], num_idle, step_model=CHEAP_ROWS, proposable={0: Candidate(0.9, 6)})
        verdict = batch(view, PROPOSING)
        assert (verdict.counts, verdict.preempted) == ([1, 1 + expected], [])


def test_proposals_do_not_break_an_inter_token_target() -> None:
    """A step of 1 s with rows of 0.1 s has room for three more of them before 1.45 s, however likely they are right."""
    model = StepModel(rates=(1.0, 0.1, 0.0, 0.0, 0.0), num_steps=100, spread=0.0)
    works = [running(6, 5)]
    works[0].itl_target_s = 1.45
    view = FakeView(works, [], step_model=model, proposable={0: Candidate(1.0, 8)})
    assert batch(view, PROPOSING).counts == [4]


def test_a_step_with_a_prompt_proposes_nothing() -> None:
    """However good it would be: nothing changes place and nothing is added."""
    works = [running(6, 5), running(40, 8), running(6, 5)]
    view = FakeView(works, [], step_model=CHEAP_ROWS, proposable={0: Candidate(0.9, 8)})
    verdict = batch(view, PROPOSING)
    assert (verdict.works, verdict.counts) == ([works[0], works[2], works[1]], [1, 1, 8])
    assert (verdict.num_decodes, verdict.num_proposing) == (2, 0)


def test_a_step_in_which_nothing_can_be_proposed_is_as_without_speculation() -> None:
    """Nothing changes place and nothing is added."""
    works = [running(6, 5), running(6, 5)]
    verdict = batch(FakeView(works, [], step_model=CHEAP_ROWS), PROPOSING)
    assert (verdict.works, verdict.counts) == (works, [1, 1])
    assert (verdict.num_decodes, verdict.num_proposing) == (2, 0)
