"""How many threads a step is computed with: as many as lately did best for steps of its size.

In: rows, and how long steps took; out: a number of threads.  No clock and no threads of its own.
Two threads wait for one another at every barrier, so a neighbour that takes one core's time stops both: on a busy
machine one thread is then many times faster than two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_WEIGHT = 0.25
"""Of the latest step in the running mean."""
_PATIENCE = 64
"""Steps after which the other choice is tried once, as long as it is not far behind."""
_FAR = 1.6
"""How many times slower is far behind: it is looked at a tenth as often."""


@dataclass(slots=True)
class _Size:
    """What is known of steps of one size: mean seconds by number of threads, and steps until the next trial."""

    seconds: dict[int, float] = field(default_factory=dict)
    until_trial: int = 0


class ThreadChoice:
    """Between one thread and ``most``, for sizes by the power of two that holds their rows."""

    def __init__(self, most: int) -> None:
        self._choices = (most, 1) if most > 1 else (most,)
        self._sizes: dict[int, _Size] = {}

    def threads(self, num_rows: int) -> int:
        size = self._sizes.setdefault(num_rows.bit_length(), _Size())
        for choice in self._choices:
            if choice not in size.seconds:
                return choice
        best = min(self._choices, key=lambda choice: size.seconds[choice])
        if len(self._choices) == 1 or size.until_trial > 0:
            return best
        return next(choice for choice in self._choices if choice != best)

    def took(self, num_rows: int, threads: int, seconds: float) -> None:
        """A step of so many rows took so long with so many threads."""
        size = self._sizes.setdefault(num_rows.bit_length(), _Size())
        before = size.seconds.get(threads)
        # A step much faster than the mean says that what slowed the others down has gone.
        if before is not None and seconds > before / 2:
            seconds = before + _WEIGHT * (seconds - before)
        size.seconds[threads] = seconds
        size.until_trial -= 1
        if size.until_trial < 0 and len(size.seconds) == len(self._choices):
            low, high = min(size.seconds.values()), max(size.seconds.values())
            size.until_trial = _PATIENCE if high <= _FAR * low else 10 * _PATIENCE
