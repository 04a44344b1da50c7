"""What this machine's CPU may be asked for by compiled kernels.

In: LLVM's list of what the CPU has, and how far torch uses it; out: yes or no, by LLVM's names.
Whoever keeps torch from wide vectors (ATEN_CPU_CAPABILITY) keeps our kernels from them, too: Numba is told so before it
compiles anything.
"""

from __future__ import annotations

from functools import cache

import torch
from llvmlite import binding
from numba.core import config

_BARRED = {"AVX512": (), "AVX2": ("avx512", "avx10", "amx", "evex512")}
"""By what torch says that it uses: how the names begin of what is then out of bounds."""
_BARRED_ELSE = (*_BARRED["AVX2"], "avx", "fma", "f16c")


@cache
def has(*features: str) -> bool:
    """Whether this machine's CPU has all of ``features``, in LLVM's names: ``avx512bf16``, say, and may use them."""
    found = _features()
    return all(found.get(feature, False) for feature in features)


@cache
def _features() -> dict[str, bool]:
    found = dict(binding.get_host_cpu_features())
    barred = _BARRED.get(torch.backends.cpu.get_cpu_capability(), _BARRED_ELSE)
    return {name: there and not name.startswith(barred) for name, there in found.items()}


def _tell_numba() -> None:
    if config.CPU_FEATURES is None and _features() != dict(binding.get_host_cpu_features()):
        config.CPU_FEATURES = ",".join(f"{'+' if there else '-'}{name}" for name, there in sorted(_features().items()))


_tell_numba()
