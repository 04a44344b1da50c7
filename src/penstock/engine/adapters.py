"""Which LoRA adapters an engine has: read once, used by any sequence, dropped while it runs.

In: folders; out: handles that sequences keep.  Knows no tensors: reading is wired in.
An adapter that was dropped lives on in the sequences that began with it, and its memory counts until they have ended.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from penstock.cost.memory import megabytes
from penstock.wire.errors import Problem


class Adapter(Protocol):
    """An adapter in memory.  ``digest`` names its content."""

    @property
    def digest(self) -> str: ...
    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class AdapterRules:
    """``most`` adapters at a time; ``room_bytes`` were kept for each of them when the KV cache was sized."""

    most: int = 0
    room_bytes: int = 0

    @property
    def all_bytes(self) -> int:
        return self.most * self.room_bytes


class Adapters:
    """``read`` makes an adapter of a folder, in a thread; it raises ``Problem`` for one that does not fit the model."""

    def __init__(self, rules: AdapterRules, read: Callable[[Path], Adapter]) -> None:
        self.read = read
        self._rules = rules
        self._by_digest: dict[str, Adapter] = {}
        self._alive: WeakSet[Adapter] = WeakSet()

    @property
    def digests(self) -> list[str]:
        return list(self._by_digest)

    def get(self, digest: str) -> Adapter | None:
        return self._by_digest.get(digest)

    def find(self, digest: str) -> Adapter:
        """Raises ``not_ready``: another replica has it, or this one will."""
        adapter = self._by_digest.get(digest)
        if adapter is None:
            raise Problem("not_ready", "This engine does not have the adapter that was asked for.", retry_after_s=1)
        return adapter

    def check_room(self) -> None:
        """Before another is read.  Raises ``conflict`` or ``insufficient_memory``."""
        most, all_bytes = self._rules.most, self._rules.all_bytes
        if not most:
            raise Problem("conflict", "This service keeps no room for adapters; start it with --max-loras NUMBER.")
        if len(self._by_digest) >= most:
            message = f"{len(self._by_digest)} adapters are loaded, and --max-loras is {most}. Unload one first."
            raise Problem("conflict", message)
        if self._used_bytes() + self._rules.room_bytes > all_bytes:
            gc.collect()  # what has ended may be part of a cycle, a cancelled task's traceback say
        used = self._used_bytes()
        if used + self._rules.room_bytes > all_bytes:
            raise Problem(
                "insufficient_memory",
                f"Adapters take {megabytes(used)} of the {megabytes(all_bytes)} that were kept for them, those "
                "that were unloaded and that running requests still use among them. Try again when these have ended.",
            )

    def add(self, adapter: Adapter) -> None:
        self._by_digest[adapter.digest] = adapter
        self._alive.add(adapter)

    def drop(self, digest: str) -> None:
        """No new sequence gets it.  Unknown ones are no error: it may have been dropped before."""
        self._by_digest.pop(digest, None)

    def _used_bytes(self) -> int:
        return sum(adapter.num_bytes for adapter in self._alive)
