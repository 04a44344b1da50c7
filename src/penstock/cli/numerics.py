"""With which table of ops, which weights and which attention an engine computes.

In: the engine's settings; out: these, and what compiles their kernels.  Exact mode's are imported only when they are
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.config.settings import EngineSettings, Quantization
    from penstock.engine.cpu.forward import MakeAttention
    from penstock.models.config import ModelConfig
    from penstock.models.ops import Ops
    from penstock.models.packed import Pack


@dataclass(frozen=True, slots=True)
class Numerics:
    """A table of ops, and what allocates pages and attends over them.

    ``pack`` ``None``: weights stay as the checkpoint has them.
    ``quantization``: what most of them are kept in then, by the settings or by the checkpoint.
    ``kernels``: calls that each compile some or find them on the disk; what is not called is compiled when first used.
    """

    ops: Ops
    attention: MakeAttention
    kernels: Sequence[Callable[[], object]]
    pack: Pack | None = None
    quantization: Quantization = "none"


def numerics(settings: EngineSettings, config: ModelConfig) -> Numerics:
    """For the checkpoint of ``config``.  Argued in docs/decisions/: 002, 005, 019 and 020.

    Raises ``invalid_setting`` for a quantisation that does not go with the rest, or that this CPU has no means for, and
    ``checkpoint_unsupported`` where it is the checkpoint's.
    """
    dtype = config.dtype if settings.dtype == "auto" else settings.dtype
    _check_quantization(settings, config, dtype)
    if not settings.exact:
        from penstock.engine.cpu.fast_attention import make_attention
        from penstock.models.fast.compile import kernels as fast_kernels
        from penstock.models.fast.pack import packing
        from penstock.models.ops import REFERENCE

        kept: Quantization = settings.quantization if config.scheme is None else config.scheme.kind
        kernels = [job.compile for job in fast_kernels(dtype, kept)]
        if dtype == "float32":
            return Numerics(REFERENCE, make_attention, kernels)
        return Numerics(REFERENCE, make_attention, kernels, packing(settings.quantization), kept)
    from penstock.engine.cpu.exact_attention import ExactAttention
    from penstock.models.exact.compile import compile_kernels
    from penstock.models.exact.ops import EXACT
    from penstock.models.fast.compile import SAMPLING

    return Numerics(EXACT, ExactAttention, [compile_kernels, *(job.compile for job in SAMPLING)])


def _check_quantization(settings: EngineSettings, config: ModelConfig, dtype: str) -> None:
    wish = f"--quantization {settings.quantization}"
    if config.scheme is None:
        if settings.quantization != "none" and (obstacle := _obstacle(settings, dtype)):
            raise Problem("invalid_setting", f"{wish} {obstacle}", param="quantization")
        return
    if settings.quantization != "none":
        message = f"{wish} is for weights as released; these are quantised already ({config.scheme.layout})."
        raise Problem("invalid_setting", message, param="quantization")
    if obstacle := _obstacle(settings, dtype):
        message = f"The checkpoint's quantisation ({config.scheme.layout}) {obstacle}"
        raise Problem("checkpoint_unsupported", message)


def _obstacle(settings: EngineSettings, dtype: str) -> str:
    """What is in the way of quantised weights, to follow their name in a sentence; empty if nothing is."""
    if settings.exact:
        return "does not go with --exact, which is for weights as released."
    if dtype == "float32":
        return "is for models in bfloat16; add --dtype bfloat16."
    from penstock.models.fast.int8 import is_supported

    if not is_supported():
        return (
            "needs a CPU with AVX2, which this one is not, or torch is kept from using it "
            "(ATEN_CPU_CAPABILITY). Take the weights as released."
        )
    return ""
