"""What each row of a step attends to, as torch's attention takes it: groups of decodes, and chunks with their masks.

In: a step's batch; out: index tensors and masks, by the window of the layer that asks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penstock.engine.cpu.batch import StepBatch
from penstock.models.attention import visible

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
    ``mask`` [P, 1, 1, block_tokens] float32: 0, or -inf beyond the row's last token and before its window.
    """

    rows: slice
    pages: slice | Tensor
    readers: Tensor
    owners: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prefill rows ``rows`` of one sequence; ``pages`` [n] hold all tokens that they see, and S tokens so far.

    ``mask`` [count, S]: additive, causal and within the window; ``None`` when the sequence begins with the chunk and
    rows see only each other.
    """

    rows: slice
    pages: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionIndex:
    """``decodes`` and ``chunks`` by the window of the layer that asks; ``None``: it sees all."""

    decodes: dict[int | None, list[DecodeGroup]]
    chunks: dict[int | None, list[Chunk]]


def attention_index(
    batch: StepBatch, block_tokens: int, dtype: torch.dtype, windows: Collection[int | None]
) -> AttentionIndex:
    """``dtype`` is that of the masks."""
    num_decodes = batch.num_decodes
    ends = batch.spans[:, 1] + batch.spans[:, 2]
    first_pages = np.append(batch.spans[:, 3], len(batch.table))
    decodes, chunks = {}, {}
    for window in windows:
        decodes[window] = _decode_groups(
            ends[:num_decodes], first_pages[: num_decodes + 1], batch.table, block_tokens, window
        )
        chunks[window] = [
            _chunk(offset, start, count, batch.table[begin:end], block_tokens, window, dtype)
            for (offset, count, start, begin), end in zip(
                batch.spans[num_decodes:].tolist(), first_pages[num_decodes + 1 :].tolist(), strict=True
            )
        ]
    return AttentionIndex(decodes, chunks)


def _decode_groups(
    ends: Ints, first_pages: Ints, tables: Ints, block_tokens: int, window: int | None
) -> list[DecodeGroup]:
    if not len(ends):
        return []
    seen = _seen(ends, first_pages, tables[: first_pages[-1]], block_tokens, window)
    pages, bounds = seen.pages, seen.bounds
    low, high = int(pages.min()), int(pages.max()) + 1
    dense = len(pages) >= _MIN_DENSITY * (high - low)
    if dense and len(np.unique(pages)) == len(pages):
        return [_in_place(seen, low, high, block_tokens)]
    groups = []
    begin = 0
    while begin < len(ends):
        limit = int(bounds[begin]) + _MAX_GATHERED_PAGES
        end = max(begin + 1, int(np.searchsorted(bounds, limit, side="right")) - 1)
        groups.append(_gathered(slice(begin, end), seen, block_tokens))
        begin = end
    return groups


@dataclass(frozen=True, slots=True)
class _Seen:
    """The pages that rows attend to: those of row ``r`` are ``pages[bounds[r] : bounds[r + 1]]``.

    Of page ``i`` the slots from ``lows[i]`` to ``highs[i] - 1`` are seen.
    """

    pages: Ints
    bounds: Ints
    lows: Ints
    highs: Ints


def _seen(ends: Ints, first_pages: Ints, pages: Ints, block_tokens: int, window: int | None) -> _Seen:
    num_pages = np.diff(first_pages)
    begins = np.zeros_like(ends) if window is None else np.maximum(ends - window, 0)
    skipped = begins // block_tokens
    place = np.arange(len(pages)) - np.repeat(first_pages[:-1], num_pages)
    pages = pages[place >= np.repeat(skipped, num_pages)]
    bounds = np.concatenate(([0], np.cumsum(num_pages - skipped)))
    lows = np.zeros(len(pages), dtype=np.int64)
    lows[bounds[:-1]] = begins % block_tokens
    highs = np.full(len(pages), block_tokens, dtype=np.int64)
    highs[bounds[1:] - 1] = (ends - 1) % block_tokens + 1
    return _Seen(pages, bounds, lows, highs)


def _in_place(seen: _Seen, low: int, high: int, block_tokens: int) -> DecodeGroup:
    num_rows = len(seen.bounds) - 1
    owners = np.full(high - low, num_rows, dtype=np.int64)
    lows, highs = np.zeros(high - low, dtype=np.int64), np.full(high - low, block_tokens, dtype=np.int64)
    places = seen.pages - low
    owners[places] = np.repeat(np.arange(num_rows), np.diff(seen.bounds))
    lows[places], highs[places] = seen.lows, seen.highs
    readers = np.where(owners == num_rows, 0, owners)
    return DecodeGroup(
        rows=slice(0, num_rows),
        pages=slice(low, high),
        readers=torch.from_numpy(readers),
        owners=torch.from_numpy(owners),
        mask=_slot_mask(lows, highs, block_tokens),
    )


def _gathered(rows: slice, seen: _Seen, block_tokens: int) -> DecodeGroup:
    bounds = seen.bounds[rows.start : rows.stop + 1]
    ours = slice(bounds[0], bounds[-1])
    owners = torch.from_numpy(np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)))
    return DecodeGroup(
        rows=rows,
        pages=torch.from_numpy(seen.pages[ours]),
        readers=owners,
        owners=owners,
        mask=_slot_mask(seen.lows[ours], seen.highs[ours], block_tokens),
    )


def _slot_mask(lows: Ints, highs: Ints, block_tokens: int) -> Tensor:
    slots = np.arange(block_tokens)
    hidden = (slots < lows[:, None]) | (slots >= highs[:, None])
    return torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0.0)))[:, None, None, :]


def _chunk(
    offset: int, start: int, count: int, pages: Ints, block_tokens: int, window: int | None, dtype: torch.dtype
) -> Chunk:
    rows = slice(offset, offset + count)
    if not start:
        return Chunk(rows, torch.from_numpy(pages), None)
    skipped = 0 if window is None else max(0, start + 1 - window) // block_tokens
    end = start + count
    seen = visible(torch.arange(start, end), torch.arange(skipped * block_tokens, end), window)
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
    return Chunk(rows, torch.from_numpy(pages[skipped:]), mask)
