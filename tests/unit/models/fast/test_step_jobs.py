"""The jobs of a step, one by one: the reference op's values in float64, rounded to bfloat16 once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models.fast import embed_jobs, layout
from penstock.models.fast import step_jobs as jobs
from penstock.models.fast.best import best_tokens
from penstock.models.fast.cpu import has
from penstock.models.fast.int8 import Int8Weight
from penstock.models.fast.program import NUM_ARGUMENTS, Program
from penstock.models.fast.team import Job

pytestmark = pytest.mark.skipif(not has("avx2"), reason="the CPU has no AVX2")
SIZES = [16, 48, 80, 1024]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))


BF16 = (0, 0, -1, 0, 0)
"""How rows are taken, behind their address: in bfloat16."""


class Bytes:
    """Rows as a quantised weight takes them, in ``num_groups`` groups, ``offset`` above their numbers."""

    def __init__(self, num_rows: int, size: int, num_groups: int, offset: int) -> None:
        self.values = torch.empty(num_rows, size, dtype=torch.uint8)
        self.scales, self.sums = torch.empty(num_rows), torch.empty(num_rows, num_groups)
        self._offset = offset
        self.taken = (
            self.values.data_ptr(), self.scales.data_ptr(), self.sums.data_ptr(),
            num_groups, size // 16 // num_groups, offset,
        )  # fmt: skip

    def check(self, expected: Tensor) -> None:
        """Each number within half a step of its row's scale, the largest 127, sums those of the numbers."""
        signed = (self.values.int() - self._offset).to(torch.int8).double()
        peaks = expected.abs().amax(1, keepdim=True)
        torch.testing.assert_close(self.scales.double()[:, None], peaks / 127, rtol=1e-5, atol=0)
        assert ((signed * self.scales.double()[:, None] - expected).abs() <= peaks / 127 * 0.501).all()
        assert torch.equal(self.sums.double(), signed.unflatten(1, (self.sums.shape[1], -1)).sum(2))


def check(got: Tensor, expected: Tensor, rtol: float = 2**-8, atol: float = 1e-6) -> None:
    """Within one rounding to bfloat16 (2 ** -9 of the value) and float32's error before it, unless said otherwise."""
    torch.testing.assert_close(got.double(), expected.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [None, 1.0, 0.5])
def test_a_change_is_added_and_the_sum_normalised(size: int, factor: float | None) -> None:
    """The stream keeps the sum in float32; its norm is rounded once."""
    x, change, weight, out = (
        randn(5, size),
        randn(5, size, seed=1),
        randn(size, seed=2),
        torch.empty(5, size).bfloat16(),
    )
    total = x.double() + (change.double() * factor if factor is not None else 0.0)
    at = change.data_ptr() if factor is not None else 0
    own = x.data_ptr(), at, bits(factor or 0.0), weight.data_ptr(), size, bits(1e-6)
    jobs.add_norm.run(5, *own, out.data_ptr(), *BF16)
    check(x, total, rtol=1e-6, atol=1e-6)
    check(out, F.rms_norm(total, (size,), weight.double(), 1e-6))


def test_the_stream_is_handed_on_as_it_is() -> None:
    """Where no norm stands before a product, the sum itself is rounded once, or not at all."""
    x, change, out, wide = randn(5, 48), randn(5, 48, seed=1), torch.empty(5, 48).bfloat16(), torch.empty(5, 64)[:, :48]
    total = x + change
    own = change.data_ptr(), bits(1.0), 0, 48, 0
    jobs.add_norm.run(5, x.data_ptr(), *own, out.data_ptr(), *BF16)
    assert torch.equal(x, total) and torch.equal(out, total.bfloat16())
    jobs.add_norm.run(5, x.data_ptr(), 0, *own[1:], wide.data_ptr(), 0, 0, 0, 4 * 64, 0)
    assert torch.equal(wide, total)


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_normalised_in_their_place(size: int) -> None:
    """What a part adds to the stream is normalised before it does."""
    rows, weight = randn(5, size), randn(size, seed=2)
    expected = F.rms_norm(rows.double(), (size,), weight.double(), 1e-6)
    jobs.norm_rows.run(5, rows.data_ptr(), weight.data_ptr(), size, bits(1e-6))
    check(rows, expected, rtol=1e-5)


def test_rows_are_handed_on_in_float32() -> None:
    """For weights in bfloat16 nothing is rounded on the way."""
    x, weight, gate_up = randn(5, 96), randn(96, seed=2), randn(5, 192, seed=3)
    normalised, gated = torch.empty(5, 112)[:, :96], torch.empty(5, 112)[:, :96]
    apart = 0, 0, 0, 4 * 112, 0
    gate, up = gate_up.double().chunk(2, dim=1)
    own = x.data_ptr(), 0, 0, weight.data_ptr(), 96, bits(1e-6)
    jobs.add_norm.run(5, *own, normalised.data_ptr(), *apart)
    check(normalised, F.rms_norm(x.double(), (96,), weight.double(), 1e-6), rtol=1e-5)
    jobs.gated_silu.run(5, gate_up.data_ptr(), 96, gated.data_ptr(), *apart)
    check(gated, F.silu(gate) * up, rtol=1e-5)


