"""A weight in whole numbers of eight bits, one scale per output, and its products with rows quantised one by one.

In: a checkpoint's rows, then rows to multiply; out: products.  Sums are whole and so the same in any order.
Weights and rows are symmetric (zero is zero, 127 the largest), as in arXiv 2206.01861; the instruction multiplies
unsigned by signed bytes, so a row's bytes are 128 above their value, and each sum begins at what that adds too much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.models.fast import layout
from penstock.models.fast.activations import quantise
from penstock.models.fast.cpu import has
from penstock.models.fast.jobs import Bias, Form, RowsAt, multiply, product_arguments
from penstock.models.fast.products import multiply_int8
from penstock.models.packed import Kind, Numbers

_GROUP = 16
"""Inputs that a register of the quantising kernel holds; there are no groups with scales of their own."""
_MOST = 127
_OFFSET = 128


def is_supported() -> bool:
    """Whether this machine, as far as torch is allowed to use it, multiplies so."""
    return has("avx2", "fma")


class Int8Weight:
    """A :class:`~penstock.models.packed.Packed` of [num_rows, num_inputs]."""

    kind: Kind = "int8"
    job = multiply_int8

    def __init__(self, num_rows: int, num_inputs: int) -> None:
        self.num_rows, self.num_inputs = num_rows, num_inputs
        self._num_groups = -(-num_inputs // _GROUP)
        self.blocks = layout.new_blocks(num_rows, self._num_groups * _GROUP, torch.int8)
        num_outputs = len(self.blocks) * layout.BLOCK
        self.scales = torch.zeros(num_outputs)
        self.offsets = torch.zeros(num_outputs, dtype=torch.int32)
        self._bias = Bias(len(self.blocks))

    @property
    def num_bytes(self) -> int:
        return self.blocks.nbytes + self.scales.nbytes + self.offsets.nbytes

    def put(self, start: int, rows: Tensor) -> None:
        if rows.dtype == torch.bfloat16:
            # What the kernel does with rows to multiply is what rows of a weight need, in a quarter of the time.
            quantised = quantise(rows, self._num_groups * _GROUP, num_groups=1, offset=0)
            self._put(start, quantised.values.view(torch.int8), quantised.scales, quantised.sums[:, 0])
            return
        rows = rows.float()
        scales = rows.abs().amax(dim=1) / _MOST
        # A row of zeros, or of numbers too small to divide by, is all zeros.
        factors = torch.where(scales > 1e-30, 1 / scales, 0.0)
        values = (rows * factors[:, None]).round_()
        self._put(start, values.to(torch.int8), scales, values.sum(dim=1))

    def put_numbers(self, start: int, numbers: Numbers) -> None:
        self._put(start, numbers.values, numbers.scales[:, 0].float(), numbers.values.sum(dim=1))

    def _put(self, start: int, values: Tensor, scales: Tensor, sums: Tensor) -> None:
        end = start + len(values)
        layout.put(self.blocks, start, values)
        self.scales[start:end] = scales
        self.offsets[start:end] = sums * -_OFFSET

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._product(x, bias, torch.bfloat16)

    def logits(self, x: Tensor) -> Tensor:
        return self._product(x, None, torch.float32)

    def rows(self, numbers: Tensor) -> Tensor:
        return self.exact_rows(numbers).bfloat16()

    def exact_rows(self, numbers: Tensor) -> Tensor:
        """What the rows stand for, [T, I] float32."""
        return layout.rows(self.blocks, numbers, self.num_inputs) * self.scales[numbers, None]

    @property
    def row_width(self) -> int:
        return self._num_groups * _GROUP

    @property
    def form(self) -> Form:
        return Form(num_groups=1, offset=_OFFSET)

    def arguments(self, bias: Tensor | None, x: RowsAt, out: int, *, wide: bool) -> list[int]:
        own = x.scales, self.scales.data_ptr(), self.offsets.data_ptr()
        return product_arguments(self.blocks, self._bias.address(bias), x, out, own, wide=wide)

    def _product(self, x: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows = quantise(x, self._num_groups * _GROUP, num_groups=1, offset=_OFFSET)
        return multiply(self, rows.at, len(x), bias, dtype)
