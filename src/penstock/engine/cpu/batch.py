"""The index tensors of one step, built once and read by every layer.

In: a step plan; out: token ids, positions, where keys and values are written, and whose pages are whose.
Plain integers into numpy, then torch without a copy: nothing here depends on the model's width or depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penstock.engine.sequence import Sequence, StepPlan
from penstock.models.low_rank import Adapter

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All tokens of a step as one ragged batch of T rows.  ``offsets[i]`` is the first row of sequence ``i``.

    ``table``: the pages of every sequence end to end; ``spans`` [N, 4]: each one's first row, number of rows, position
    of its first row, and where its pages begin in ``table``; the first ``num_decodes`` are decodes.
    ``adapted``: each adapter that is computed with, and its rows in order, [R] int64.
    """

    token_ids: Tensor
    positions: Tensor
    pages: Tensor
    slots: Tensor
    opened: Tensor
    table: Ints
    spans: Ints
    num_decodes: int
    offsets: list[int]
    adapted: list[tuple[Adapter, Tensor]]


def step_batch(plan: StepPlan, block_tokens: int, spare_pages: int = 0) -> StepBatch:
    """Index tensors for ``plan``; behind each sequence's pages ``table`` has room for ``spare_pages`` more."""
    starts = np.array(plan.starts, dtype=np.int64)
    counts = np.array(plan.counts, dtype=np.int64)
    ends = starts + counts
    offsets = np.concatenate(([0], np.cumsum(counts)[:-1]))
    positions = np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(starts - offsets, counts)
    token_ids = np.fromiter(chain.from_iterable(_tokens(plan)), np.int64, len(positions))

    # Every work's pages end to end, and where each work's begin: one flat lookup instead of a table per sequence.
    num_pages = -(-ends // block_tokens)
    first_pages = np.concatenate(([0], np.cumsum(num_pages + spare_pages)))
    room = [0] * spare_pages
    tables = np.fromiter(
        chain.from_iterable(s.block_ids[:n] + room for s, n in zip(plan.sequences, num_pages.tolist(), strict=True)),
        np.int64,
        int(first_pages[-1]),
    )
    pages = tables[np.repeat(first_pages[:-1], counts) + positions // block_tokens]
    last_filled = ends % block_tokens
    opens = (last_filled != 0) & (ends - last_filled >= starts)
    opened = tables[first_pages[1:][opens] - spare_pages - 1]

    return StepBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        pages=torch.from_numpy(pages),
        slots=torch.from_numpy(positions % block_tokens),
        opened=torch.from_numpy(opened),
        table=tables,
        spans=np.stack((offsets, counts, starts, first_pages[:-1]), axis=1),
        num_decodes=plan.num_decodes,
        offsets=offsets.tolist(),
        adapted=_adapted(plan, offsets),
    )


def _tokens(plan: StepPlan) -> Iterator[list[int]]:
    for i, (sequence, start, count) in enumerate(zip(plan.sequences, plan.starts, plan.counts, strict=True)):
        yield sequence.token_ids[start : start + count]
        if i in plan.proposals:
            yield plan.proposals[i]


def _adapted(plan: StepPlan, offsets: Ints) -> list[tuple[Adapter, Tensor]]:
    ranges: dict[Adapter, list[Ints]] = {}
    for i, sequence in enumerate(plan.sequences):
        if sequence.adapter is not None:
            assert isinstance(sequence.adapter, Adapter), "another executor's"
            ranges.setdefault(sequence.adapter, []).append(np.arange(offsets[i], offsets[i] + plan.counts[i]))
    return [(adapter, torch.from_numpy(np.concatenate(own))) for adapter, own in ranges.items()]


def sampled_rows(plan: StepPlan, batch: StepBatch) -> list[tuple[int, range]]:
    """Who samples in this step, by index, and from which rows: the last one, and those of a proposal, if any."""
    due = []
    for i, sequence in enumerate(plan.sequences):
        if sequence.pooling is None and plan.reaches_end(i):
            end = batch.offsets[i] + plan.counts[i]
            due.append((i, range(end - 1 - len(plan.proposals.get(i, ())), end)))
    return due


def scored_rows(sequence: Sequence, start: int, count: int) -> int:
    """How many of a chunk's first rows predict a prompt token whose score was asked for."""
    return max(0, min(start + count, sequence.num_prompt_tokens - 1) - start) if sequence.score_prompt else 0
