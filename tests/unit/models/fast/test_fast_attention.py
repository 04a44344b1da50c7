"""The attention kernels: the values of a float64 reference, however rows, keys and pages are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.models.attention import AttentionSpec, visible
from penstock.models.fast import attention
from penstock.models.fast.cpu import has
from penstock.models.fast.pages import page_shape, rounded
from penstock.models.fast.works import END_KEY, FIRST_KEY, NUM_MEMBERS, PART, Heads, attention_works

needs_bf16 = pytest.mark.skipif(not has("avx2"), reason="the CPU has no AVX2")
DTYPES = [*(pytest.param(dtype, marks=needs_bf16) for dtype in (torch.bfloat16, torch.int8)), torch.float32]
# Scores of unit normals: what one rounding of the result can differ by; in bytes also what ties are rounded to.
BOUNDS = {torch.bfloat16: 2e-2, torch.int8: 2e-2, torch.float32: 5e-6}

LENGTHS = [(200, 1), (170, 1), (0, 1), (199, 1), (1000, 1), (0, 40), (33, 70)]
"""(position of the first row, rows) of each sequence; the first five decode."""
NUM_DECODES = 5
NUM_SHARED_PAGES = 5


@dataclass
class Stage:
    """Sequences with keys and values in pages that held NaN, or scales of NaN, before."""

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    key_pages: Tensor
    value_pages: Tensor
    table: np.ndarray
    spans: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        return np.concatenate([np.arange(start, start + count) for start, count in LENGTHS])


def nan_pages(num_pages: int, dtype: torch.dtype, *sizes: int) -> Tensor:
    """Bytes that are all 1 are NaN in any format of floats, scales too."""
    pages = torch.empty((num_pages, *page_shape(dtype, *sizes)), dtype=dtype)
    pages.view(torch.int8).fill_(-1)
    return pages


def stage(
    dtype: torch.dtype, group: int, num_kv_heads: int, head_dim: int, page_tokens: int, shared: tuple[int, ...]
) -> Stage:
    """``dtype`` of pages; ``shared``: sequences that begin with the first one's, as far as they are that long."""
    source = torch.Generator().manual_seed(group * head_dim)
    num_pages = [-(-(start + count) // page_tokens) for start, count in LENGTHS]
    order = torch.randperm(sum(num_pages), generator=source).tolist()
    tables = [[order.pop() for _ in range(count)] for count in num_pages]
    counts = [count for _, count in LENGTHS]
    rows = torch.bfloat16 if dtype == torch.int8 else dtype
    made = Stage(
        [torch.randn(n, group * num_kv_heads, head_dim, generator=source).to(rows) for n in counts],
        [torch.randn(start + n, num_kv_heads, head_dim, generator=source).to(rows) for start, n in LENGTHS],
        [torch.randn(start + n, num_kv_heads, head_dim, generator=source).to(rows) for start, n in LENGTHS],
        nan_pages(sum(num_pages), dtype, num_kv_heads, page_tokens, head_dim),
        nan_pages(sum(num_pages), dtype, num_kv_heads, page_tokens, head_dim),
        np.array([]),
        np.stack((np.cumsum([0, *counts[:-1]]), counts, [s for s, _ in LENGTHS], np.cumsum([0, *num_pages[:-1]])), 1),
    )
    for i in shared:
        num_tokens = min(NUM_SHARED_PAGES, LENGTHS[0][0] // page_tokens, LENGTHS[i][0] // page_tokens) * page_tokens
        tables[i][: num_tokens // page_tokens] = tables[0][: num_tokens // page_tokens]
        for own in (made.keys, made.values):
            own[i][:num_tokens] = own[0][:num_tokens]
    for table, k, v in zip(tables, made.keys, made.values, strict=True):
        positions = np.arange(len(k))
        pages = np.array(table)[positions // page_tokens]
        for first in range(0, len(k), 7):
            part = slice(first, first + 7)
            attention.write(
                pages[part], (positions % page_tokens)[part], k[part], v[part], made.key_pages, made.value_pages
            )
    made.table = np.concatenate(tables)
    return made


def expected(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float64: q[T, Hq, D] are the last rows of a sequence whose k, v are [S, Hkv, D]."""
    num_rows, num_keys = len(q), len(k)
    grouped = q.double().unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("thgd,shd->thgs", grouped, k.double()) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    seen = visible(torch.arange(num_keys - num_rows, num_keys), torch.arange(num_keys), spec.window)
    weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
    return torch.einsum("thgs,shd->thgd", weights, v.double()).flatten(1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("group", "num_kv_heads", "head_dim", "page_tokens"),
    [(2, 2, 32, 32), (1, 3, 48, 16), (7, 1, 64, 32), (3, 2, 80, 16), (16, 1, 128, 48)],
)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, None), (40, 5.0)])
@pytest.mark.parametrize("shared", [(), (1, 3, 4)], ids=["apart", "shared"])
def test_every_row_gets_what_the_reference_computes(
    dtype: torch.dtype,
    group: int,
    num_kv_heads: int,
    head_dim: int,
    page_tokens: int,
    window: int | None,
    softcap: float | None,
    shared: tuple[int, ...],
) -> None:
    """Decodes and chunks of one step, any grouping of heads, windows and caps, pages shared or not."""
    made = stage(dtype, group, num_kv_heads, head_dim, page_tokens, shared)
    spec = AttentionSpec(0, head_dim**-0.5, window, softcap)
    works = attention_works(
        made.spans, NUM_DECODES, made.table, page_tokens, window, Heads(group, num_kv_heads, num_threads=2)
    )
    mixed = attention.attend(
        spec, works, made.positions, made.table, torch.cat(made.queries), made.key_pages, made.value_pages
    )
    for own, q, k, v in zip(
        torch.split(mixed, [len(q) for q in made.queries]), made.queries, made.keys, made.values, strict=True
    ):
        held = (rounded(k.float()), rounded(v.float())) if dtype == torch.int8 else (k, v)
        torch.testing.assert_close(own.double(), expected(spec, q, *held), atol=BOUNDS[dtype], rtol=0)


@needs_bf16
def test_bytes_have_room_for_the_largest_of_all() -> None:
    """512 numbers of one size each in queries, keys and values: sums of products come to their very end."""
    page_tokens, size = 32, 512
    keys, values = (nan_pages(2, torch.int8, 1, page_tokens, size) for _ in range(2))
    ones = torch.ones(40, 1, size, dtype=torch.bfloat16)
    positions = np.arange(40)
    attention.write(positions // page_tokens, positions % page_tokens, 3 * ones, 5 * ones, keys, values)
    works = attention_works(np.array([(0, 1, 39, 0)]), 1, np.arange(2), page_tokens, None, Heads(1, 1, num_threads=1))
    spec = AttentionSpec(0, 1.0, None, None)
    mixed = attention.attend(spec, works, np.array([39]), np.arange(2), ones[:1], keys, values)
    torch.testing.assert_close(mixed, 5 * ones[:1])


@needs_bf16
@pytest.mark.parametrize("worst", [torch.nan, torch.inf])
def test_a_value_that_is_no_number_shows(worst: float) -> None:
    """In bytes: what its row makes is all NaN, of others nothing."""
    spec = AttentionSpec(0, 0.25, None, None)
    for spoilt in ([2], [0, 1, 2]):
        pages = [nan_pages(2, torch.int8, 1, 16, 16) for _ in range(2)]
        rows = [torch.ones(2, 1, 16, dtype=torch.bfloat16) for _ in range(3)]
        for place in spoilt:
            rows[place][0, 0, 3] = worst
        q, k, v = rows
        attention.write(np.array([0, 1]), np.array([0, 0]), k, v, *pages)
        own = np.array([(0, 1, 0, 0), (1, 1, 0, 1)])
        works = attention_works(own, 2, np.arange(2), 16, None, Heads(1, 1, num_threads=1))
        mixed = attention.attend(spec, works, np.zeros(2, np.int64), np.arange(2), q, *pages)
        assert mixed[0].isnan().all()
        assert mixed[1].isfinite().all()


def test_vectors_of_nothing_stay_so() -> None:
    """Zeros and numbers next to them have no reciprocal; they come back as nothing, and others as whole steps."""
    x = torch.tensor([[0.0] * 4, [1e-38] * 4, [127.0, 1.4, -3.6, 0.0]])
    assert rounded(x).tolist() == [[0.0] * 4, [0.0] * 4, [127.0, 1.0, -4.0, 0.0]]


@needs_bf16
def test_zeros_in_bytes_are_zeros() -> None:
    """A key and a value of nothing but zeros, in pages that held NaN."""
    pages = [nan_pages(1, torch.int8, 1, 16, 16) for _ in range(2)]
    q, zeros = torch.ones(1, 1, 16, dtype=torch.bfloat16), torch.zeros(1, 1, 16, dtype=torch.bfloat16)
    attention.write(np.array([0]), np.array([0]), zeros, zeros, *pages)
    works = attention_works(np.array([(0, 1, 0, 0)]), 1, np.arange(1), 16, None, Heads(1, 1, num_threads=1))
    mixed = attention.attend(AttentionSpec(0, 1.0, None, None), works, np.zeros(1, np.int64), np.arange(1), q, *pages)
    assert not mixed.any()


def spans(*starts: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes at these positions on pages of 16 tokens, none shared."""
    num_pages = [start // 16 + 1 for start in starts]
    begins = np.cumsum([0, *num_pages[:-1]])
    return np.stack((np.arange(len(starts)), np.ones(len(starts), int), starts, begins), 1), np.arange(sum(num_pages))


def test_a_lone_long_sequence_keeps_all_threads_busy() -> None:
    """With one KV head its keys are cut into pieces, each of its keys in one of them."""
    own, table = spans(8000)
    works = attention_works(own, 1, table, 16, None, Heads(4, 1, num_threads=2))
    lengths = works.works[:, END_KEY] - works.works[:, FIRST_KEY]
    assert len(lengths) >= 8
    assert lengths.sum() == 8001
    assert lengths.max() <= 8001 / 7
    assert works.num_parts == len(lengths)


def test_what_is_short_stays_whole() -> None:
    """Sequences among which threads can share evenly are cut nowhere, and their results need no putting together."""
    own, table = spans(*[200] * 16)
    works = attention_works(own, 16, table, 16, None, Heads(2, 8, num_threads=2))
    assert len(works.works) == 16
    assert works.num_parts == 0
    assert (works.works[:, PART] == -1).all()


def test_a_common_beginning_is_read_once() -> None:
    """Of 32 decodes on the same 1,024 tokens these are in one work, and each one's own in another."""
    num_common, num_own = 64, 4
    table = np.concatenate([[*range(num_common), *range(1000 + i * 10, 1000 + i * 10 + num_own)] for i in range(32)])
    length = (num_common + num_own) * 16
    own = np.stack((np.arange(32), np.ones(32, int), np.full(32, length - 1), np.arange(32) * length // 16), 1)
    works = attention_works(own, 32, table, 16, None, Heads(2, 8, num_threads=2)).works
    common = works[works[:, NUM_MEMBERS] == 32]
    assert (common[:, END_KEY] - common[:, FIRST_KEY]).sum() == 1024
    assert (works[:, END_KEY] - works[:, FIRST_KEY]).sum() == 1024 + 32 * 64
