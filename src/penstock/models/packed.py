"""What stands in a model where a weight stood, once it lies in the layout of the kernels that multiply by it.

In: a weight's rows while a checkpoint is read; out: products.  A packed weight is never trained nor saved.
Argued in docs/decisions/019-packed-weights.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from torch import Tensor, nn

Kind = Literal["bf16", "int8", "int4"]


class Packed(Protocol):
    """A weight[O, I] that multiplies rows.  ``kind``: in which numbers it is kept."""

    @property
    def kind(self) -> Kind: ...

    @property
    def num_rows(self) -> int:
        """O."""
        ...

    @property
    def num_bytes(self) -> int:
        """Of memory, all that belongs to it counted."""
        ...

    def put(self, start: int, rows: Tensor) -> None:
        """Take rows[R, I] of any floating dtype as rows ``start`` .. of the weight; each is put once."""
        ...

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x[T, I] -> [T, O] in x's dtype, ``bias`` [O] added before the one rounding."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """x[T, I] -> [T, O] float32, not rounded in between."""
        ...

    def rows(self, numbers: Tensor) -> Tensor:
        """The weight's rows ``numbers`` [T] as [T, I] in bfloat16: a tied embedding is looked up in them."""
        ...


Pack = Callable[[nn.Module, str, Tensor], "Sequence[Packed] | None"]
"""(module, name of its parameter, that parameter without memory) -> empty packed weights for its rows, or ``None``.

A module that takes them has ``take_packed``; several are matrices below one another, of equally many rows.
"""


def put_rows(matrices: Sequence[Packed], num_rows: int, start: int, rows: Tensor) -> None:
    """``rows`` from row ``start`` of ``matrices`` below one another on, each of which has ``num_rows``."""
    end = start + len(rows)
    for index in range(start // num_rows, -(-end // num_rows)):
        first, last = max(start, index * num_rows), min(end, (index + 1) * num_rows)
        matrices[index].put(first - index * num_rows, rows[first - start : last - start])


def num_weight_bytes(model: nn.Module) -> int:
    """Memory of all weights of ``model``, packed or not."""
    plain = sum(parameter.nbytes for parameter in model.parameters())
    packed: list[Packed] = [weight for module in model.modules() for weight in getattr(module, "packed", ())]
    return plain + sum(weight.num_bytes for weight in packed)