@pytest.mark.parametrize(("size", "num_groups", "offset"), [(16, 1, 128), (96, 3, 0), (1024, 16, 0), (1024, 1, 128)])
def test_rows_are_handed_on_as_bytes(size: int, num_groups: int, offset: int) -> None:
    """For weights in eight and four bits a norm and a gate round once, to bytes, from float32."""
    x, weight, gate_up = randn(5, size), randn(size, seed=2), randn(5, 2 * size, seed=3)
    normalised, gated = Bytes(5, size, num_groups, offset), Bytes(5, size, num_groups, offset)
    gate, up = gate_up.double().chunk(2, dim=1)
    own = x.data_ptr(), 0, 0, weight.data_ptr(), size, bits(1e-6)
    jobs.add_norm.run(5, *own, *normalised.taken)
    normalised.check(F.rms_norm(x.double(), (size,), weight.double(), 1e-6))
    expected = F.silu(gate) * up
    jobs.gated_silu.run(5, gate_up.data_ptr(), size, *gated.taken)
    gated.check(expected)


def test_a_row_that_is_not_finite_is_handed_on_as_nan() -> None:
    """It has no scale, and the rows beside it are as they were."""
    x, weight, out = randn(3, 64), torch.ones(64), Bytes(3, 64, 1, 128)
    x[1, 7] = torch.nan
    jobs.add_norm.run(3, x.data_ptr(), 0, 0, weight.data_ptr(), 64, bits(1e-6), *out.taken)
    assert out.scales.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("job", "activation"),
    [
        (jobs.gated_silu, F.silu),
        (jobs.gated_gelu, F.gelu),
        (jobs.gated_gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
    ],
    ids=["silu", "gelu", "gelu-tanh"],
)
def test_a_gate_is_opened_and_multiplied(job: Job, activation: Callable[[Tensor], Tensor], size: int) -> None:
    """Over the whole range of what a gate is, extremes included."""
    gate_up, out = randn(7, 2 * size) * 4, torch.empty(7, size).bfloat16()
    gate_up[0, :4] = torch.tensor([-100.0, 100.0, 0.0, -20.0])
    gate, up = gate_up.double().chunk(2, dim=1)
    job.run(7, gate_up.data_ptr(), size, out.data_ptr(), *BF16)
    check(out, activation(gate) * up, rtol=2**-8, atol=2e-6)


@pytest.mark.parametrize("size", [16, 48, 96])
def test_tokens_are_looked_up_plain_and_packed(size: int) -> None:
    """A row of the table in float32, wherever in a block it lies, times a factor."""
    table, ids = randn(40, size).bfloat16(), np.array([0, 39, 17, 16, 15, 3])
    blocks = layout.new_blocks(40, size, torch.bfloat16)
    layout.put(blocks, 0, table)
    for job, source in ((embed_jobs.embed, table), (embed_jobs.embed_packed, blocks)):
        for factor in (1.0, 3.0):
            out = torch.empty(6, size)
            job.run(6, ids.ctypes.data, source.data_ptr(), out.data_ptr(), size, bits(factor))
            assert torch.equal(out, table[torch.from_numpy(ids)].float() * factor)


@pytest.mark.parametrize("size", [16, 48, 96])
def test_tokens_are_looked_up_in_bytes(size: int) -> None:
    """A row of a table in eight bits is its numbers times its scale and a factor, not rounded."""
    table, ids = Int8Weight(40, size), np.array([0, 39, 17, 16, 15, 3])
    table.put(0, randn(40, size).bfloat16())
    out = torch.empty(6, size)
    own = ids.ctypes.data, table.blocks.data_ptr(), out.data_ptr(), size, bits(2.0), table.scales.data_ptr()
    embed_jobs.embed_bytes.run(6, *own)
    assert torch.equal(out, table.exact_rows(torch.from_numpy(ids)) * 2)


def test_positions_turn_as_the_reference_does() -> None:
    """cos and sin of position times frequency, as far as a model's context goes."""
    positions, frequencies = np.array([0, 1, 77, 40_000]), 10_000.0 ** (-torch.arange(0, 1, 1 / 24))
    cos, sin = torch.empty(4, 24), torch.empty(4, 24)
    jobs.rotation.run(4, positions.ctypes.data, frequencies.data_ptr(), cos.data_ptr(), sin.data_ptr(), 24, bits(1.5))
    angles = (torch.from_numpy(positions).float()[:, None] * frequencies).double()
    check(cos, 1.5 * angles.cos(), rtol=0, atol=1e-6)
    check(sin, 1.5 * angles.sin(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [16, 48, 16_000, 15_999, 70_000])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_the_first_of_the_best_tokens_wins(size: int, num_rows: int) -> None:
    """Equals are frequent in bfloat16; infinities and hidden tokens are numbers like others."""
    logits = randn(num_rows, size).bfloat16().float()
    assert torch.equal(best_tokens(logits), logits.argmax(-1))
    logits[:, size // 2 :] = logits.max()
    assert torch.equal(best_tokens(logits), logits.argmax(-1))
    logits.fill_(-torch.inf)
    assert best_tokens(logits).tolist() == [0] * num_rows
    logits[0, size - 1] = torch.inf
    assert best_tokens(logits)[0] == size - 1


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_jobs_of_a_program_see_what_those_before_them_wrote(num_threads: int) -> None:
    """A chain of jobs, each over the rows that the one before has changed, gives what one after another gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    x, weight = randn(64, 96), torch.ones(96)
    expected, out = x.clone(), torch.empty(64, 96).bfloat16()
    own = [x.data_ptr(), x.data_ptr(), bits(-0.5), weight.data_ptr(), 96, bits(1e-6), out.data_ptr(), *BF16]
    arguments = np.zeros((50, NUM_ARGUMENTS), np.int64)
    arguments[:, 1], arguments[:, 2 : 2 + len(own)] = 64, own
    program = Program([jobs.add_norm] * 50, arguments)
    for _ in range(20):
        program.run(num_threads)
        expected *= 0.5**50
        assert torch.equal(x, expected)
        x.copy_(expected := expected * 2.0**50)
    torch.set_num_threads(before)
