"""Who waits, in lines: one for each tenant and priority, in order of arrival; whoever was preempted stands first.

In: sequences; out: the lines that ``policy.fair`` takes turns over.  Knows no rules: which line is served is not its.
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

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    @property
    def lines(self) -> ValuesView[WaitingLine]:
        return self._lines.values()

    def add(self, sequence: Sequence, *, first: bool = False) -> None:
        key = (sequence.tenant, sequence.priority)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = WaitingLine(*key)
        if first:
            line.sequences.appendleft(sequence)
        else:
            line.sequences.append(sequence)
        self._count += 1

    def remove(self, sequence: Sequence) -> None:
        """Raises ``ValueError`` for a sequence that does not wait."""
        key = (sequence.tenant, sequence.priority)
        line = self._lines.get(key)
        if line is None:
            raise ValueError(f"{sequence.id} does not wait")
        line.sequences.remove(sequence)
        self._count -= 1
        if not line.sequences:
            del self._lines[key]
