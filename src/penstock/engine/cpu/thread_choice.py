"""How many threads a step is computed with: as many as lately did best for steps of its size.

In: rows, and how long steps took; out: a number of threads.  No clock and no threads of its own.
Two threads wait for one another at every barrier, so a neighbour that takes one core's time stops both: on a busy
machine one thread is then many times faster than two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_WEIGHT = 0.25
"""Of the latest step in the running mean."""
_MOST = 2.0
"""A step counts for no more than so many times the mean: one that stalled says little of those to come."""
_STALLED = 4.0
"""So many times the mean is no larger prompt of the same size: it asks for a trial of what was never tried."""
_MOST_BEYOND, _BEYOND_WEIGHT, _FADES = 12.0, 1 / 128, 1 / 256
"""What it took beyond, up to so many times the mean, has a slow mean: many stalls do say it.  Unseen, that fades."""
_FIRST, _PATIENCE, _PATIENCE_CHANGED, _PATIENCE_GROWS, _MOST_PATIENCE = 8, 64, 4, 4, 512
"""After so many steps the other choice is tried, at first and later; sooner after a change, later after one in vain."""
_GROWS = 1.05
"""By so much from one step to the next the work itself may have grown, as a prompt's does with its context, for all."""
_SHARE = 0.25
"""Of the time until the next trial one in vain may take."""


@dataclass(slots=True)
class _Size:
    """What is known of steps of one size, by number of threads; who does best, and when others are tried.

    ``seconds``: their mean without what stalled steps took ``beyond``, of which the mean per step is apart.
    ``level_s``: what steps of the best take, followed slowly, so that a stall moves it there and back.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    beyond: dict[int, float] = field(default_factory=dict)
    best: int = 0
    level_s: float = 0.0
    patience: int = _PATIENCE // _PATIENCE_GROWS  # which the first trial in vain makes _PATIENCE
    until_trial: int = _FIRST

    def cost_s(self, threads: int) -> float:
        return self.seconds[threads] + self.beyond[threads]

    def took(self, threads: int, seconds: float) -> None:
        for choice in self.beyond:
            if choice != threads:
                self.beyond[choice] *= 1 - _FADES
        if threads == self.best:
            self._follow(seconds)
        before = self.seconds.get(threads)
        if before is None:
            self.seconds[threads], self.beyond[threads] = seconds, 0.0
            return
        beyond = max(0.0, min(seconds, _MOST_BEYOND * before) - _MOST * before)
        self.beyond[threads] += _BEYOND_WEIGHT * (beyond - self.beyond[threads])
        # A step much faster than the mean says that what slowed the others down has gone.
        if seconds > before / 2:
            seconds = before + _WEIGHT * (min(seconds, _MOST * before) - before)
        self.seconds[threads] = seconds

    def _follow(self, seconds: float) -> None:
        """What the best takes longer little by little, others would, too."""
        if not self.level_s:
            self.level_s = min(seconds, _MOST * self.seconds[self.best])
        growth = min(max(seconds / self.level_s, 1 / _GROWS), _GROWS)
        self.level_s *= growth
        for choice in self.seconds:
            if choice != self.best:
                self.seconds[choice] *= growth


class ThreadChoice:
    """Between one thread and ``most``, for sizes by the power of two that holds their rows."""

    def __init__(self, most: int) -> None:
        self._choices = (most, 1) if most > 1 else (most,)
        self._sizes: dict[int, _Size] = {}

    def threads(self, num_rows: int) -> int:
        size = self._size(num_rows)
        if len(self._choices) == 1 or size.until_trial > 0:
            return size.best or self._choices[0]
        return next(choice for choice in self._choices if choice != size.best)

    def took(self, num_rows: int, threads: int, seconds: float) -> None:
        """A step of so many rows took so long with so many threads."""
        size = self._size(num_rows)
        stalled = seconds > _STALLED * size.seconds.get(threads, seconds)
        size.took(threads, seconds)
        size.until_trial -= 1
        if not size.best:
            size.best, size.until_trial = threads, self._until_first(num_rows)
        if len(size.seconds) < len(self._choices):
            if stalled:
                size.until_trial = 0
            return
        best = min(size.seconds, key=size.cost_s)
        best_s = size.cost_s(best)
        if best != size.best:
            size.best, size.level_s, size.patience = best, 0.0, _PATIENCE_CHANGED
        elif threads != best and seconds < best_s < size.seconds[threads]:
            # Better than it was known to be: more of it may change the choice.
            size.patience = _PATIENCE_CHANGED
        elif threads != best:
            steps = seconds / (_SHARE * max(best_s, 1e-9))
            size.patience = int(min(max(_PATIENCE_GROWS * size.patience, steps), _MOST_PATIENCE))
        else:
            return
        size.until_trial = size.patience

    def _until_first(self, num_rows: int) -> int:
        """Steps until the other choice is tried for this size: none, where it does best for fewer rows.

        Where all threads did better for those, they are expected to here: a prompt's steps take so long that a trial
        of one thread is felt.  A step that stalls asks for the trial nevertheless.
        """
        compared = [bits for bits, own in self._sizes.items() if len(own.seconds) > 1]
        below = max((bits for bits in compared if bits < num_rows.bit_length()), default=None)
        if below is None:
            return _FIRST
        return _PATIENCE if self._sizes[below].best == self._choices[0] else 0

    def _size(self, num_rows: int) -> _Size:
        return self._sizes.setdefault(num_rows.bit_length(), _Size())
