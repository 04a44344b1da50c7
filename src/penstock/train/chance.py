"""Chance as a pure function: the same key gives the same number on every machine and Python version.

In: a seed and a key; out: integers and orders.  Keeps no state, so any draw can be made again alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")
Key = str | int


def draw(seed: int, *key: Key) -> int:
    """A uniform 64-bit integer that only ``seed`` and ``key`` decide."""
    text = "\0".join(map(str, (seed, *key)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def pick(items: Sequence[T], seed: int, *key: Key) -> T:
    """One of ``items``, uniformly; there must be one."""
    return items[draw(seed, *key) % len(items)]


def happens(probability: float, seed: int, *key: Key) -> bool:
    """True with ``probability``."""
    return draw(seed, *key) < probability * 2**64


def shuffled(items: Iterable[T], seed: int, *key: Key) -> list[T]:
    """``items`` in an order that ``seed`` and ``key`` decide."""
    kept = list(items)
    order = sorted(range(len(kept)), key=lambda index: (draw(seed, *key, index), index))
    return [kept[index] for index in order]
