"""With which table of ops, which weights, which KV cache and which attention an engine computes.

In: the engine's settings; out: these, and what compiles their kernels.  Exact mode's are imported only when they are
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.wire.errors import Problem

if TYPE_CHECKING:
    import torch

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
    ``kv_dtype``: of keys and values, ``None`` for the model's own.
    ``kernels``: calls that each compile some or find them on the disk; what is not called is compiled when first used.
    """

    ops: Ops
    attention: MakeAttention
    kernels: Sequence[Callable[[], object]]
    pack: Pack | None = None
    quantization: Quantization = "none"
    kv_dtype: torch.dtype | None = None

    def kv_dtype_of(self, config: ModelConfig) -> torch.dtype:
        """Of keys and values of the model of ``config``."""
        return self.kv_dtype or config.torch_dtype


def numerics(settings: EngineSettings, config: ModelConfig) -> Numerics:
    """For the checkpoint of ``config``.  Argued in docs/decisions/: 002, 005, 019, 020 and 031.

    Raises ``invalid_setting`` for a quantisation or a KV cache that does not go with the rest, or that this CPU has no
    means for, and ``checkpoint_unsupported`` where the quantisation is the checkpoint's.
    """
    dtype = config.dtype if settings.dtype == "auto" else settings.dtype
    _check_quantization(settings, config, dtype)
    _check_kv_cache(settings, config, dtype)
    if not settings.exact:
        import torch

        from penstock.engine.cpu.fast_attention import make_attention
        from penstock.models.fast.compile import kernels as fast_kernels
        from penstock.models.fast.pack import packing
        from penstock.models.ops import REFERENCE

        kept: Quantization = settings.quantization if config.scheme is None else config.scheme.kind
        kv_dtype = torch.int8 if settings.kv_cache_dtype == "int8" else None
        own = torch.float32 if dtype == "float32" else torch.bfloat16
        kernels = [job.compile for job in fast_kernels(kv_dtype or own, kept)]
        if dtype == "float32":
            return Numerics(REFERENCE, make_attention, kernels)
        return Numerics(REFERENCE, make_attention, kernels, packing(settings.quantization), kept, kv_dtype)
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


def _check_kv_cache(settings: EngineSettings, config: ModelConfig, dtype: str) -> None:
    wish, obstacle = f"--kv-cache-dtype {settings.kv_cache_dtype}", ""
    if settings.kv_cache_dtype == "bfloat16" and dtype == "float32":
        obstacle = "is for models in bfloat16; add --dtype bfloat16."
    elif settings.kv_cache_dtype == "int8":
        obstacle = _obstacle(settings, dtype) or _pages_obstacle(config.head_dim, settings.block_tokens)
    if obstacle:
        raise Problem("invalid_setting", f"{wish} {obstacle}", param="kv_cache_dtype")


def _pages_obstacle(head_dim: int, block_tokens: int) -> str:
    from penstock.models.fast.pages import MOST_BYTE_TOKENS, MOST_HEAD_DIM, TILE, holds_bytes

    if not holds_bytes(TILE, block_tokens):
        return f"needs blocks of a multiple of {TILE} tokens, {MOST_BYTE_TOKENS} at most; these have {block_tokens}."
    if holds_bytes(head_dim):
        return ""
    return f"needs heads of a multiple of {TILE} numbers, {MOST_HEAD_DIM} at most; this model's have {head_dim}."


def _obstacle(settings: EngineSettings, dtype: str) -> str:
    """What is in the way of whole numbers, to follow their name in a sentence; empty if nothing is."""
    if settings.exact:
        return "does not go with --exact, which computes as the checkpoint was released."
    if dtype == "float32":
        return "is for models in bfloat16; add --dtype bfloat16."
    from penstock.models.fast.int8 import is_supported

    if not is_supported():
        return (
            "needs a CPU with AVX2, which this one is not, or torch is kept from using it "
            "(ATEN_CPU_CAPABILITY). Leave it out."
        )
    return ""
