"""Where compiled kernels are kept on disk: in a folder named after all that they are made of.

In: a decorator of Numba's; out: the same, keeping what it compiles there.
Numba by itself looks at a kernel's own file alone, and takes what was compiled with its neighbours of yesterday.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import llvmlite
import numba
from numba.core import config

T = TypeVar("T")

_lock = Lock()
"""The compiler's setting is one for all threads."""


def kept(compiler: Callable[[Any], T]) -> Callable[[Any], T]:
    """``compiler``, one with ``cache=True``; what it made holds until a file beside the function's changes.

    It is under ``NUMBA_CACHE_DIR``, beside the sources, or in the user's cache: the first that can be written.
    """

    def compiled(function: Any) -> T:
        with _lock:
            given = config.CACHE_DIR
            config.CACHE_DIR = str(_folder(given, function))
            try:
                return compiler(function)
            finally:
                config.CACHE_DIR = given

    return compiled


def folder_of(function: Any) -> Path:
    """Where what ``function`` is compiled to is kept."""
    with _lock:
        return _folder(config.CACHE_DIR, function)


@cache
def digest(sources: Path) -> str:
    """Of the Python files in a folder, and of the compiler."""
    total = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for path in sorted(sources.glob("*.py")):
        text = path.read_bytes()
        total.update(f"\n{path.name} {len(text)}\n".encode() + text)
    return total.hexdigest()[:16]


def _folder(given: str, function: Any) -> Path:
    sources = Path(function.__code__.co_filename).parent
    return _base(given, sources) / f"kernels-{digest(sources)}"


def _base(given: str, sources: Path) -> Path:
    if given:
        return Path(given)
    beside = sources / "__pycache__"
    if os.access(beside if beside.exists() else sources, os.W_OK):
        return beside
    return Path.home() / ".cache" / "penstock"
