"""The queues: who waits, who runs, and whose blocks are whose.

In: sequences; out: a step plan, decided by ``policy.batch`` and carried out here on the block pool.
Deterministic and without I/O: knows no tensors, no text and no clock.  Its time is what its steps took: whoever waits,
waits for steps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from collections.abc import Sequence as Items

from penstock.engine.kv_cache import BlockPool
from penstock.engine.prefix import extend_chain
from penstock.engine.sequence import Sequence, StepPlan, StepResult
from penstock.engine.speculation import Speculation
from penstock.engine.step_times import StepTimes
from penstock.engine.waiting import Waiting, WaitingLine
from penstock.policy.batch import BatchRules, BatchVerdict, batch
from penstock.policy.fair import OUTPUT_COST, Counters, charged
from penstock.policy.rounds import rounds_of, rounds_within
from penstock.policy.speculate import Allowance, Candidate
from penstock.policy.step_time import StepModel, StepShape


class Scheduler:
    """Waiting and running sequences over one block pool.  It is the read-only view its own policy looks at."""

    def __init__(self, rules: BatchRules, pool: BlockPool, *, prefix_caching: bool = True) -> None:
        self.rules = rules
        self.pool = pool
        self.prefix_caching = prefix_caching
        self.running: list[Sequence] = []
        self.waiting = Waiting()
        self.counters = Counters()
        self.num_preempted = 0
        """Preemptions since the start."""
        self._speculation: Speculation | None = None
        if rules.speculative_tokens:
            self._speculation = Speculation(rules.speculative_tokens, rules.block_tokens, drafts=rules.drafts)
        self._times = StepTimes(self._speculation)
        self._step = 0
        self._held = ""
        self._spent: dict[str, float] = {}

    @property
    def lines(self) -> Iterable[WaitingLine]:
        return self.waiting.lines

    @property
    def now_s(self) -> float:
        """The engine's time: seconds that its steps took so far."""
        return self._times.now_s

    @property
    def step_model(self) -> StepModel:
        return self._times.model

    @property
    def num_idle_blocks(self) -> int:
        return self.pool.num_idle

    @property
    def max_sequence_tokens(self) -> int:
        """The longest sequence that fits when it is alone."""
        return self.pool.num_blocks * self.rules.block_tokens

    def count_private_blocks(self, work: Sequence) -> int:
        return self.pool.count_private(work.block_ids)

    def allowance(self, num_decodes: int) -> Allowance:
        return Allowance() if self._speculation is None else self._speculation.allowance(num_decodes)

    def candidates(self, works: Items[Sequence]) -> Items[Candidate | None]:
        return [] if self._speculation is None else self._speculation.candidates(works)

    def cached_prefix(self, work: Sequence) -> tuple[int, int]:
        blocks, num_idle = self._find_prefix(work)
        return len(blocks), num_idle

    def add(self, sequence: Sequence) -> None:
        assert self.rules.stateless or sequence.num_tokens <= self.max_sequence_tokens
        sequence.arrived_s = self.now_s
        self.waiting.add(sequence, self.now_s)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended or was aborted, running or waiting; its blocks are idle afterwards."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence, self.now_s)
        self._release(sequence)
        if self._speculation is not None:
            self._speculation.forget(sequence)

    def plan(self) -> StepPlan | None:
        """The next step, or ``None`` when there is nothing to compute."""
        verdict = self._decide()
        while verdict.again or (verdict.preempted and not verdict.works):
            # Victims that shared blocks may have freed more than the policy could know.
            verdict = self._decide()
        if not verdict.works:
            assert not self.running and not self.waiting, "somebody waits and nobody progresses"
            return None
        if not self.rules.stateless:
            for sequence, count in zip(verdict.works, verdict.counts, strict=True):
                self._lease(sequence, self._lacking(sequence, count))
        self._step += 1
        self._held = verdict.held
        plan = StepPlan(
            step=self._step,
            sequences=verdict.works,
            starts=[sequence.num_computed for sequence in verdict.works],
            counts=verdict.counts,
            epochs=[sequence.epoch for sequence in verdict.works],
            num_decodes=verdict.num_decodes,
            token_budget=verdict.token_budget,
        )
        is_plain = self._speculation is None or not self._speculation.fill(plan, verdict.num_proposing)
        if is_plain and plan.num_decodes == len(plan.sequences) == len(self.running) and not self.waiting:
            plan.rounds = self._rounds(plan)
        return plan

    def _rounds(self, plan: StepPlan) -> int:
        """For a plan of all that there is, which only decodes."""
        decodes = plan.sequences
        targets = [work.itl_target_s for work in decodes if work.itl_target_s is not None]
        shape = StepShape(len(decodes), sum(plan.starts) + len(decodes))
        fitting = rounds_within(self._times.computing, shape, min(targets, default=None))
        if fitting == 1 or any(work.constraint is not None for work in decodes):
            return 1
        wanted = rounds_of(fitting, (work.max_tokens - work.num_output_tokens for work in decodes))
        lacking = [self._lacking(work, wanted) for work in decodes]
        if sum(lacking) + len(decodes) > self.pool.num_idle:
            block_tokens = self.rules.block_tokens
            return rounds_of(wanted, (len(work.block_ids) * block_tokens - work.num_computed for work in decodes))
        # There is a block for each beyond these: they are leased a few tokens before they would be anyway.
        for work, count in zip(decodes, lacking, strict=True):
            self._lease(work, count)
        return wanted

    def _lacking(self, sequence: Sequence, count: int) -> int:
        """Blocks that its next ``count`` tokens need beyond those it has."""
        needed = -(-(sequence.num_computed + count) // self.rules.block_tokens)
        return max(0, needed - len(sequence.block_ids))

    def _lease(self, sequence: Sequence, num_blocks: int) -> None:
        if num_blocks > 0:
            leased = self.pool.lease(num_blocks)
            sequence.block_ids += leased
            if self._speculation is not None:
                self._speculation.leased(leased)

    def computed(self, sequence: Sequence, count: int) -> None:
        """Take note that ``count`` more tokens have keys and values, and make the blocks they filled findable."""
        before = sequence.num_computed // self.rules.block_tokens
        sequence.num_computed += count
        sequence.num_charged = max(sequence.num_charged, sequence.num_computed)
        after = sequence.num_computed // self.rules.block_tokens
        if self.prefix_caching and after > before:
            self._extend_keys(sequence, after)
            for block in range(before, after):
                self.pool.register(sequence.block_ids[block], sequence.block_keys[block])

    def computed_further(self, sequence: Sequence) -> None:
        """Take note of a token beyond the planned one, of an accepted one or another round: its tenant pays for it."""
        self.computed(sequence, 1)
        tenant = sequence.tenant
        self._spent[tenant] = self._spent.get(tenant, 0.0) + OUTPUT_COST / sequence.weight

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        """Take note of what became of a proposal, and give back the blocks that only its wrong tokens are in."""
        assert self._speculation is not None
        self._speculation.verified(sequence, proposed, accepted)
        kept = -(-(sequence.num_computed + 1 + accepted) // self.rules.block_tokens)
        self.pool.give_back(sequence.block_ids[kept:])
        del sequence.block_ids[kept:]

    def passed(self, plan: StepPlan, result: StepResult) -> None:
        """Take note of how long a step took."""
        self._times.took(plan, result)
        if self._held:
            self.waiting.held(self._held, result.seconds)

    def failed(self) -> None:
        """Take note that a step came to nothing: of its time nothing is known."""
        if self._speculation is not None:
            self._speculation.interrupted()

    def _decide(self) -> BatchVerdict[Sequence]:
        if self._spent:
            self.counters = charged(self.counters, self.rules.fair, self._spent)
            self._spent = {}
        verdict, self.counters = batch(self, self.rules, self.counters, self.now_s)
        for sequence in verdict.preempted:
            self._preempt(sequence)
        for sequence, level in zip(verdict.admitted, verdict.levels, strict=True):
            self.waiting.remove(sequence, self.now_s)
            self._admit(sequence, level)
        return verdict

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        sequence.pooled = None
        sequence.epoch += 1
        self.num_preempted += 1
        sequence.waits.preemptions += 1
        self.waiting.add(sequence, self.now_s, first=True)

    def _admit(self, sequence: Sequence, level: int) -> None:
        blocks, _ = self._find_prefix(sequence)
        self.pool.share(blocks)
        sequence.block_ids = blocks
        sequence.num_computed = len(blocks) * self.rules.block_tokens
        if sequence.epoch == 0:
            sequence.num_cached = min(sequence.num_computed, sequence.num_prompt_tokens)
        sequence.level = level
        self.running.insert(bisect_right(self.running, level, key=lambda other: other.level), sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.block_ids)
        sequence.block_ids = []

    def _find_prefix(self, sequence: Sequence) -> tuple[list[int], int]:
        """Cached blocks from the start.  At least one token is left to compute: its logits are needed."""
        if not self.prefix_caching or sequence.needs_every_row:
            return [], 0
        num_blocks = (sequence.num_tokens - 1) // self.rules.block_tokens
        self._extend_keys(sequence, num_blocks)
        return self.pool.find(sequence.block_keys[:num_blocks])

    def _extend_keys(self, sequence: Sequence, num_blocks: int) -> None:
        extend_chain(sequence.block_keys, sequence.prefix_root, sequence.token_ids, num_blocks, self.rules.block_tokens)
