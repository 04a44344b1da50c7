"""Who waits, in lines: one for each tenant and priority, in order of arrival; whoever was preempted stands first.

In: sequences; out: the lines that ``policy.fair`` takes turns over, and what each sequence waited for.
Knows no rules: which line is served is not its.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, ValuesView

from penstock.engine.sequence import Sequence


class WaitingLine:
    """Implements :class:`penstock.policy.fair.Line`."""

    def __init__(self, tenant: str, priority: int) -> None:
        self.tenant = tenant
        self.priority = priority
        self.sequences: deque[Sequence] = deque()

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.sequences)


class Waiting:
    """All lines; an empty one is gone."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], WaitingLine] = {}
        self._count = 0
        self._held_s: dict[str, float] = {}
        self._since: dict[str, tuple[float, dict[str, float]]] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    @property
    def lines(self) -> ValuesView[WaitingLine]:
        return self._lines.values()

    def held(self, why: str, seconds: float) -> None:
        """Whoever was first in line was held for so long, and with it everybody who waits."""
        self._held_s[why] = self._held_s.get(why, 0.0) + seconds

    def add(self, sequence: Sequence, now_s: float, *, first: bool = False) -> None:
        """Let it stand in its line, ``first`` or last."""
        self._since[sequence.id] = now_s, dict(self._held_s)
        key = (sequence.tenant, sequence.priority)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = WaitingLine(*key)
        if first:
            line.sequences.appendleft(sequence)
        else:
            line.sequences.append(sequence)
        self._count += 1

    def remove(self, sequence: Sequence, now_s: float) -> None:
        """It waits no more, and is told for what it did."""
        key = (sequence.tenant, sequence.priority)
        line = self._lines[key]
        line.sequences.remove(sequence)
        self._count -= 1
        if not line.sequences:
            del self._lines[key]
        since, before = self._since.pop(sequence.id)
        waits = sequence.waits
        waits.queued_s += now_s - since
        for why, seconds in self._held_s.items():
            if seconds > before.get(why, 0.0):
                waits.held[why] = waits.held.get(why, 0.0) + seconds - before.get(why, 0.0)
