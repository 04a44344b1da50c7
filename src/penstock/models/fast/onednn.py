"""Products of many rows by oneDNN, which comes with torch, where it is measured to be faster: on CPUs with AMX.

In: a decoder whose weights are packed in bfloat16, and room for a second copy of them; out: weights that know from how
many rows on oneDNN multiplies.  Few rows stay with our kernels, and so does everything where oneDNN does not win.
Argued in docs/decisions/029-onednn-for-many-rows.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from penstock.models.fast.bf16 import Bf16Weight, ManyRows
from penstock.models.linear import Linear

_log = logging.getLogger(__name__)

_mkldnn = torch.ops.mkldnn

Clock = Callable[[], float]
"""Seconds that never go back."""

_ROWS = (64, 32, 16)
"""Numbers of rows that are tried, in turn, until oneDNN is not faster any more."""
_OUTPUTS = 128
"""Of a weight are enough to tell, on one thread: such a product is short, so that others seldom come in between."""
_TRIES = 7
_GAIN = 0.9
"""What part of our time oneDNN may take at most: a second copy of the weights has to pay."""


class Reordered:
    """A weight [O, I] as oneDNN multiplies by it."""

    def __init__(self, weight: Tensor) -> None:
        self.num_bytes = weight.nbytes
        self._weight = _mkldnn._reorder_linear_weight(weight, max(_ROWS))  # noqa: SLF001 - it has no public name

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x[T, I] -> [T, O], both bfloat16."""
        multiply = _mkldnn._linear_pointwise  # noqa: SLF001 - it has no public name
        product: Tensor = multiply(x, self._weight, bias, "none", [], "")
        return product


def is_supported() -> bool:
    """Whether oneDNN multiplies bfloat16 on this CPU, as far as it may be used (ONEDNN_MAX_CPU_ISA)."""
    supported: bool = _mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - it has no public name
    return supported


def prefer_onednn(decoder: nn.Module, room_bytes: int, clock: Clock) -> None:
    """Measure each shape of the decoder's linears, and give those copies that gain by it, within ``room_bytes``.

    A few milliseconds where oneDNN does not win: the smallest shape speaks for all then.
    """
    shapes = _by_shape(decoder)
    if not shapes or not is_supported():
        return
    for shape in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        weights = shapes[shape]
        rows = _rows_from(weights[0], clock)
        if rows is None:
            _log.info("oneDNN is not faster for weights of %d times %d: our kernels multiply", *shape)
            return
        copies_bytes = len(weights) * shape[0] * shape[1] * torch.bfloat16.itemsize
        if copies_bytes > room_bytes:
            _log.info("oneDNN would be faster for weights of %d times %d, but there is no memory for copies", *shape)
            return
        room_bytes -= copies_bytes
        for weight in weights:
            weight.many = ManyRows(rows, Reordered(weight.rows(torch.arange(weight.num_rows))))
        _log.info("oneDNN multiplies %d rows and more by weights of %d times %d", rows, *shape)


def _by_shape(decoder: nn.Module) -> dict[tuple[int, int], list[Bf16Weight]]:
    """Of linears alone: the head is for few rows."""
    found: dict[tuple[int, int], list[Bf16Weight]] = {}
    for module in decoder.modules():
        for weight in module.packed if isinstance(module, Linear) else ():
            if isinstance(weight, Bf16Weight):
                found.setdefault((weight.num_rows, weight.num_inputs), []).append(weight)
    return found


def _rows_from(weight: Bf16Weight, clock: Clock) -> int | None:
    """The fewest of the rows tried from which on oneDNN gains; ``None``: it does not even for the most."""
    rows = weight.rows(torch.arange(min(_OUTPUTS, weight.num_rows)))
    ours, theirs = Bf16Weight(*rows.shape), Reordered(rows)
    ours.put(0, rows)
    num_threads, found = torch.get_num_threads(), None
    torch.set_num_threads(1)
    try:
        for num_rows in _ROWS:
            x = torch.zeros(num_rows, weight.num_inputs, dtype=torch.bfloat16)
            times = [(_time(ours.multiply, x, clock), _time(theirs.multiply, x, clock)) for _ in range(_TRIES)]
            if min(their for _, their in times) > _GAIN * min(our for our, _ in times):
                break
            found = num_rows
    finally:
        torch.set_num_threads(num_threads)
    return found


def _time(multiply: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, clock: Clock) -> float:
    begin = clock()
    multiply(x, None)
    return clock() - begin
