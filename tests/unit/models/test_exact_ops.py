"""The exact table of ops: the reference's values, bits that no company changes, the reference's gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penstock.models.attention import AttentionSpec, packed_causal
from penstock.models.exact.attention import attend_pages, packed_exact
from penstock.models.exact.ops import EXACT
from penstock.models.ops import REFERENCE, Ops

# Odd sizes: torch's element-wise kernels have a tail in every row of them.
WIDTH = 101
WEIGHT = torch.randn(37, WIDTH, generator=torch.Generator().manual_seed(1)) * 0.2
GAIN = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
FREQUENCIES = 10_000.0 ** (-torch.arange(0, 1, 0.2))

RowOp = Callable[[Ops, Tensor], Tensor]
ROW_OPS: dict[str, RowOp] = {
    "norm": lambda ops, x: ops.norm(x, GAIN.to(x.dtype), 1e-6, 0.0),
    "norm plus one": lambda ops, x: ops.norm(x, GAIN.to(x.dtype), 1e-6, 1.0),
    "layer norm": lambda ops, x: ops.layer_norm(x, GAIN.to(x.dtype), WEIGHT[0].to(x.dtype), 1e-6),
    "linear": lambda ops, x: ops.linear(x, WEIGHT.to(x.dtype), None),
    "linear with bias": lambda ops, x: ops.linear(x, WEIGHT.to(x.dtype), WEIGHT[:, 0].to(x.dtype)),
    "silu": lambda ops, x: ops.gated_activation(x[:, :-1], "silu"),
    "gelu": lambda ops, x: ops.gated_activation(x[:, :-1], "gelu"),
    "gelu-tanh": lambda ops, x: ops.gated_activation(x[:, :-1], "gelu_tanh"),
    "softcap": lambda ops, x: ops.softcap(x, 0.7),
    "head": lambda ops, x: ops.head(x, WEIGHT.to(x.dtype)),
    "normaliser": lambda ops, x: ops.log_normaliser(x.float()),
    "rope": lambda ops, x: _rope(ops, x[:, :80].unflatten(1, (-1, 10))),
    "half a rope": lambda ops, x: _rope(ops, x[:, :96].unflatten(1, (-1, 12))),
}
DTYPES = [torch.float32, torch.bfloat16]


def _rope(ops: Ops, heads: Tensor) -> Tensor:
    """Positions belong to the rows' content, so that a row takes its own along wherever it goes."""
    positions = (heads[:, 0, 0].abs() * 1000).long()
    cos, sin = ops.rotation(positions, FREQUENCIES)
    return torch.cat(ops.rope(heads[:, :6], heads[:, 6:], cos, sin), dim=1)


def rows(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROW_OPS)
def test_an_exact_op_computes_what_the_reference_op_does(name: str, dtype: torch.dtype) -> None:
    """Up to rounding, which in bf16 is a unit or two in the last place of what the reference rounds in between."""
    x = rows(40, dtype)
    bounds = (1e-5, 1e-5) if dtype == torch.float32 else (2e-2, 2e-2)
    torch.testing.assert_close(ROW_OPS[name](EXACT, x), ROW_OPS[name](REFERENCE, x), atol=bounds[0], rtol=bounds[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROW_OPS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_a_row_has_the_same_bits_in_any_company(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """Any selection of rows, in any order and number, gives each row the bits that it has in the whole."""
    x = rows(70, dtype)
    whole = ROW_OPS[name](EXACT, x)
    chosen = data.draw(st.lists(st.integers(0, 69), min_size=1, max_size=70))
    assert torch.equal(ROW_OPS[name](EXACT, x[chosen]), whole[chosen])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, None), (40, 5.0)])
def test_a_query_has_the_same_bits_in_any_chunk_and_any_pages(
    dtype: torch.dtype, window: int | None, softcap: float | None
) -> None:
    """Whole, in chunks, alone, beside another sequence, and from pages of any size in any order."""
    spec = AttentionSpec(0, scale=0.3, window=window, softcap=softcap)
    source = torch.Generator().manual_seed(3)
    length, page_tokens = 83, 4
    q, k, v = (torch.randn(length, heads, 20, generator=source).to(dtype) for heads in (6, 2, 2))
    whole = packed_exact([length])(spec, q, k, v)

    num_pages = -(-length // page_tokens)
    order = torch.randperm(num_pages, generator=source)
    keys, values = (torch.full((num_pages, 2, page_tokens, 20), torch.nan, dtype=dtype) for _ in range(2))
    for position in range(length):
        keys[order[position // page_tokens], :, position % page_tokens] = k[position]
        values[order[position // page_tokens], :, position % page_tokens] = v[position]
    for begin, end in [(0, 83), (0, 1), (1, 83), (16, 40), (31, 32), (64, 83), (82, 83)]:
        chunk = np.array([[0, end - begin, begin, 0]])
        assert torch.equal(attend_pages(spec, chunk, order.numpy(), q[begin:end], keys, values), whole[begin:end])

    both = packed_exact([30, length])(spec, *(torch.cat((x[:30], x)) for x in (q, k, v)))
    assert torch.equal(both[30:], whole) and torch.equal(both[:30], whole[:30])


def test_exact_attention_computes_what_the_reference_does() -> None:
    """Grouped heads, any length: the reference's values up to float32's rounding."""
    spec = AttentionSpec(0, scale=20**-0.5)
    q, k, v = (torch.randn(50, heads, 20, generator=torch.Generator().manual_seed(heads)) for heads in (6, 2, 2))
    torch.testing.assert_close(
        packed_exact([17, 33])(spec, q, k, v), packed_causal([17, 33])(spec, q, k, v), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ROW_OPS)
def test_gradients_are_the_reference_ones(name: str) -> None:
    """Training in exact mode descends along the reference table's gradients."""
    ours, theirs = rows(20, torch.float32).requires_grad_(), rows(20, torch.float32).requires_grad_()
    for ops, x in ((EXACT, ours), (REFERENCE, theirs)):
        ROW_OPS[name](ops, x).square().sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_attention_has_the_reference_gradient() -> None:
    """For queries, keys and values alike."""
    spec = AttentionSpec(0, scale=8**-0.5)
    inputs = [torch.randn(12, 2, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    found = []
    for attend in (packed_exact([5, 7]), packed_causal([5, 7])):
        leaves = [x.clone().requires_grad_() for x in inputs]
        attend(spec, *leaves).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
