"""Virtual time: moves only when somebody moves it."""

from __future__ import annotations


class VirtualClock:
    """A :class:`penstock.ports.Clock` in seconds."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self._now += seconds
