"""A weight in four bits, with a scale and a zero point per output and group of inputs, and its products.

In: a checkpoint's rows, or numbers that somebody quantised; out: products with rows quantised to eight bits one by one.
A number q stands for (q - zero) * scale.  A group's sum is whole; what the zero point adds to it is taken off by the
row's own sum over the group, and the groups are added in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models.fast import layout
from penstock.models.fast.activations import quantise
from penstock.models.fast.groups import LINE_INPUTS, quantise_groups
from penstock.models.fast.jobs import Bias, Form, RowsAt, multiply, product_arguments
from penstock.models.fast.products import multiply_int4
from penstock.models.packed import Kind, Numbers

GROUPS = (64, 32)
"""Sizes of groups that a weight is quantised in: the first that its inputs are a multiple of, else the last."""
_MOST = 15


def group_size(num_inputs: int) -> int:
    return next((size for size in GROUPS if num_inputs % size == 0), GROUPS[-1])


class Int4Weight:
    """A :class:`~penstock.models.packed.Packed` of [num_rows, num_inputs]; ``group``: a multiple of 16."""

    kind: Kind = "int4"
    job = multiply_int4

    def __init__(self, num_rows: int, num_inputs: int, group: int) -> None:
        self.num_rows, self.num_inputs, self.group = num_rows, num_inputs, group
        self.num_groups = -(-num_inputs // group)
        self.blocks = layout.new_blocks(num_rows, self.num_groups * group // 2, torch.uint8)
        self.scales = torch.zeros(len(self.blocks), self.num_groups, layout.BLOCK)
        self.zeros = torch.zeros(len(self.blocks), self.num_groups, layout.BLOCK, dtype=torch.uint8)
        self._bias = Bias(len(self.blocks))

    @property
    def num_bytes(self) -> int:
        return self.blocks.nbytes + self.scales.nbytes + self.zeros.nbytes

    def put(self, start: int, rows: Tensor) -> None:
        filled = F.pad(rows.float(), (0, self.num_groups * self.group - self.num_inputs))
        lines = torch.empty(len(rows), filled.shape[1] // 2, dtype=torch.uint8)
        scales = torch.empty(len(rows), self.num_groups)
        zeros = torch.empty(scales.shape, dtype=torch.uint8)
        quantise_groups(filled.numpy(), lines.numpy(), scales.numpy(), zeros.numpy())
        self._put(start, lines, scales, zeros)

    def put_numbers(self, start: int, numbers: Numbers) -> None:
        values = F.pad(numbers.values, (0, self.num_groups * self.group - numbers.values.shape[1]))
        low, high = values.view(len(values), self.blocks.shape[1], 2, LINE_INPUTS // 2).unbind(2)
        self._put(start, (low | high << 4).flatten(1), numbers.scales.float(), numbers.zeros)

    def _put(self, start: int, lines: Tensor, scales: Tensor, zeros: Tensor | None) -> None:
        layout.put(self.blocks, start, lines)
        rows = torch.arange(start, start + len(lines))
        self.scales[rows // layout.BLOCK, :, rows % layout.BLOCK] = scales
        if zeros is not None:
            self.zeros[rows // layout.BLOCK, :, rows % layout.BLOCK] = zeros

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._product(x, bias, torch.bfloat16)

    def logits(self, x: Tensor) -> Tensor:
        return self._product(x, None, torch.float32)

    def rows(self, numbers: Tensor) -> Tensor:
        return self.exact_rows(numbers).bfloat16()

    def exact_rows(self, numbers: Tensor) -> Tensor:
        """What the rows stand for, [T, I] float32."""
        lines = self.blocks.shape[1]
        pairs = layout.rows(self.blocks, numbers, lines * 4).view(len(numbers), lines, 1, 4)
        values = torch.cat((pairs & _MOST, pairs >> 4), dim=2).view(len(numbers), self.num_groups, self.group).float()
        block, lane = numbers // layout.BLOCK, numbers % layout.BLOCK
        exact = (values - self.zeros[block, :, lane, None]) * self.scales[block, :, lane, None]
        return exact.flatten(1)[:, : self.num_inputs]

    @property
    def row_width(self) -> int:
        return self.num_groups * self.group

    @property
    def form(self) -> Form:
        return Form(self.num_groups)

    def arguments(self, bias: Tensor | None, x: RowsAt, out: int, *, wide: bool) -> list[int]:
        own = x.scales, self.scales.data_ptr(), self.zeros.data_ptr(), x.sums, self.num_groups
        return product_arguments(self.blocks, self._bias.address(bias), x, out, own, wide=wide)

    def _product(self, x: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows = quantise(x, self.group, num_groups=self.num_groups, offset=0)
        return multiply(self, rows.at, len(x), bias, dtype)
