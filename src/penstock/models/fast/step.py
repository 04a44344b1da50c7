"""A decoder's step as one compiled call.

In: a step's rows, their pages and what each of them attends to; out: hidden states, and logits of some of them.
Buffers are kept from step to step; what a call changes is addresses of its inputs, and counts of rows.
Argued in docs/decisions/020-the-fast-step.md.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from penstock.models.decoder import Decoder
from penstock.models.fast import attention_jobs, prepare_jobs
from penstock.models.fast.actions import Plan
from penstock.models.fast.binding import bind
from penstock.models.fast.bound import Bound
from penstock.models.fast.jobs import product_items
from penstock.models.fast.low_rank_jobs import CHANGES, ROWS, WHOSE, Changes
from penstock.models.fast.program import NOT_WANTED, NUM_ARGUMENTS, Program
from penstock.models.fast.simd import LANES
from penstock.models.fast.team import FIRST, NUM_ITEMS
from penstock.models.fast.tiles import ITEM_ROWS, NUM_ROWS
from penstock.models.fast.works import Works
from penstock.models.low_rank import Adapter

Ints = npt.NDArray[np.int64]
_PAGE_ROWS = 16
"""Rows that a thread writes into pages one after another: a line of keys holds as many tokens."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class StepInputs:
    """T rows: token_ids, positions, pages and slots [T] int64; ``table`` int64; what is attended to, by window.

    ``sampled``: which rows' logits are wanted, as many as there is room for; ``best``: their best tokens, too.
    ``adapted``: the rows of each adapter, int64; none where the step does not adapt.
    """

    token_ids: Ints
    positions: Ints
    pages: Ints
    slots: Ints
    table: Ints
    works: Mapping[int | None, Works]
    sampled: Ints
    best: bool = False
    adapted: Sequence[tuple[Adapter, Ints]] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """``hidden``: normalised hidden states [T, hidden] bfloat16.  All is valid until the next step.

    ``logits``: [R, vocabulary] float32 of the rows that were asked for; ``None``: somebody else has to multiply.
    ``best``: the best token of each of them [R], if it was asked for and could be found here.
    """

    hidden: Tensor
    logits: Tensor | None = None
    best: Tensor | None = None


