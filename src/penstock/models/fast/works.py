"""What one step's attention has to read, cut so that threads share it evenly and nothing is read twice.

In: which rows belong to which sequences, and the sequences' pages; out: works, and which rows have several.
A *work* is some batch rows that read the same keys of the same pages: one sequence's chunk, one decode, or several
decodes whose sequences begin alike, so that what they share is read once.
Integers only.  Keys are cut where a lone long sequence would leave threads idle (the split of Flash-Decoding), and
where several decodes begin with the same pages: these are read once for all of them (Hydragen, arXiv 2402.05099).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

MEMBERS, NUM_MEMBERS, PAGES, FIRST_KEY, END_KEY, PART = range(6)
"""A work's fields: where its rows are listed, how many, where its pages are listed, its keys, and where its part of
the result goes (-1: it is the whole result)."""

_MAX_QUERIES = 64
"""Queries that share one reading of a page; bounds a thread's scratch memory."""
_MIN_SHARED_TOKENS = 64
"""Less than this in common is cheaper read twice than put together."""
_MIN_CUT_TOKENS = 256
_UNITS_PER_THREAD = 4


@dataclass(frozen=True, slots=True)
class Works:
    """``works`` [W, 6], costliest first; ``members``: batch rows, listed for the works.

    ``splits`` [N, 3] and ``listed``: see attention_jobs; rows that are not there are whole.
    ``num_parts``: rows of parts.
    """

    works: Ints
    members: Ints
    splits: Ints
    listed: Ints
    num_parts: int


@dataclass(frozen=True, slots=True)
class Heads:
    """How many queries share a key, how many heads of keys there are, and how many threads will share the works."""

    group: int
    num_kv_heads: int
    num_threads: int


def attention_works(
    spans: Ints, num_decodes: int, table: Ints, page_tokens: int, window: int | None, heads: Heads
) -> Works:
    """Works for ``spans`` [N, 4]: each sequence's first row, number of rows, position of its first row, and where its
    pages begin in ``table``; the first ``num_decodes`` sequences have one row each, at their end.
    """
    most_rows = max(1, _MAX_QUERIES // heads.group)
    rows, counts, starts, pages = spans.T
    blocks = -(-counts // most_rows)
    which = np.repeat(np.arange(len(spans)), blocks)
    skipped = (np.arange(len(which)) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * most_rows
    works = np.empty((len(which), 6), np.int64)
    works[:, MEMBERS] = rows[which] + skipped
    works[:, NUM_MEMBERS] = np.minimum(counts[which] - skipped, most_rows)
    works[:, PAGES] = pages[which]
    first_seen = starts[which] + skipped
    works[:, FIRST_KEY] = 0 if window is None else np.maximum(first_seen + 1 - window, 0)
    works[:, END_KEY] = first_seen + works[:, NUM_MEMBERS]
    works[:, PART] = -1
    members = np.arange(int(counts.sum()))
    if window is None and num_decodes > 1:
        works, members = _share(works, members, num_decodes, table, page_tokens, most_rows)
    return _cut(works, members, page_tokens, heads)


def _share(
    works: Ints, members: Ints, num_decodes: int, table: Ints, page_tokens: int, most_rows: int
) -> tuple[Ints, Ints]:
    """Decodes whose first pages are the same get works in common for these, and keep their own for the rest."""
    begins = works[:num_decodes, PAGES]
    _, groups, sizes = np.unique(table[begins], return_inverse=True, return_counts=True)
    added, listed, num_members = [], [members], len(members)
    for group in np.flatnonzero(sizes > 1):
        rows = np.flatnonzero(groups == group)
        num_pages = _num_common_pages(table, begins[rows], (works[rows, END_KEY] - 1) // page_tokens)
        if num_pages * page_tokens < _MIN_SHARED_TOKENS:
            continue
        works[rows, FIRST_KEY] = num_pages * page_tokens
        for first in range(0, len(rows), most_rows):
            part = rows[first : first + most_rows]
            added.append([num_members, len(part), begins[part[0]], 0, num_pages * page_tokens, -1])
            listed.append(works[part, MEMBERS])
            num_members += len(part)
    if not added:
        return works, members
    return np.concatenate((works, np.array(added))), np.concatenate(listed)


def _num_common_pages(table: Ints, begins: Ints, most: Ints) -> int:
    """How many pages from ``begins`` on are the same everywhere; at most ``most`` of each."""
    places = np.arange(int(most.min()))
    differs = (table[begins[1:, None] + places] != table[begins[0] + places]).any(axis=0)
    return int(differs.argmax()) if differs.any() else len(places)


def _cut(works: Ints, members: Ints, page_tokens: int, heads: Heads) -> Works:
    """Long works into pieces of whole pages, and a part for every row that several pieces belong to."""
    spans = works[:, END_KEY] - works[:, FIRST_KEY]
    weights = 1 + works[:, NUM_MEMBERS] * heads.group // 8
    fair = int((spans * weights).sum()) * heads.num_kv_heads // (heads.num_threads * _UNITS_PER_THREAD)
    lengths = -(-np.maximum(fair // weights, _MIN_CUT_TOKENS) // page_tokens) * page_tokens
    bases = works[:, FIRST_KEY] // page_tokens * page_tokens
    cuts = -(-(works[:, END_KEY] - bases) // lengths)
    pieces = np.repeat(works, cuts, axis=0)
    nth = np.arange(len(pieces)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    begins = np.repeat(bases, cuts) + nth * np.repeat(lengths, cuts)
    pieces[:, FIRST_KEY] = np.maximum(pieces[:, FIRST_KEY], begins)
    pieces[:, END_KEY] = np.minimum(pieces[:, END_KEY], begins + np.repeat(lengths, cuts))
    costs = (pieces[:, END_KEY] - pieces[:, FIRST_KEY]) * np.repeat(weights, cuts)
    pieces = np.ascontiguousarray(pieces[np.argsort(-costs, kind="stable")])
    num_rows = int(members.max()) + 1
    none = np.empty((0, 3), np.int64)
    if len(pieces) == len(works) and len(members) == num_rows:
        return Works(pieces, members, none, none[:, 0], 0)
    return _with_parts(pieces, members, num_rows)


def _with_parts(pieces: Ints, members: Ints, num_rows: int) -> Works:
    sizes = pieces[:, NUM_MEMBERS]
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = members[np.repeat(pieces[:, MEMBERS], sizes) + within]
    times = np.bincount(rows, minlength=num_rows)
    # Whoever shares a work is in as many others as the rest of its rows, one or more.
    split = times[members[pieces[:, MEMBERS]]] > 1
    numbers = np.cumsum(sizes * split) - sizes * split
    pieces[split, PART] = numbers[split]
    parts = (np.repeat(numbers, sizes) + within)[np.repeat(split, sizes)]
    rows = rows[np.repeat(split, sizes)]
    order = np.argsort(rows, kind="stable")
    split_rows = np.flatnonzero(times > 1)
    counts = times[split_rows]
    splits = np.stack((split_rows, np.cumsum(counts) - counts, counts), axis=1)
    return Works(pieces, members, splits, parts[order], int((sizes * split).sum()))
