"""A weight in bfloat16, packed, and its products.

In: a checkpoint's rows, then rows to multiply; out: products with sums in float32, rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from penstock.models.fast import layout
from penstock.models.fast.cpu import has
from penstock.models.fast.jobs import Bias, Form, RowsAt, float_width, multiply, product_arguments
from penstock.models.fast.products import multiply_bf16
from penstock.models.packed import Kind


def is_supported() -> bool:
    """Whether this machine, as far as torch is allowed to use it, multiplies so."""
    return has("avx2", "fma")


class Copy(Protocol):
    """The same weight as somebody else multiplies by it."""

    num_bytes: int

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x[T, I] -> [T, O], both bfloat16."""
        ...


@dataclass(frozen=True, slots=True)
class ManyRows:
    """From ``rows`` rows on ``copy`` multiplies."""

    rows: int
    copy: Copy


class Bf16Weight:
    """A :class:`~penstock.models.packed.Packed` of [num_rows, num_inputs].

    ``many``: who multiplies many rows, if it is somebody else (onednn.py).
    """

    kind: Kind = "bf16"
    job = multiply_bf16
    many: ManyRows | None = None

    def __init__(self, num_rows: int, num_inputs: int) -> None:
        self.num_rows, self.num_inputs = num_rows, num_inputs
        self.blocks = layout.new_blocks(num_rows, num_inputs, torch.bfloat16)
        self._bias = Bias(len(self.blocks))

    @property
    def num_bytes(self) -> int:
        return self.blocks.nbytes + (self.many.copy.num_bytes if self.many else 0)

    def put(self, start: int, rows: Tensor) -> None:
        layout.put(self.blocks, start, rows.bfloat16())

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.many is not None and len(x) >= self.many.rows:
            return self.many.copy.multiply(x, bias)
        return self._product(x, bias, torch.bfloat16)

    def logits(self, x: Tensor) -> Tensor:
        return self._product(x, None, torch.float32)

    def rows(self, numbers: Tensor) -> Tensor:
        return layout.rows(self.blocks, numbers, self.num_inputs)

    @property
    def row_width(self) -> int:
        return 2 * self.blocks.shape[1]

    @property
    def form(self) -> Form:
        return Form()

    def arguments(self, bias: Tensor | None, x: RowsAt, out: int, *, wide: bool) -> list[int]:
        return product_arguments(self.blocks, self._bias.address(bias), x, out, wide=wide)

    def _product(self, x: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows = torch.empty(len(x), float_width(self.row_width))
        rows[:, : x.shape[1]] = x
        rows[:, x.shape[1] : self.row_width] = 0.0
        return multiply(self, RowsAt(rows.data_ptr(), self.form.row_bytes(self.row_width)), len(x), bias, dtype)
