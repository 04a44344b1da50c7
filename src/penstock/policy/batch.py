"""What the next step computes, for whom, and who has to give way.

In: a read-only view of the queues and of the idle KV blocks, the tenants' counters, now; out: a verdict with its why.
Pure: touches no queue and no block.  There is no prefill phase and no decode phase, only tokens not computed yet,
under one token budget (the idea of vLLM's V1 scheduler); decodes come first, so that no prompt stalls a stream.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Generic

from penstock.policy.batch_view import BatchRules, BatchVerdict, BatchView, Held, W, Work
from penstock.policy.fair import CACHED_COST, OUTPUT_COST, PROMPT_COST, Account, Counters, Turns
from penstock.policy.pace import Pace, in_reach, keeps_target
from penstock.policy.speculate import lengths
from penstock.policy.step_time import StepShape
from penstock.policy.yielding import who_yields_to_growth, who_yields_to_newcomer

__all__ = ["BatchRules", "BatchVerdict", "batch"]


def batch(view: BatchView[W], rules: BatchRules, counters: Counters, now: float) -> tuple[BatchVerdict[W], Counters]:
    """Decide one step.  ``now`` in seconds of the engine's time.

    Blocks are given in order of protection: whoever comes first may take the blocks of whoever comes after (preemption
    by recompute), so the first running sequence always progresses and every sequence that fits alone ends.
    A sequence that gets no blocks and has nobody to take them from stalls for the step.
    Nobody overtakes the waiting sequence whose turn it is, however small: a large one would never get its blocks.
    """
    draft = _Draft(view, rules, counters, now)
    if rules.stateless:
        draft.admit_whole()
    else:
        draft.decode()
        draft.prefill()
        if rules.speculative_tokens and not draft.verdict.again:
            draft.speculate()
    return draft.verdict, counters if draft.verdict.again else draft.close()


class _Draft(Generic[W]):
    """A step while it is decided: what has been given to ``running[i]``, and what is left."""

    def __init__(self, view: BatchView[W], rules: BatchRules, counters: Counters, now: float) -> None:
        self.verdict: BatchVerdict[W] = BatchVerdict()
        self._view = view
        self._rules = rules
        self._account = Account(counters, rules.fair)
        self._running = view.running
        self._lines = list(view.lines)
        self._now = now
        self._idle = view.num_idle_blocks
        self._budget = rules.max_step_tokens
        self._pace: Pace | None = None
        self._counts = [0] * len(self._running)
        self._needs = [0] * len(self._running)
        self._gone: set[int] = set()
        self._prefilling: list[int] = []
        self._promised = 0
        self._held: dict[str, float] = {}
        for work in self._running:
            tenant = work.tenant
            self._held[tenant] = self._held.get(tenant, 0.0) + len(work.block_ids) / work.weight

    def close(self) -> Counters:
        """The counters after the step."""
        return self._account.close({*self._held, *(line.tenant for line in self._lines)})

    def decode(self) -> None:
        """One token for everybody whose only uncomputed token is the last."""
        running, counts, block_tokens = self._running, self._counts, self._rules.block_tokens
        for i, work in enumerate(running):
            if work.num_remaining != 1:
                self._prefilling.append(i)
            elif self._budget > 0 and i not in self._gone:
                if len(work.block_ids) * block_tokens > work.num_computed:
                    counts[i] = 1
                    self._budget -= 1
                else:
                    self._give(i, 1)
        works = self.verdict.works = [work for work, count in zip(running, counts, strict=True) if count]
        self.verdict.counts = [1] * len(works)
        self.verdict.num_decodes = len(works)
        self._account.charge_each(works, OUTPUT_COST)
        self.verdict.token_budget = self._rules.max_step_tokens
        targets = [work.itl_target_s for work in works if work.itl_target_s is not None]
        if targets:
            self._keep_pace(min(targets))

    def _keep_pace(self, target_s: float) -> None:
        """Bound what prompts may have in this step by the strictest target of the streams that run."""
        works = self.verdict.works
        self._pace = Pace(self._view.step_model, _shape(works), target_s)
        self._budget = min(self._budget, self._pace.most_tokens)
        self.verdict.token_budget = len(works) + min(self._budget, self._pace.tokens_from(0))

    def prefill(self) -> None:
        """What is left of the budget, in order of turns, to prompts under way and to those that are admitted."""
        if not self._lines and not self._prefilling:
            return
        positions = {id(self._running[i]): i for i in self._prefilling if i not in self._gone}
        prefilling = [self._running[i] for i in positions.values()]
        block_tokens = self._rules.block_tokens
        # What the rest of a prompt under way will need is not given to newcomers.
        self._promised = sum(-(-work.num_tokens // block_tokens) - len(work.block_ids) for work in prefilling)
        turns = self._turns(prefilling)
        for work, level, waits in turns:
            if self.verdict.preempted:
                self._hold(turns, "preempting")
            if not waits:
                self._go_on(positions[id(work)])
            elif not self.verdict.preempted:
                self._try_to_admit(work, level, turns)
                if self.verdict.again:
                    return

    def speculate(self) -> None:
        """What is left of a step without prompts, and of the blocks, to what its decodes propose, where it pays.

        Beside prompts a row takes its full time, and what a step would have taken without is known too badly.
        """
        verdict, num_decodes = self.verdict, self.verdict.num_decodes
        if len(verdict.works) > num_decodes or not num_decodes:
            return
        decodes = verdict.works
        candidates = self._view.candidates(decodes)
        proposing = [i for i, candidate in enumerate(candidates) if candidate is not None]
        if not proposing:
            return
        shape = _shape(decodes)
        most_rows = self._budget if self._pace is None else min(self._budget, self._pace.decode_rows)
        counts = lengths(
            [candidate for candidate in candidates if candidate is not None],
            shape,
            self._view.step_model,
            self._view.allowance(num_decodes),
            most_rows,
        )
        num_proposed = [0] * num_decodes
        for i, count in zip(proposing, counts, strict=True):
            num_proposed[i] = self._with_blocks(decodes[i], count)
        order = sorted(range(num_decodes), key=lambda i: num_proposed[i] > 0)
        verdict.works = [decodes[i] for i in order]
        verdict.counts = [1 + num_proposed[i] for i in order]
        verdict.num_proposing = sum(count > 0 for count in num_proposed)
        verdict.num_decodes -= verdict.num_proposing

    def _with_blocks(self, work: W, count: int) -> int:
        """As many of ``count`` proposed tokens as there are blocks for that nobody else is to have."""
        block_tokens = self._rules.block_tokens
        # The step's own token has its block already, leased or counted as leased.
        room = -(work.num_computed + 1) % block_tokens
        surplus = max(0, self._idle - self._promised - len(self._running) - len(self.verdict.admitted))
        count = min(count, room + surplus * block_tokens)
        self._idle -= max(0, -(-(count - room) // block_tokens))
        return count

    def admit_whole(self) -> None:
        """Prompts in order, for as long as the next one fits whole; the first has a step of its own if need be."""
        assert not self._running, "a stateless sequence ends with its only step"
        verdict = self.verdict
        for work, level, _ in self._turns([]):
            if len(verdict.admitted) >= self._rules.max_num_seqs:
                verdict.held = "sequences"
                return
            if verdict.works and work.num_tokens > self._budget:
                verdict.held = "whole"
                return
            self._admit(work, level, 0, work.num_tokens)

    def _turns(self, prefilling: list[W]) -> Turns[W]:
        best = self._running[0].level if self._running else None
        return Turns(prefilling, self._lines, self._account, self._held, self._rules.fair, self._now, best)

    def _hold(self, turns: Turns[W], why: Held) -> None:
        if self._lines:
            self.verdict.held = why
        turns.close_lines()

    def _go_on(self, i: int) -> None:
        work = self._running[i]
        room = self._room_from(work.num_computed)
        if i in self._gone or room <= 0:
            return
        count = self._give(i, min(work.num_remaining, room))
        self._promised -= self._needs[i]
        if count:
            self._note_prefill(work.num_computed, count)
            self.verdict.works.append(work)
            self.verdict.counts.append(count)
            self._account.charge(work, work.num_computed, count, PROMPT_COST)

    def _room_from(self, start: int) -> int:
        """How many tokens of a prompt this step has room for, from position ``start`` on."""
        return self._budget if self._pace is None else min(self._budget, self._pace.tokens_from(start))

    def _note_prefill(self, start: int, count: int) -> None:
        if self._pace is not None:
            self._pace.take(start, count)

    def _give(self, i: int, count: int) -> int:
        """Give ``running[i]`` up to ``count`` tokens and the blocks for them, be it at the cost of others."""
        work = self._running[i]
        block_tokens = self._rules.block_tokens
        room = len(work.block_ids) * block_tokens - work.num_computed
        need = -(-(count - room) // block_tokens) if count > room else 0
        while need > self._idle:
            victim = who_yields_to_growth(self._running, self._gone, i, self._held)
            if victim is None:
                count = max(0, room + self._idle * block_tokens)
                need = self._idle if count else 0
                break
            self._take_away(victim)
        self._counts[i], self._needs[i] = count, need
        self._idle -= need
        self._budget -= count
        return count

    def _take_away(self, i: int) -> None:
        """Somebody else gets the blocks of ``running[i]``, and whatever this step had given to it."""
        work, verdict = self._running[i], self.verdict
        verdict.preempted.append(work)
        self._gone.add(i)
        self._idle += self._view.count_private_blocks(work) + self._needs[i]
        self._budget += self._counts[i]
        self._held[work.tenant] -= len(work.block_ids) / work.weight
        if self._counts[i] and work in verdict.works:
            at = verdict.works.index(work)
            was_decode = at < verdict.num_decodes
            self._account.refund(work, work.num_computed, self._counts[i], OUTPUT_COST if was_decode else PROMPT_COST)
            verdict.num_decodes -= was_decode
            del verdict.works[at], verdict.counts[at]
        self._counts[i] = self._needs[i] = 0

    def _try_to_admit(self, work: W, level: int, turns: Turns[W]) -> None:
        if self._room_from(0) <= 0:
            self._hold(turns, "budget" if self._budget <= 0 else "target")
            return
        block_tokens = self._rules.block_tokens
        num_running = len(self._running) + len(self.verdict.admitted)
        if num_running >= self._rules.max_num_seqs:
            self._make_room(work, level, turns, "sequences", 1, 1)
            return
        if num_running and not self._keeps_targets_with(work):
            self._make_room(work, level, turns, "target", 1, 1)
            return
        num_cached, num_cached_idle = self._view.cached_prefix(work)
        num_blocks = -(-work.num_tokens // block_tokens)
        # One block per running sequence stays back: whoever decodes will soon need it, and preempting costs more.
        lacking = num_blocks - num_cached + num_cached_idle - (self._idle - self._promised - num_running)
        if lacking > 0:
            self._make_room(work, level, turns, "blocks", num_blocks, lacking)
            return
        start = num_cached * block_tokens
        count = min(work.num_tokens - start, max(self._room_from(start), 1))
        self._note_prefill(start, count)
        num_leased = -(-(start + count) // block_tokens)
        self._idle -= num_leased - num_cached + num_cached_idle
        self._promised += num_blocks - num_leased
        self._admit(work, level, start, count)

    def _admit(self, work: W, level: int, num_cached: int, count: int) -> None:
        verdict = self.verdict
        self._budget -= count
        verdict.admitted.append(work)
        verdict.levels.append(level)
        verdict.works.append(work)
        verdict.counts.append(count)
        self._account.charge(work, 0, num_cached, CACHED_COST)
        self._account.charge(work, num_cached, count, PROMPT_COST)

    def _make_room(self, work: W, level: int, turns: Turns[W], what: Held, size: int, lacking: int) -> None:
        """Let others give way to ``work`` unless somebody was admitted in this step; else hold it."""
        positions: list[int] = []
        if not self.verdict.admitted:
            if what == "blocks":
                shares, freed = self._held, self._freed_blocks
            else:
                shares, freed = self._places(), _one_place
            positions = who_yields_to_newcomer(self._running, work, level, size, lacking, shares, freed)
        if positions:
            victims = [self._running[i] for i in positions]
            self.verdict = BatchVerdict(preempted=victims, held="preempting", again=True)
        else:
            self._hold(turns, what)

    def _keeps_targets_with(self, newcomer: W) -> bool:
        works = [*self._running, *self.verdict.admitted, newcomer]
        targets = [work.itl_target_s for work in works if work.itl_target_s is not None]
        if not targets or not in_reach(self._view.step_model, min(targets)):
            return True
        context = sum(work.num_tokens for work in works)
        return keeps_target(self._view.step_model, min(targets), len(works), context)

    def _freed_blocks(self, work: W) -> int:
        # Its own, and the one that is kept back for it.
        return self._view.count_private_blocks(work) + 1

    def _places(self) -> dict[str, float]:
        places: dict[str, float] = {}
        for work in self._running:
            places[work.tenant] = places.get(work.tenant, 0.0) + 1 / work.weight
        return places


def _one_place(work: Work) -> int:
    return 1


def _shape(decodes: Items[Work]) -> StepShape:
    return StepShape(len(decodes), sum(work.num_tokens for work in decodes))
