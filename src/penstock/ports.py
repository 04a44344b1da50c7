"""The few protocols that a simulation replaces; production and simulation each implement them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.events.list import Event
from penstock.wire.slices import Ask, Taken


class Clock(Protocol):
    """Monotonic seconds.  Durations only: the origin means nothing."""

    def now(self) -> float: ...


class Ids(Protocol):
    """A new id each time, unlike any other anywhere."""

    def __call__(self) -> str: ...


class Chance(Protocol):
    """A number from 0 to 1, drawn anew each time."""

    def __call__(self) -> float: ...


class Slices(Protocol):
    """Where gateways that share limits take slices of them: atomic, and its clock alone decides about windows."""

    async def take(self, asks: Sequence[Ask]) -> Taken:
        """State what is held of each rule, and take more.  Raises ``Problem`` ``limits_unavailable``."""


class Emit(Protocol):
    """Where events go: the folds behind /metrics, the log, or a test's list.  Never blocks, never raises."""

    def __call__(self, event: Event, /) -> None: ...
