"""How this folder's loops become machine code.

In: a function of numbers and numpy arrays; out: the same, compiled when it is first called and kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from numba import njit

from penstock.models.kept import kept

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Holds no interpreter's lock; sums may be taken in any order, and NaN stays NaN."""
    return cast(
        Callable[P, R],
        kept(njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}))(function),
    )
