"""One turn of the engine: plan, compute elsewhere, commit.

In: sequences, aborts and step results; out: tokens and exactly one terminal call to each sequence's sink.
Deterministic and without I/O; whoever drives it owns the executor, the threads and the time.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.engine.scheduler import Scheduler
from penstock.engine.sequence import Sequence, StepPlan, StepResult, TokenScore
from penstock.events.list import SequenceEnded, StepDone
from penstock.ports import Emit
from penstock.wire.engine import FinishReason
from penstock.wire.errors import Problem

_NO_STEP = StepPlan(0, [], [], [], [], 0)
_NO_RESULT = StepResult(0, [], [], [])


class Loop:
    """The sequences in flight.

    Between :meth:`plan` and :meth:`commit` a step may run in another thread, which reads the planned sequences;
    so an abort takes effect at the next of the two calls, and until then no block changes hands.
    """

    def __init__(self, scheduler: Scheduler, emit: Emit) -> None:
        self.scheduler = scheduler
        self._emit = emit
        self._sequences: dict[str, Sequence] = {}
        self._aborted: list[str] = []
        self._in_step = False
        self._preempted_before = 0

    def __len__(self) -> int:
        """Sequences that have not had their terminal call."""
        return len(self._sequences)

    @property
    def num_queued_tokens(self) -> int:
        """Tokens of waiting and running sequences that are still to be computed."""
        scheduler = self.scheduler
        return sum(s.num_remaining for s in scheduler.running) + sum(s.num_remaining for s in scheduler.waiting)

    def decoded(self, sequence_id: str) -> int | None:
        """How many tokens of a sequence are computed, where it gets another in every step; else ``None``."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None or sequence.num_remaining != 1 or sequence not in self.scheduler.running:
            return None
        return sequence.num_computed

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.  The caller made sure that it fits and that its id is not in flight."""
        assert sequence.id not in self._sequences
        self._sequences[sequence.id] = sequence
        self.scheduler.add(sequence)

    def abort(self, sequence_id: str) -> None:
        """Cancel; unknown ids are ignored, since the sequence may just have ended."""
        if sequence_id in self._sequences:
            self._aborted.append(sequence_id)
            if not self._in_step:
                self._apply_aborts()
                self._report()

    def plan(self) -> StepPlan | None:
        """The next step, or ``None`` when idle."""
        assert not self._in_step
        plan = self.scheduler.plan() if self._sequences else None
        self._in_step = plan is not None
        return plan

    def commit(self, plan: StepPlan, result: StepResult) -> None:
        """Hand out what a step computed.  Sequences preempted or ended since the plan are passed over."""
        assert self._in_step and result.step == plan.step
        self._in_step = False
        self.scheduler.passed(plan, result)
        self._apply_aborts()
        for i, sequence in enumerate(plan.sequences):
            if sequence.epoch == plan.epochs[i] and sequence.id in self._sequences:
                if i in plan.proposed:
                    self._take_verified(sequence, plan.proposed[i], i, result)
                    continue
                self.scheduler.computed(sequence, plan.counts[i])
                if sequence.score_prompt:
                    self._hand_out_prompt_scores(sequence, plan.starts[i], result.prompt_scores[i])
                token_id = result.token_ids[i]
                if sequence.pooling is not None:
                    self._take_pooled(sequence, result.pooled[i])
                elif token_id is not None:
                    self._take(sequence, token_id, result.scores[i])
                    self._take_further(sequence, ((tokens[i], None) for tokens in result.later))
        self._report(plan, result)

    def fail(self, plan: StepPlan, problem: Problem) -> None:
        """The step raised: its sequences end with ``problem``, everybody else goes on."""
        self._in_step = False
        self.scheduler.failed()
        self._apply_aborts()
        for sequence in plan.sequences:
            if sequence.id in self._sequences:
                self._fail(sequence, problem)

    def _hand_out_prompt_scores(self, sequence: Sequence, start: int, scores: list[TokenScore]) -> None:
        # scores[k] belongs to position start + 1 + k; a recomputed prompt brings some of them again.
        fresh = scores[max(0, sequence.num_prompt_scored - start) :]
        if fresh:
            sequence.num_prompt_scored += len(fresh)
            sequence.sink.prompt_scored(fresh)

    def _take(self, sequence: Sequence, token_id: int, score: TokenScore | None) -> None:
        if sequence.max_tokens == 0:
            self._finish(sequence, "length")
            return
        try:
            goes_on = sequence.constraint is None or sequence.constraint.advance(token_id)
        except Problem as problem:
            self._fail(sequence, problem)
            return
        sequence.token_ids.append(token_id)
        num_output = sequence.num_output_tokens
        if not goes_on or (token_id in sequence.stop_token_ids and num_output > sequence.min_tokens):
            self._finish(sequence, "stop", token_id)
        elif sequence.sink.push(token_id, score):
            self._finish(sequence, "stop")
        elif num_output >= sequence.max_tokens:
            self._finish(sequence, "length")

    def _take_verified(self, sequence: Sequence, num_proposed: int, i: int, result: StepResult) -> None:
        """Its next token, and one more for each proposed token that was right, as if each had had a step of its own."""
        token_id, further = result.token_ids[i], result.further.get(i, [])
        assert token_id is not None
        self.scheduler.verified(sequence, num_proposed, len(further))
        self.scheduler.computed(sequence, 1)
        self._take(sequence, token_id, result.scores[i])
        self._take_further(sequence, further)

    def _take_further(self, sequence: Sequence, further: Iterable[tuple[int, TokenScore | None]]) -> None:
        """Tokens of the same step, up to the one that ends the sequence."""
        for token_id, score in further:
            if sequence.id not in self._sequences:
                break
            self.scheduler.computed_further(sequence)
            self._take(sequence, token_id, score)

    def _take_pooled(self, sequence: Sequence, pooled: bytes | None) -> None:
        sequence.pooled = pooled
        if sequence.num_remaining:
            return
        if pooled is None:
            self._leave(sequence, "failed")
            sequence.sink.fail(Problem("not_finite", "The model computed an embedding that is not finite."))
        else:
            self._finish(sequence, "stop")

    def _finish(self, sequence: Sequence, reason: FinishReason, stop_token_id: int | None = None) -> None:
        self._leave(sequence, reason)
        sequence.sink.finish(reason, stop_token_id, sequence.num_cached)

    def _fail(self, sequence: Sequence, problem: Problem) -> None:
        self._leave(sequence, "failed")
        sequence.sink.fail(problem)

    def _leave(self, sequence: Sequence, reason: str) -> None:
        del self._sequences[sequence.id]
        self.scheduler.remove(sequence)
        sequence.adapter = None  # whoever still remembers the sequence keeps no adapter in memory
        self._emit(
            SequenceEnded(
                reason=reason,
                prompt_tokens=sequence.num_prompt_tokens,
                cached_tokens=sequence.num_cached,
                output_tokens=sequence.num_output_tokens,
            )
        )

    def _apply_aborts(self) -> None:
        aborted, self._aborted = self._aborted, []
        for sequence_id in aborted:
            sequence = self._sequences.get(sequence_id)
            if sequence is not None:
                self._finish(sequence, "cancelled")

    def _report(self, plan: StepPlan | None = None, result: StepResult | None = None) -> None:
        """A step was computed and committed; or, without one, an abort has changed the state."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        preempted = scheduler.num_preempted - self._preempted_before
        self._preempted_before = scheduler.num_preempted
        plan, result = plan or _NO_STEP, result or _NO_RESULT
        accepted = result.num_accepted
        self._emit(
            StepDone(
                seconds=result.seconds,
                decode_tokens=plan.num_streams * result.num_rounds + accepted,
                prefill_tokens=plan.num_tokens - plan.num_proposed - plan.num_streams,
                proposals=len(plan.proposed),
                proposed_tokens=plan.num_proposed,
                accepted_tokens=accepted,
                token_budget=None if plan is _NO_STEP else plan.token_budget,
                spread=scheduler.step_model.spread,
                running=len(scheduler.running),
                waiting=len(scheduler.waiting),
                preempted=preempted,
                kv_blocks_used=pool.num_used,
                kv_blocks_cached=pool.num_cached,
                kv_blocks_total=pool.num_blocks,
            )
        )
