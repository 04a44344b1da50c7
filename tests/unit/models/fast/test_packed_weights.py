"""Packed weights multiply as torch would in float64, to within a stated bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from penstock.models.fast import bf16, team
from penstock.models.fast.bf16 import Bf16Weight
from penstock.models.packed import put_rows

pytestmark = pytest.mark.skipif(not bf16.is_supported(), reason="needs a CPU with AVX2")

SHAPES = [
    (1, 1, 1),
    (2, 16, 1),
    (5, 17, 33),
    (6, 288, 100),
    (13, 864, 288),
    (50, 64, 1024),
    (97, 300, 62),
    (3, 1024, 96),
]
"""Rows, outputs, inputs: every number of rows in a tile, and remainders in each of the three."""


@pytest.fixture(autouse=True, params=[1, 2], ids=["one thread", "two threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def packed(weight: Tensor, cuts: tuple[int, ...] = (5, 11, 40)) -> Bf16Weight:
    """``weight`` put in parts of ``cuts`` rows and a rest, as a checkpoint with several tensors is read."""
    target, start = Bf16Weight(*weight.shape), 0
    for cut in (*cuts, len(weight)):
        target.put(start, weight[start : start + cut])
        start += cut
    return target


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("num_rows", "outputs", "inputs"), SHAPES)
def test_logits_are_sums_in_float32(num_rows: int, outputs: int, inputs: int) -> None:
    """A product of bfloat16 is exact in float32, so that only the additions round: a millionth of the terms' sizes."""
    weight, x = values(outputs, inputs), values(num_rows, inputs, seed=1)
    expected = x.double() @ weight.double().T
    sizes = x.double().abs() @ weight.double().abs().T
    found = packed(weight).logits(x)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert ((found - expected).abs() <= 1e-6 * sizes).all()


@pytest.mark.parametrize(("num_rows", "outputs", "inputs"), SHAPES)
def test_products_are_rounded_once_after_the_bias(num_rows: int, outputs: int, inputs: int) -> None:
    """The bias is added in float32: the result is within half a unit of bfloat16 of the true one, and a little."""
    weight, x, bias = values(outputs, inputs), values(num_rows, inputs, seed=1), values(outputs, seed=2)
    expected = x.double() @ weight.double().T + bias.double()
    sizes = x.double().abs() @ weight.double().abs().T + bias.double().abs()
    found = packed(weight).multiply(x, bias)
    assert found.dtype == torch.bfloat16
    assert ((found - expected).abs() <= expected.abs() * 2**-8 + 1e-6 * sizes).all()


def test_a_bias_is_not_remembered_for_the_next_caller() -> None:
    """With, without and with another bias in turn."""
    weight, x = packed(values(20, 8)), values(3, 8, seed=1)
    plain, one = weight.multiply(x, None), torch.ones(20, dtype=torch.bfloat16)
    assert not torch.equal(weight.multiply(x, one), plain)
    assert not torch.equal(weight.multiply(x, one * 2), weight.multiply(x, one))
    assert torch.equal(weight.multiply(x, None), plain)


@pytest.mark.parametrize("hostile", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row(hostile: float) -> None:
    """NaN and infinity give what torch gives, and no other row sees them."""
    weight, x = values(100, 64), values(9, 64, seed=1)
    x[4, 7] = hostile
    found, expected = packed(weight).logits(x), x.float() @ weight.float().T
    torch.testing.assert_close(found[4], expected[4], equal_nan=True, rtol=0, atol=0)
    assert found[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


def test_a_weight_that_is_not_finite_reaches_its_output_alone() -> None:
    """An infinity in row 17 of the weight, which shares its block with others."""
    weight, x = values(40, 64), values(2, 64, seed=1)
    weight[17, 3] = torch.inf
    finite = packed(weight).logits(x).isfinite().all(dim=0)
    assert not finite[17] and finite.sum() == 39


def test_rows_are_looked_up_as_they_were_put() -> None:
    """A tied embedding: bit for bit what the checkpoint has, in any order and repeatedly."""
    weight = values(300, 62)
    numbers = torch.tensor([299, 0, 17, 17, 15, 16, 128])
    assert torch.equal(packed(weight).rows(numbers), weight[numbers])


def test_no_rows_give_no_rows() -> None:
    """An empty batch is no item of work."""
    assert packed(values(20, 8)).logits(values(0, 8)).shape == (0, 20)


def test_rows_with_a_gap_between_them() -> None:
    """x may be a part of a wider tensor."""
    weight, wide = packed(values(20, 8)), values(5, 24, seed=1)
    assert torch.equal(weight.multiply(wide[:, 8:16], None), weight.multiply(wide[:, 8:16].clone(), None))


def test_rows_are_the_same_bits_in_any_company() -> None:
    """A row's sums are taken in one order, however many rows there are: resumed streams like it."""
    weight, x = packed(values(100, 288)), values(50, 288, seed=1)
    together = weight.logits(x)
    assert all(torch.equal(weight.logits(x[i : i + 1])[0], together[i]) for i in range(50))


@pytest.mark.parametrize("outputs", [48, 64])
def test_any_number_of_rows_is_computed_whole(outputs: int) -> None:
    """Tiles fit together: each row as if alone, up to where rows are cut into items, and beyond."""
    weight, x = packed(values(outputs, 32)), values(160, 32, seed=1)
    alone = torch.cat([weight.logits(row[None]) for row in x])
    for num_rows in (*range(1, 76), 144, 145, 159, 160):
        assert torch.equal(weight.logits(x[-num_rows:]), alone[-num_rows:]), num_rows


def test_matrices_below_one_another_get_their_rows() -> None:
    """Experts: rows that cross from one matrix into the next."""
    stacked = values(60, 8)
    matrices = [Bf16Weight(20, 8) for _ in range(3)]
    for start, end in ((0, 7), (7, 45), (45, 60)):
        put_rows(matrices, start, stacked[start:end])
    for index, matrix in enumerate(matrices):
        assert torch.equal(matrix.rows(torch.arange(20)), stacked[index * 20 : index * 20 + 20])


def test_python_threads_do_where_there_is_no_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool that stands in for torch's team does every item once."""
    weight, x = packed(values(640, 64)), values(50, 64, seed=1)
    expected = weight.logits(x)
    used: list[int] = []
    pool = team._python_threads()

    def counted(address: int, call: Callable[[int], None], block: team.Ints, num_threads: int) -> None:
        used.append(num_threads)
        pool(address, call, block, num_threads)

    monkeypatch.setattr(team, "_fork", lambda: counted)
    assert torch.equal(weight.logits(x), expected)
    assert used == ([] if torch.get_num_threads() == 1 else [2])
