"""Who owns which KV block.

In: counts of blocks and prefix keys; out: block ids.  Integers only: knows no tensors, no tokens and no clock.
A block is free (nothing in it), cached (idle, findable by its key, evicted when leased anew) or used (leased).
"""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """Reference-counted blocks with an intrusive, doubly linked list of the idle ones.

    Leases are taken from the list's head.  A returned block goes to the tail when it is cached (least recently used
    is evicted first) and to the head when it is not, so that what could still be hit lives longest.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_idle = num_blocks
        """Blocks that can be leased: free and cached ones."""
        self.num_cached = 0
        self._refs = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # Slot num_blocks is the list's sentinel: its `next` is the head, its `previous` the tail.
        self._next = [*range(1, num_blocks + 1), 0]
        self._previous = [num_blocks, *range(num_blocks)]

    @property
    def num_free(self) -> int:
        return self.num_idle - self.num_cached

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_idle

    def lease(self, count: int) -> list[int]:
        """Take ``count`` idle blocks for writing; what they cached is forgotten.  The caller checked ``num_idle``."""
        assert count <= self.num_idle, f"{count} blocks asked for, {self.num_idle} idle"
        leased = []
        for _ in range(count):
            block = self._next[self.num_blocks]
            self._unlink(block)
            self._forget(block)
            self._refs[block] = 1
            leased.append(block)
        return leased

    def find(self, keys: Iterable[bytes]) -> tuple[list[int], int]:
        """The longest run of cached blocks for a chain of keys, and how many of them are idle now.  Changes nothing."""
        blocks = []
        num_idle = 0
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
            num_idle += self._refs[block] == 0
        return blocks, num_idle

    def share(self, blocks: Iterable[int]) -> None:
        """Lease blocks that :meth:`find` returned, for reading."""
        for block in blocks:
            if self._refs[block] == 0:
                self._unlink(block)
                self.num_cached -= 1
            self._refs[block] += 1

    def register(self, block: int, key: bytes) -> None:
        """Make a full, computed block findable.  A key that another block already has keeps that one."""
        assert self._refs[block] > 0
        if self._keys[block] is None and key not in self._block_of:
            self._keys[block] = key
            self._block_of[key] = block

    def give_back(self, blocks: list[int]) -> None:
        """Return leases, last block first: a chain's leaves are evicted before its root."""
        for block in reversed(blocks):
            assert self._refs[block] > 0, f"block {block} returned twice"
            self._refs[block] -= 1
            if self._refs[block] == 0:
                cached = self._keys[block] is not None
                self._link(block, at_tail=cached)
                self.num_cached += cached

    def count_private(self, blocks: Iterable[int]) -> int:
        """How many of these leases would become idle if they were returned."""
        refs = self._refs
        return sum(refs[block] == 1 for block in blocks)

    def check(self) -> None:
        """Assert the conservation laws; linear in the number of blocks."""
        idle = []
        block = self._next[self.num_blocks]
        while block != self.num_blocks:
            assert self._previous[self._next[block]] == block
            idle.append(block)
            block = self._next[block]
        assert len(idle) == len(set(idle)) == self.num_idle
        assert all(self._refs[block] == 0 for block in idle)
        assert sum(refs > 0 for refs in self._refs) == self.num_used
        assert sum(self._keys[block] is not None for block in idle) == self.num_cached
        assert all(self._keys[block] == key for key, block in self._block_of.items())
        assert self.num_free + self.num_cached + self.num_used == self.num_blocks

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._block_of[key]
            self._keys[block] = None
            self.num_cached -= 1

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before] = after
        self._previous[after] = before
        self.num_idle -= 1

    def _link(self, block: int, *, at_tail: bool) -> None:
        sentinel = self.num_blocks
        before = self._previous[sentinel] if at_tail else sentinel
        after = self._next[before]
        self._next[before] = self._previous[after] = block
        self._previous[block], self._next[block] = before, after
        self.num_idle += 1
