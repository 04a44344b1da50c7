"""A weight in bfloat16, packed, and its products on the CPU's dot-product instruction.

In: a checkpoint's rows, then rows to multiply; out: products with sums in float32, rounded once.
The instruction takes subnormal numbers for zero; everything else is as torch's own products are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models.fast import layout, simd
from penstock.models.fast.jobs import Bias, new_output, product_items
from penstock.models.fast.products import multiply_bf16
from penstock.models.packed import Kind


def is_supported() -> bool:
    """Whether this machine, as far as torch is allowed to use it, multiplies so."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and simd.has("avx512bf16")


class Bf16Weight:
    """A :class:`~penstock.models.packed.Packed` of [num_rows, num_inputs]."""

    kind: Kind = "bf16"

    def __init__(self, num_rows: int, num_inputs: int) -> None:
        self.num_rows, self.num_inputs = num_rows, num_inputs
        self.blocks = layout.new_blocks(num_rows, num_inputs, torch.bfloat16)
        self._bias = Bias(len(self.blocks))

    @property
    def num_bytes(self) -> int:
        return self.blocks.nbytes

    def put(self, start: int, rows: Tensor) -> None:
        layout.put(self.blocks, start, rows.bfloat16())

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._product(x, bias, torch.bfloat16)

    def logits(self, x: Tensor) -> Tensor:
        return self._product(x, None, torch.float32)

    def rows(self, numbers: Tensor) -> Tensor:
        return layout.rows(self.blocks, numbers, self.num_inputs)

    def arguments(self, bias: Tensor | None, x: int, out: int, *, wide: bool) -> list[int]:
        """What ``multiply_bf16`` takes for rows at the address ``x``, but for how many there are."""
        width = len(self.blocks) * layout.BLOCK
        return [
            x,
            self.blocks.data_ptr(),
            self._bias.address(bias),
            out,
            0,
            self.blocks.shape[1],
            len(self.blocks),
            4 * self.blocks.shape[1],
            width * (4 if wide else 2),
            0,
            int(wide),
        ]

    def _product(self, x: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        num_steps = self.blocks.shape[1]
        short = 2 * num_steps - x.shape[1]
        x = F.pad(x, (0, short)) if short else x.contiguous()
        out = new_output(len(x), len(self.blocks), dtype)
        num_items, item_rows = product_items(len(x), len(self.blocks))
        multiply_bf16.run(
            num_items,
            x.data_ptr(),
            self.blocks.data_ptr(),
            self._bias.address(bias),
            out.data_ptr(),
            len(x),
            num_steps,
            len(self.blocks),
            x.stride(0) * x.element_size(),
            out.stride(0) * out.element_size(),
            item_rows,
            int(dtype == torch.float32),
        )
        return out[:, : self.num_rows]
