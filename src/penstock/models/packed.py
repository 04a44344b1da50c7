"""What stands in a model where a weight stood, once it lies in the layout of the kernels that multiply by it.

In: a weight's rows while a checkpoint is read; out: products.  A packed weight is never trained nor saved.
Argued in docs/decisions/019-packed-weights.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

Kind = Literal["bf16", "int8", "int4"]


@dataclass(frozen=True, slots=True)
class Kept:
    """What a checkpoint has a weight quantised to: ``group`` inputs have a scale in common."""

    kind: Kind
    group: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """Rows of a quantised weight: (value - zero) * scale.

    ``values`` [R, I], int8, or uint8 up to 15 of four bits; ``scales`` and ``zeros`` [R, groups]; no zeros: none but 0.
    """

    values: Tensor
    scales: Tensor
    zeros: Tensor | None

    def part(self, first: int, end: int) -> Numbers:
        zeros = None if self.zeros is None else self.zeros[first:end]
        return Numbers(self.values[first:end], self.scales[first:end], zeros)


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


@runtime_checkable
class TakesNumbers(Packed, Protocol):
    """A packed weight that can be given numbers as a checkpoint has them."""

    def put_numbers(self, start: int, numbers: Numbers) -> None:
        """As ``put``, of rows that are quantised already to what this weight was made for."""
        ...


Pack = Callable[[nn.Module, str, Tensor, "Kept | None"], "Sequence[Packed] | None"]
"""(module, name of its parameter, that parameter without memory, what the checkpoint has it quantised to, if at all)
-> empty packed weights for its rows, or ``None``.

A module that takes them has ``take_packed``; several are matrices below one another, of equally many rows.
"""


def put_rows(matrices: Sequence[Packed], start: int, rows: Tensor) -> None:
    """``rows`` from row ``start`` of ``matrices`` below one another on."""
    for matrix, at, first, end in _shared(matrices, start, len(rows)):
        matrix.put(at, rows[first:end])


def put_numbers(matrices: Sequence[Packed], start: int, numbers: Numbers) -> None:
    """The same of rows that are quantised already."""
    for matrix, at, first, end in _shared(matrices, start, len(numbers.values)):
        assert isinstance(matrix, TakesNumbers)
        matrix.put_numbers(at, numbers.part(first, end))


def _shared(matrices: Sequence[Packed], start: int, count: int) -> Iterator[tuple[Packed, int, int, int]]:
    """Which matrix takes which of ``count`` rows: (matrix, its row, first and end of the rows)."""
    num_rows, end = matrices[0].num_rows, start + count
    for index in range(start // num_rows, -(-end // num_rows)):
        first, last = max(start, index * num_rows), min(end, (index + 1) * num_rows)
        yield matrices[index], first - index * num_rows, first - start, last - start


def num_weight_bytes(model: nn.Module) -> int:
    """Memory of all weights of ``model``, packed or not."""
    plain = sum(parameter.nbytes for parameter in model.parameters())
    packed: list[Packed] = [weight for module in model.modules() for weight in getattr(module, "packed", ())]
    return plain + sum(weight.num_bytes for weight in packed)
