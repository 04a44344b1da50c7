"""The index tensors of one step, built once and read by every layer.

In: a step plan; out: token ids, positions, where keys and values are written, and what each row attends to.
Plain integers into numpy, then torch without a copy: nothing here depends on the model's width or depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penstock.engine.sequence import Sequence, StepPlan

Ints = npt.NDArray[np.int64]

# Pages that a group of decodes copies together when they do not lie close to one another: with 64 KiB pages 16 MiB
# each of keys and values, which stays in a large cache and bounds the workspace.
_MAX_GATHERED_PAGES = 256
# A range is read in place when at least this part of it belongs to the group: computing on a page that nobody
# reads costs about as much as copying one.
_MIN_DENSITY = 0.6


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decode rows ``rows`` and the pages they attend to, one item per (row, page).

    ``pages``: a range of pages to read in place, or indices [P] to copy.
    ``readers`` [P]: the row, within the group, whose query meets the page.
    ``owners`` [P]: the same row, or ``len(rows)`` for a page of the range that nobody here reads.
    ``mask`` [P, 1, 1, block_tokens] float32: 0, or -inf beyond the row's last token.
    """

    rows: slice
    pages: slice | Tensor
    readers: Tensor
    owners: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prefill rows ``rows`` of one sequence, whose ``pages`` [n] hold all its tokens so far.

    ``mask`` [count, start + count]: additive and causal; ``None`` when ``start``, the tokens before the chunk, is 0
    and rows see only each other.
    """

    rows: slice
    pages: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All tokens of a step as one ragged batch of T rows.  ``offsets[i]`` is the first row of sequence ``i``."""

    token_ids: Tensor
    positions: Tensor
    pages: Tensor
    slots: Tensor
    opened: Tensor
    decodes: list[DecodeGroup]
    chunks: list[Chunk]
    offsets: list[int]


def step_batch(plan: StepPlan, block_tokens: int, dtype: torch.dtype) -> StepBatch:
    """Index tensors for ``plan``; ``dtype`` is that of the attention masks."""
    starts = np.array(plan.starts, dtype=np.int64)
    counts = np.array(plan.counts, dtype=np.int64)
    ends = starts + counts
    offsets = np.concatenate(([0], np.cumsum(counts)[:-1]))
    positions = np.arange(int(counts.sum()), dtype=np.int64) + np.repeat(starts - offsets, counts)
    works = list(zip(plan.sequences, plan.starts, plan.counts, strict=True))
    token_ids = np.fromiter(chain.from_iterable(s.token_ids[a : a + n] for s, a, n in works), np.int64, len(positions))

    # Every work's pages end to end, and where each work's begin: one flat lookup instead of a table per sequence.
    num_pages = -(-ends // block_tokens)
    first_pages = np.concatenate(([0], np.cumsum(num_pages)))
    tables = np.fromiter(
        chain.from_iterable(s.block_ids[:n] for s, n in zip(plan.sequences, num_pages.tolist(), strict=True)),
        np.int64,
        int(first_pages[-1]),
    )
    pages = tables[np.repeat(first_pages[:-1], counts) + positions // block_tokens]
    last_filled = ends % block_tokens
    opens = (last_filled != 0) & (ends - last_filled >= starts)
    opened = tables[first_pages[1:][opens] - 1]

    num_decodes = plan.num_decodes
    return StepBatch(
        token_ids=torch.from_numpy(token_ids),
        positions=torch.from_numpy(positions),
        pages=torch.from_numpy(pages),
        slots=torch.from_numpy(positions % block_tokens),
        opened=torch.from_numpy(opened),
        decodes=_decode_groups(ends[:num_decodes], first_pages[: num_decodes + 1], tables, block_tokens),
        chunks=[
            _chunk(int(offsets[i]), plan.starts[i], plan.counts[i], tables[first_pages[i] : first_pages[i + 1]], dtype)
            for i in range(num_decodes, len(works))
        ],
        offsets=offsets.tolist(),
    )


def sampled_rows(plan: StepPlan, batch: StepBatch) -> tuple[list[int], list[int]]:
    """Indices of the sequences that sample in this step, and the row of each one's last token."""
    due = [i for i, s in enumerate(plan.sequences) if s.pooling is None and plan.reaches_end(i)]
    return due, [batch.offsets[i] + plan.counts[i] - 1 for i in due]


def scored_rows(sequence: Sequence, start: int, count: int) -> int:
    """How many of a chunk's first rows predict a prompt token whose score was asked for."""
    return max(0, min(start + count, sequence.num_prompt_tokens - 1) - start) if sequence.score_prompt else 0


def _decode_groups(ends: Ints, first_pages: Ints, tables: Ints, block_tokens: int) -> list[DecodeGroup]:
    if not len(ends):
        return []
    pages = tables[: first_pages[-1]]
    low, high = int(pages.min()), int(pages.max()) + 1
    dense = len(pages) >= _MIN_DENSITY * (high - low)
    if dense and len(np.unique(pages)) == len(pages):
        return [_in_place(ends, first_pages, pages, low, high, block_tokens)]
    groups = []
    begin = 0
    while begin < len(ends):
        limit = int(first_pages[begin]) + _MAX_GATHERED_PAGES
        end = max(begin + 1, int(np.searchsorted(first_pages, limit, side="right")) - 1)
        groups.append(_gathered(slice(begin, end), ends, first_pages, pages, block_tokens))
        begin = end
    return groups


def _in_place(ends: Ints, first_pages: Ints, pages: Ints, low: int, high: int, block_tokens: int) -> DecodeGroup:
    owners = np.full(high - low, len(ends), dtype=np.int64)
    visible = np.full(high - low, block_tokens, dtype=np.int64)
    owners[pages - low] = np.repeat(np.arange(len(ends)), np.diff(first_pages))
    visible[pages - low] = _visible(ends, first_pages, block_tokens)
    readers = np.where(owners == len(ends), 0, owners)
    return DecodeGroup(
        rows=slice(0, len(ends)),
        pages=slice(low, high),
        readers=torch.from_numpy(readers),
        owners=torch.from_numpy(owners),
        mask=_tail_mask(visible, block_tokens),
    )


def _gathered(rows: slice, ends: Ints, first_pages: Ints, pages: Ints, block_tokens: int) -> DecodeGroup:
    bounds = first_pages[rows.start : rows.stop + 1]
    owners = torch.from_numpy(np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)))
    return DecodeGroup(
        rows=rows,
        pages=torch.from_numpy(pages[bounds[0] : bounds[-1]]),
        readers=owners,
        owners=owners,
        mask=_tail_mask(_visible(ends[rows], bounds - bounds[0], block_tokens), block_tokens),
    )


def _visible(ends: Ints, first_pages: Ints, block_tokens: int) -> Ints:
    """Tokens to attend to in each page: all, but for each row's last page."""
    visible = np.full(int(first_pages[-1]), block_tokens, dtype=np.int64)
    visible[first_pages[1:] - 1] = (ends - 1) % block_tokens + 1
    return visible


def _tail_mask(visible: Ints, block_tokens: int) -> Tensor:
    hidden = np.arange(block_tokens) >= visible[:, None]
    return torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0.0)))[:, None, None, :]


def _chunk(offset: int, start: int, count: int, pages: Ints, dtype: torch.dtype) -> Chunk:
    mask = None
    if start:
        mask = torch.full((count, start + count), -torch.inf, dtype=dtype).triu_(start + 1)
    return Chunk(rows=slice(offset, offset + count), pages=torch.from_numpy(pages), mask=mask)
