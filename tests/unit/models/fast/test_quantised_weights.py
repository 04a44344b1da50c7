"""Weights in eight and four bits multiply as their own numbers say, and lose as little as is stated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from penstock.models.fast import int8
from penstock.models.fast.activations import quantise
from penstock.models.fast.int4 import Int4Weight, group_size
from penstock.models.fast.int8 import Int8Weight

pytestmark = pytest.mark.skipif(not int8.is_supported(), reason="needs a CPU with AVX2")

SHAPES = [
    (1, 1, 1),
    (2, 16, 1),
    (5, 17, 33),
    (6, 288, 100),
    (13, 864, 288),
    (8, 100, 64),
    (28, 160, 96),
    (21, 33, 128),
    (50, 64, 1024),
    (97, 300, 62),
    (3, 1024, 96),
]
"""Rows, outputs, inputs: every number of rows in a tile, and remainders in each of the three."""
KINDS = ("int8", "int4")


@pytest.fixture(autouse=True, params=[1, 2], ids=["one thread", "two threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def packed(kind: str, weight: Tensor, cuts: tuple[int, ...] = (5, 11, 40)) -> Int8Weight | Int4Weight:
    """``weight`` put in parts of ``cuts`` rows and a rest, as a checkpoint with several tensors is read."""
    outputs, inputs = weight.shape
    target = Int8Weight(outputs, inputs) if kind == "int8" else Int4Weight(outputs, inputs, group_size(inputs))
    start = 0
    for cut in (*cuts, outputs):
        target.put(start, weight[start : start + cut])
        start += cut
    return target


def numbers(weight: Int8Weight | Int4Weight) -> Tensor:
    """What the weight stands for, in float64, found by other means than its kernel's: one input after the other."""
    unit = torch.arange(weight.num_rows)
    exact = weight.exact_rows(unit)
    assert exact.dtype == torch.float32
    return exact.double()


def taken(x: Tensor) -> Tensor:
    """The rows of x as the kernel takes them, in float64."""
    found = quantise(x, 16, num_groups=-(-x.shape[1] // 16), offset=0)
    return found.values.view(torch.int8)[:, : x.shape[1]].double() * found.scales.double()[:, None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_rows", "outputs", "inputs"), SHAPES)
def test_products_are_those_of_the_numbers(kind: str, num_rows: int, outputs: int, inputs: int) -> None:
    """Logits to two millionths of the terms' sizes, by the scales in float32; linears rounded once, after the bias."""
    weight, x, bias = packed(kind, values(outputs, inputs)), values(num_rows, inputs, seed=1), values(outputs, seed=2)
    rows, exact = taken(x), numbers(weight)
    expected, sizes = rows @ exact.T, rows.abs() @ exact.abs().T
    assert ((weight.logits(x) - expected).abs() <= 2e-6 * sizes).all()
    expected = expected + bias.double()
    allowed = expected.abs() * 2**-8 + 2e-6 * (sizes + bias.double().abs())
    assert ((weight.multiply(x, bias) - expected).abs() <= allowed).all()


@pytest.mark.parametrize("inputs", [64, 288, 1000])
def test_eight_bits_are_within_half_a_step(inputs: int) -> None:
    """A weight is at most half of 1/127 of its row's largest one away from what it was."""
    weight = values(33, inputs).float()
    error = (numbers(packed("int8", weight)) - weight.double()).abs()
    assert (error <= weight.abs().amax(1, keepdim=True) / 127 * 0.5001).all()


@pytest.mark.parametrize("inputs", [64, 288, 1000])
def test_four_bits_are_within_half_a_step_of_their_group(inputs: int) -> None:
    """At most half of 1/15 of the group's span away, and as much again at its ends, since zero has to be a number."""
    weight, group = values(33, inputs).float(), group_size(inputs)
    short = -inputs % group
    grouped = torch.nn.functional.pad(weight, (0, short)).unflatten(1, (-1, group))
    span = grouped.amax(-1).clamp(min=0) - grouped.amin(-1).clamp(max=0)
    error = (numbers(packed("int4", weight)) - weight.double()).abs()
    allowed = (span / 15).repeat_interleave(group, dim=1)[:, :inputs]
    assert (error <= allowed).all() and (error <= allowed * 0.5001).double().mean() > 0.95


def test_a_row_is_quantised_by_itself() -> None:
    """Rows of sizes far apart keep their relative precision, and one of zeros stays zero."""
    x = values(4, 64) * torch.tensor([[1e-12], [1.0], [1e6], [0.0]], dtype=torch.bfloat16)
    step = x.double().abs().amax(1, keepdim=True) / 127
    assert ((taken(x) - x.double()).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hostile", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_nan_and_alone(kind: str, hostile: float) -> None:
    """It has no scale: all its products are NaN, where torch's may be infinite; no other row sees it."""
    weight, x = packed(kind, values(100, 64)), values(9, 64, seed=1)
    clean = weight.logits(x)
    x[4, 7] = hostile
    found = weight.logits(x)
    assert found[4].isnan().all()
    assert torch.equal(found[[0, 1, 2, 3, 5, 6, 7, 8]], clean[[0, 1, 2, 3, 5, 6, 7, 8]])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_too_small_to_divide_by_are_zeros(kind: str) -> None:
    """A row of subnormal numbers makes no infinity."""
    weight = values(20, 64).float()
    weight[3], weight[4] = 1e-40, 0.0
    found = packed(kind, weight).logits(values(2, 64, seed=1))
    assert found.isfinite().all() and (found[:, 3:5] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_bits_in_any_company(kind: str) -> None:
    """Sums are whole, and scaled in one order."""
    weight, x = packed(kind, values(100, 288)), values(50, 288, seed=1)
    together = weight.logits(x)
    assert all(torch.equal(weight.logits(x[i : i + 1])[0], together[i]) for i in range(50))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [48, 64])
def test_any_number_of_rows_is_computed_whole(kind: str, outputs: int) -> None:
    """Tiles fit together: each row as if alone, up to where rows are cut into items, and beyond."""
    weight, x = packed(kind, values(outputs, 32)), values(160, 32, seed=1)
    alone = torch.cat([weight.logits(row[None]) for row in x])
    for num_rows in (*range(1, 76), 144, 145, 159, 160):
        assert torch.equal(weight.logits(x[-num_rows:]), alone[-num_rows:]), num_rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_is_added_and_forgotten(kind: str) -> None:
    """With and without one in turn."""
    weight, x = packed(kind, values(20, 32)), values(3, 32, seed=1)
    plain = weight.multiply(x, None)
    assert not torch.equal(weight.multiply(x, torch.ones(20, dtype=torch.bfloat16)), plain)
    assert torch.equal(weight.multiply(x, None), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_give_no_rows(kind: str) -> None:
    assert packed(kind, values(20, 32)).logits(values(0, 32)).shape == (0, 20)


def test_memory_is_a_half_and_a_third_of_bfloat16() -> None:
    """Scales, offsets and zero points counted."""
    weight = values(512, 1024)
    assert packed("int8", weight).num_bytes < 0.51 * weight.nbytes
    assert packed("int4", weight).num_bytes < 0.30 * weight.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_large_sums_do_not_overflow(kind: str) -> None:
    """The largest bytes, all of one sign, over many inputs."""
    weight, x = packed(kind, torch.ones(17, 30_016)), torch.ones(2, 30_016).bfloat16()
    torch.testing.assert_close(weight.logits(x), torch.full((2, 17), 30_016.0), rtol=1e-5, atol=0)