class FastStep:
    """One plan for up to ``num_rows`` rows.  Not to be called by two threads at a time.

    ``program``: its jobs, which ``names`` tell apart.
    """

    def __init__(
        self,
        plan: Plan,
        decoder: Decoder,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        num_rows: int,
        logits_rows: int,
    ) -> None:
        """``keys``, ``values``: packed pages of each layer.  Raises ``NotPlain`` for weights without a job."""
        self.num_rows = num_rows
        self._bound = bind(plan, decoder, keys, values, num_rows, logits_rows)
        self._parts: dict[int | None, npt.NDArray[np.float32]] = {}
        arguments = np.zeros((len(self._bound.jobs), NUM_ARGUMENTS), np.int64)
        for row, own in zip(arguments, self._bound.arguments, strict=True):
            row[FIRST : FIRST + len(own)] = own
        self.program = Program(self._bound.jobs, arguments)
        self.names = self._bound.names
        self._cells = _Cells(self._bound)
        self._changes = Changes(list(self._bound.adapted.values()))
        self._adapted: tuple[Ints, ...] = ()
        self._inputs: weakref.ref[StepInputs] | None = None  # weak: they hold adapters, which others give up
        self._num_threads = 0
        self._outputs = StepOutputs(self._bound.hidden)

    @property
    def adapts(self) -> bool:
        """Whether there are jobs for adapters."""
        return bool(self._bound.adapted)

    @property
    def has_head(self) -> bool:
        """Whether it makes logits."""
        return self._bound.head is not None

    def forward(self, inputs: StepInputs, num_threads: int) -> StepOutputs:
        """The same inputs as before, with other values in their arrays, need no preparation."""
        if self._inputs is None or inputs is not self._inputs() or num_threads != self._num_threads:
            self._inputs, self._num_threads = weakref.ref(inputs), num_threads
            self._outputs = self._prepare(inputs, num_threads)
        self._run(len(inputs), num_threads)
        return self._outputs

    def _prepare(self, inputs: StepInputs, num_threads: int) -> StepOutputs:
        """Tell the jobs what they compute with; where the results will be."""
        cells, num_rows, arguments = self._cells, len(inputs), self.program.arguments
        arguments[cells.by_row] = num_rows
        for num_blocks, places in cells.products.items():
            arguments[places] = *product_items(num_rows, num_blocks), num_rows
        item_rows = _PAGE_ROWS if num_rows >= num_threads * _PAGE_ROWS else 1
        arguments[cells.prepares] = -(-num_rows // item_rows), num_rows, item_rows
        for name, places in cells.inputs:
            arguments[places] = getattr(inputs, name).ctypes.data
        for window in cells.attends:
            self._attend_to(inputs, window)
        self._adapt(inputs.adapted)
        return self._head(inputs)

    def _run(self, num_rows: int, num_threads: int) -> None:
        """All jobs in one call, or in parts, where somebody else computes the products between."""
        first = 0
        for place, product in self._bound.outside.items():
            if num_rows >= product.many.rows:
                self.program.run(num_threads, first, place)
                product.compute(num_rows)
                first = place + 1
        self.program.run(num_threads, first)

    def _adapt(self, adapted: Sequence[tuple[Adapter, Ints]]) -> None:
        """Ready the jobs of those linears that one of the adapters changes."""
        arguments, places = self.program.arguments, list(self._bound.adapted)
        arguments[places, NUM_ITEMS] = NOT_WANTED
        if not adapted:
            return
        rows = np.concatenate([own for _, own in adapted])
        whose = np.repeat(np.arange(len(adapted)), [len(own) for _, own in adapted])
        changes = self._changes.of([adapter for adapter, _ in adapted])
        self._adapted = rows, whose, changes  # while the jobs read them
        arguments[places, NUM_ITEMS] = np.where(changes.any(axis=1), len(rows), NOT_WANTED)
        arguments[places, ROWS], arguments[places, WHOSE] = rows.ctypes.data, whose.ctypes.data
        arguments[places, CHANGES] = changes.ctypes.data + changes.strides[0] * np.arange(len(places))

    def _head(self, inputs: StepInputs) -> StepOutputs:
        """Ready the jobs of the head; where their results will be."""
        head, num, arguments = self._bound.head, len(inputs.sampled), self.program.arguments
        hidden = self._bound.hidden[: len(inputs)]
        if head is None:
            return StepOutputs(hidden)
        weight = head.weight
        arguments[head.pick, NUM_ITEMS], arguments[head.pick, FIRST + 1] = num, inputs.sampled.ctypes.data
        num_items, item_rows = product_items(num, len(weight.blocks))
        product = arguments[head.product]
        product[NUM_ITEMS], product[ITEM_ROWS], product[NUM_ROWS] = num_items, item_rows, num
        finds_best = inputs.best and weight.num_rows % LANES == 0
        arguments[head.best, NUM_ITEMS] = num if finds_best else 0
        best = head.best_tokens[:num] if finds_best else None
        return StepOutputs(hidden, head.logits[:num, : weight.num_rows], best)

    def _attend_to(self, inputs: StepInputs, window: int | None) -> None:
        works, arguments, config = inputs.works[window], self.program.arguments, self._bound.decoder.config
        size = config.num_heads * (config.head_dim + 2)
        parts = self._parts.get(window)
        if parts is None or parts.size < works.num_parts * size:
            parts = self._parts[window] = np.empty(max(1, works.num_parts) * size, np.float32)
        arguments[self._cells.attends[window]] = (
            works.works.ctypes.data,
            len(works.works),
            works.members.ctypes.data,
            inputs.table.ctypes.data,
            parts.ctypes.data,
            len(inputs),
        )
        arguments[self._cells.combines[window]] = (
            len(works.splits),
            works.splits.ctypes.data,
            works.listed.ctypes.data,
            parts.ctypes.data,
        )


class _Cells:
    """Which arguments of which jobs change from step to step: indices into [J, NUM_ARGUMENTS], made once.

    In rows of jobs and columns of what they are told, in the order in which a step writes it.
    """

    _PRODUCT = NUM_ITEMS, ITEM_ROWS, NUM_ROWS
    _PREPARE = NUM_ITEMS, prepare_jobs.NUM_ROWS, prepare_jobs.ITEM_ROWS
    _ATTEND = (
        attention_jobs.WORKS,
        attention_jobs.NUM_WORKS,
        attention_jobs.MEMBERS,
        attention_jobs.TABLE,
        attention_jobs.PARTS,
        attention_jobs.NUM_ROWS,
    )
    _COMBINE = NUM_ITEMS, attention_jobs.SPLITS, attention_jobs.LISTED, attention_jobs.SPLIT_PARTS

    def __init__(self, bound: Bound) -> None:
        self.by_row = np.ix_(bound.by_row, [NUM_ITEMS])
        self.products = {blocks: np.ix_(places, self._PRODUCT) for blocks, places in bound.products.items()}
        self.prepares = np.ix_(bound.prepares, self._PREPARE)
        self.attends = {window: np.ix_(places, self._ATTEND) for window, places in bound.attends.items()}
        self.combines = {window: np.ix_(places, self._COMBINE) for window, places in bound.combines.items()}
        self.inputs = [(name, np.ix_(places, [column])) for (name, column), places in bound.inputs.items()]
