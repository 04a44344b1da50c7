"""With which table of ops and which attention an engine computes.

In: the wish for exact mode; out: both.  Exact mode's are imported, and compiled, only when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.engine.cpu.executor import StepAttention
    from penstock.models.ops import Ops


@dataclass(frozen=True, slots=True)
class Numerics:
    """``attention`` ``None``: the executor's own."""

    ops: Ops
    attention: StepAttention | None = None


def numerics(exact: bool) -> Numerics:
    """Docs: docs/decisions/002-table-of-ops.md and 005-exact-mode.md."""
    if not exact:
        from penstock.models.ops import REFERENCE

        return Numerics(REFERENCE)
    from penstock.engine.cpu.exact_attention import ExactAttention
    from penstock.models.exact.compile import compile_kernels
    from penstock.models.exact.ops import EXACT

    compile_kernels()
    return Numerics(EXACT, ExactAttention)
