"""With which table of ops and which attention an engine computes.

In: the wish for exact mode; out: both.  Exact mode's are imported, and compiled, only when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.config.settings import DType
    from penstock.engine.cpu.executor import StepAttention
    from penstock.models.ops import Ops
    from penstock.models.packed import Pack


@dataclass(frozen=True, slots=True)
class Numerics:
    """``attention`` ``None``: the executor's own.  ``pack`` ``None``: weights stay as the checkpoint has them."""

    ops: Ops
    attention: StepAttention | None = None
    pack: Pack | None = None


def numerics(exact: bool, dtype: DType) -> Numerics:
    """``dtype``: what the model computes in.  Docs: docs/decisions/002-table-of-ops.md and 005-exact-mode.md."""
    if not exact:
        from penstock.models.ops import REFERENCE

        if dtype == "float32":
            return Numerics(REFERENCE)
        from penstock.models.fast.pack import packing

        return Numerics(REFERENCE, pack=packing())
    from penstock.engine.cpu.exact_attention import ExactAttention
    from penstock.models.exact.compile import compile_kernels
    from penstock.models.exact.ops import EXACT

    compile_kernels()
    return Numerics(EXACT, ExactAttention)
