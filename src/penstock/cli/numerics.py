"""With which table of ops and which attention an engine computes.

In: the engine's settings; out: both.  Exact mode's are imported, and compiled, only when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.config.settings import EngineSettings
    from penstock.engine.cpu.executor import StepAttention
    from penstock.models.ops import Ops
    from penstock.models.packed import Pack


@dataclass(frozen=True, slots=True)
class Numerics:
    """``attention`` ``None``: the executor's own.  ``pack`` ``None``: weights stay as the checkpoint has them."""

    ops: Ops
    attention: StepAttention | None = None
    pack: Pack | None = None


def numerics(settings: EngineSettings, dtype: str) -> Numerics:
    """``dtype``: what the model computes in.  Docs: docs/decisions/002-table-of-ops.md and 005-exact-mode.md.

    Raises ``invalid_setting`` for a quantisation that does not go with the rest, or that this CPU has no means for.
    """
    _check_quantization(settings, dtype)
    if not settings.exact:
        from penstock.models.ops import REFERENCE

        if dtype == "float32":
            return Numerics(REFERENCE)
        from penstock.models.fast.pack import packing

        return Numerics(REFERENCE, pack=packing(settings.quantization))
    from penstock.engine.cpu.exact_attention import ExactAttention
    from penstock.models.exact.compile import compile_kernels
    from penstock.models.exact.ops import EXACT

    compile_kernels()
    return Numerics(EXACT, ExactAttention)


def _check_quantization(settings: EngineSettings, dtype: str) -> None:
    if settings.quantization == "none":
        return
    if settings.exact:
        message = f"--exact is for the weights as released: it does not go with --quantization {settings.quantization}."
        raise Problem("invalid_setting", message, param="quantization")
    if dtype == "float32":
        message = f"--quantization {settings.quantization} is for models in bfloat16; add --dtype bfloat16."
        raise Problem("invalid_setting", message, param="quantization")
    from penstock.models.fast.int8 import is_supported

    if not is_supported():
        message = (
            f"--quantization {settings.quantization} needs a CPU with AVX512-VNNI and AVX512-BF16, which this one is "
            "not, or torch is kept from using it (ATEN_CPU_CAPABILITY). Leave it out."
        )
        raise Problem("invalid_setting", message, param="quantization")
