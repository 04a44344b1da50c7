"""Compiled loops shared out over threads, at a cost of a few microseconds.

In: a compiled job and its arguments; out: nothing, when every item is done.  Which thread does which item is left to
chance, so an item's result must not depend on it.
The threads are torch's own: its OpenMP library is asked for a team, so nothing has to be installed and no two pools
spin against each other.  Where there is none (macOS), a pool of Python threads does the same, at some 50 microseconds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.machine_code import address_of

Ints = npt.NDArray[np.int64]

NEXT, NUM_ITEMS, FIRST = range(3)
"""Where a job's arguments, all int64, hold the item to take next and the number of items, and where its own begin."""


class Job:
    """A compiled function of one argument, the address of its arguments: it takes items until none is left."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        """``function`` takes an int64 pointer; it is compiled when it is first needed, and kept on disk."""
        self._function = function

    @property
    def name(self) -> str:
        """What it computes, in a word or two."""
        return self._function.__name__.strip("_").replace("_", " ")

    @cached_property
    def address(self) -> int:
        """Of the compiled function, as C calls it."""
        return address_of(self._function)

    def compile(self) -> None:
        """Now, or from the disk; otherwise that is done by its first use."""
        assert self.address

    @cached_property
    def _call(self) -> Callable[[int], None]:
        return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.address)

    def run(self, num_items: int, *arguments: int, most_threads: int = 1 << 16) -> None:
        """Do items 0 .. ``num_items`` - 1 with ``arguments`` (addresses, sizes), by as many threads as torch has.

        ``most_threads``: fewer, where items are so short that waiting for one another would take longer.
        """
        block = np.array((0, num_items, *arguments), np.int64)
        num_threads = min(num_items, torch.get_num_threads(), most_threads)
        if num_threads <= 1:
            self._call(block.ctypes.data)
        else:
            _fork()(self.address, self._call, block, num_threads)


def float_bits(value: float) -> int:
    """How a job's arguments hold a float32."""
    return int(np.float32(value).view(np.int32))


Fork = Callable[[int, Callable[[int], None], Ints, int], None]


@cache
def _fork() -> Fork:
    return _torchs_team() or _python_threads()


def _torchs_team() -> Fork | None:
    """By what GCC compiles ``#pragma omp parallel`` to calls of; LLVM and Intel have it on Linux, too."""
    for name in _loaded_openmp():
        parallel = getattr(ctypes.CDLL(name), "GOMP_parallel", None)
        if parallel is not None:
            parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            parallel.restype = None
            return lambda address, _, block, num_threads: parallel(address, block.ctypes.data, num_threads, 0)
    return None


def _loaded_openmp() -> list[str]:
    """Paths of the OpenMP libraries that this process has loaded; torch brings one along."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "omp" in line}
    return sorted(path for path in paths if "libgomp" in path or "libomp" in path or "libiomp" in path)


def _python_threads() -> Fork:
    pool = ThreadPoolExecutor(thread_name_prefix="job")

    def fork(_: int, call: Callable[[int], None], block: Ints, num_threads: int) -> None:
        others = [pool.submit(call, block.ctypes.data) for _ in range(num_threads - 1)]
        call(block.ctypes.data)
        for other in others:
            other.result()

    return fork


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def take(_context: Any, job: Any) -> Any:
    """The number of an item that nobody has taken yet, counted on atomically; in a job's arguments ``job``."""

    def generate(_c: Any, builder: Any, _s: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", values[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate
