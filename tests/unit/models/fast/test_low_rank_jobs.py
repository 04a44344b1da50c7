"""The job of adapters, held against the same products in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.models.fast import pack
from penstock.models.fast.low_rank_jobs import Changes, add_low_rank
from penstock.models.linear import Linear
from penstock.models.low_rank import Adapter, LowRank
from penstock.models.ops import REFERENCE

pytestmark = pytest.mark.skipif(pack.packing() is None, reason="the CPU has no AVX-512 with bfloat16")
INPUTS, PARTS, PADDING = 112, (64, 32), 16
SUM = sum(PARTS)


def matrix(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


def rows_of(kind: str, num_rows: int) -> tuple[Tensor, tuple[int, ...], Tensor | None]:
    """Values in float64, what a job is told of them, and the tensor that has to live."""
    if kind == "float32":
        x = torch.randn(num_rows, INPUTS + PADDING)
        return x[:, :INPUTS].double(), (x.data_ptr(), 4 * (INPUTS + PADDING), 0, 0), x
    offset = 128 if kind == "unsigned bytes" else 0
    x, scales = torch.randint(0, 256, (num_rows, INPUTS), dtype=torch.uint8), torch.rand(num_rows)
    numbers = x.double() - 128 if offset else x.view(torch.int8).double()
    kept = torch.cat((x.flatten(), scales.view(torch.uint8)))
    told = kept.data_ptr(), INPUTS, kept.data_ptr() + x.numel(), offset
    return numbers * scales.double()[:, None], told, kept


@pytest.mark.parametrize("kind", ["float32", "unsigned bytes", "signed bytes"])
def test_rows_get_what_their_adapters_do(kind: str) -> None:
    """Two adapters, of which one leaves a matrix alone, a third that changes nothing here, and rows of nobody."""
    torch.manual_seed(1)
    linear = Linear(INPUTS, PARTS, bias=False, dtype=torch.bfloat16, ops=REFERENCE)
    both = Adapter(
        "both", 32, {linear: tuple(LowRank(a, matrix(32, INPUTS), matrix(32, n)) for a, n in ((0, 64), (64, 32)))}
    )
    one = Adapter("one", 16, {linear: (LowRank(64, matrix(16, INPUTS), matrix(16, 32)),)})
    adapters = [both, one, Adapter("none", 16, {})]
    values, told, kept = rows_of(kind, 7)
    y = torch.randn(7, SUM)
    expected = y.double()
    rows, whose = np.array([6, 0, 3, 2, 5]), np.array([0, 1, 0, 2, 1])
    for row, adapter in zip(rows, whose, strict=True):
        for part in adapters[adapter].changes.get(linear, ()):
            change = values[row] @ part.down.double().T @ part.up.double()
            expected[row, part.start : part.start + len(change)] += change
    changes = Changes([linear])
    table = changes.of(adapters)
    add_low_rank.run(
        *(len(rows), rows.ctypes.data, whose.ctypes.data, table.ctypes.data),
        *(*told, INPUTS, y.data_ptr(), SUM),
    )
    assert kept is not None
    scale = expected.abs().max()
    torch.testing.assert_close(y.double() / scale, expected / scale, atol=2e-6, rtol=0)
    assert torch.equal(y[[1, 4]].double(), expected[[1, 4]])
