"""A step's hidden states by the decoder's plan, where it has one, in one compiled call.

In: a step's batch; out: normalised hidden states, and logits of the rows that sample.
How many threads compute it is found by measuring.
Argued in docs/decisions/020-the-fast-step.md.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
import torch

from penstock.cost.memory import LOGITS_ROWS
from penstock.engine.cpu.batch import Ints, StepBatch
from penstock.engine.cpu.fast_attention import FastAttention
from penstock.engine.cpu.thread_choice import ThreadChoice
from penstock.models.decoder import Decoder
from penstock.models.fast.actions import NotPlain
from penstock.models.fast.plan import plan_of
from penstock.models.fast.profile import Profile, StepKind
from penstock.models.fast.step import FastStep, StepInputs, StepOutputs
from penstock.models.fast.works import END_KEY, MEMBERS, Heads, Works, attention_works

_log = logging.getLogger(__name__)

_LEAST_ROWS = 16
"""Rows of the smallest buffers; larger ones are made as steps grow, in powers of two."""


class PlannedStep:
    """The steps of one decoder over the pages of ``attention``; ``profile``: of their time, if somebody watches."""

    def __init__(self, decoder: Decoder, attention: FastAttention) -> None:
        """Raises ``NotPlain``."""
        self._decoder = decoder
        self._attention = attention
        self._plan = plan_of(decoder.config)
        self._threads = ThreadChoice(torch.get_num_threads())
        self._works = _StepWorks(decoder, attention.block_tokens)
        self._batch: StepBatch | None = None
        self._inputs: StepInputs | None = None
        self.profile: Profile | None = None
        self._step = self._made_for(_LEAST_ROWS)

    def watch(self) -> None:
        """Sums from now on how long each kind of job takes."""
        self.profile = Profile(self._step.names)

    def shares(self, kind: StepKind | None = None) -> dict[str, float]:
        """Of the time in compiled calls of ``kind`` (all) since :meth:`watch`, by kind of job."""
        assert self.profile is not None, "nobody watched"
        return self.profile.shares(kind)

    @property
    def adapts(self) -> bool:
        """Whether it computes what adapters add."""
        return self._step.adapts

    @property
    def has_head(self) -> bool:
        """Whether it makes logits, too."""
        return self._step.has_head

    def compute(self, batch: StepBatch, rows: list[int], best: bool) -> StepOutputs:
        """Hidden states of the batch's rows, and logits of the first LOGITS_ROWS of ``rows``.

        ``best``: the best tokens are wanted, too.
        """
        num_rows = len(batch.token_ids)
        if num_rows > self._step.num_rows:
            self._step = self._made_for(1 << (num_rows - 1).bit_length())
        threads = self._threads.threads(num_rows)
        begin = time.perf_counter()
        inputs = self._inputs_of(batch, np.array(rows[:LOGITS_ROWS], np.int64), best, threads)
        # Not an adapter's: it may be unloaded before there is another step.
        self._batch, self._inputs = (None, None) if batch.adapted else (batch, inputs)
        only_decodes = batch.num_decodes == len(batch.spans)
        return self._forward(inputs, threads, begin, "decode" if only_decodes else "prefill")

    def go_on(self) -> StepOutputs:
        """The batch of the last call, decodes without adapters, changed in place to the next token of each."""
        assert self._batch is not None and self._inputs is not None
        threads = self._threads.threads(len(self._inputs))
        begin = time.perf_counter()
        if not self._works.grow():
            self._inputs = replace(self._inputs, works=self._works.of(self._batch, threads))
        return self._forward(self._inputs, threads, begin, "decode")

    def _forward(self, inputs: StepInputs, threads: int, begin: float, kind: StepKind) -> StepOutputs:
        if self.profile is not None:
            self._step.program.count_into(self.profile.ticks[kind])
        outputs = self._step.forward(inputs, threads)
        self._threads.took(len(inputs), threads, time.perf_counter() - begin)
        return outputs

    def _made_for(self, num_rows: int) -> FastStep:
        pages = self._attention.pages
        return FastStep(self._plan, self._decoder, pages.keys, pages.values, num_rows, LOGITS_ROWS)

    def _inputs_of(self, batch: StepBatch, sampled: Ints, best: bool, threads: int) -> StepInputs:
        return StepInputs(
            token_ids=batch.token_ids.numpy(),
            positions=batch.positions.numpy(),
            pages=batch.pages.numpy(),
            slots=batch.slots.numpy(),
            table=batch.table,
            works=self._works.of(batch, threads),
            sampled=sampled,
            best=best,
            adapted=[(adapter, own.numpy()) for adapter, own in batch.adapted],
        )


class _StepWorks:
    """What each step attends to; for the same decodes one token later, the last step's works, grown by that token."""

    def __init__(self, decoder: Decoder, block_tokens: int) -> None:
        config = decoder.config
        self._group, self._num_kv_heads = config.num_heads // config.num_kv_heads, config.num_kv_heads
        self._windows = {layer.window for layer in config.layers}
        self._block_tokens = block_tokens
        self._last: tuple[StepBatch, int] | None = None
        self._works: dict[int | None, Works] = {}
        self._growing: Ints | None = None
        self._num_grown = 0

    def of(self, batch: StepBatch, threads: int) -> dict[int | None, Works]:
        if not (self._is_followed_by(batch, threads) and self.grow()):
            heads = Heads(self._group, self._num_kv_heads, threads)
            self._works = {
                window: attention_works(batch.spans, batch.num_decodes, batch.table, self._block_tokens, window, heads)
                for window in self._windows
            }
            self._growing, self._num_grown = None, 0
            if self._windows == {None} and batch.num_decodes == len(batch.spans):
                works = self._works[None]
                rows = works.members[works.works[:, MEMBERS]]
                self._growing = np.flatnonzero(works.works[:, END_KEY] == batch.spans[rows, 2] + 1)
        self._last = batch, threads
        return self._works

    def grow(self) -> bool:
        """Each of the decodes has one more token.  False: they have to be cut anew."""
        if self._growing is None or self._num_grown == self._block_tokens:
            return False
        self._num_grown += 1
        self._works[None].works[self._growing, END_KEY] += 1
        return True

    def _is_followed_by(self, batch: StepBatch, threads: int) -> bool:
        if self._last is None:
            return False
        last, last_threads = self._last
        return (
            threads == last_threads
            and batch.num_decodes == last.num_decodes == len(batch.spans) == len(last.spans)
            and np.array_equal(batch.table, last.table)
            and np.array_equal(batch.spans[:, 2], last.spans[:, 2] + 1)
        )


def planned_step(decoder: Decoder, attention: object) -> PlannedStep | None:
    """``None`` where the decoder has to be computed op by op; the log says why."""
    if not isinstance(attention, FastAttention):
        return None
    try:
        return PlannedStep(decoder, attention)
    except NotPlain as reason:
        _log.info("steps are computed op by op: %s", reason)
        return None
