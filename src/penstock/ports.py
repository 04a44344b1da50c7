"""The few protocols that a simulation replaces; production and simulation each implement them."""

from __future__ import annotations

from typing import Protocol

from penstock.events.list import Event


class Clock(Protocol):
    """Monotonic seconds.  Durations only: the origin means nothing."""

    def now(self) -> float: ...


class Ids(Protocol):
    """A new id each time, unlike any other anywhere."""

    def __call__(self) -> str: ...


class Chance(Protocol):
    """A number from 0 to 1, drawn anew each time."""

    def __call__(self) -> float: ...


class Emit(Protocol):
    """Where events go: the folds behind /metrics, the log, or a test's list.  Never blocks, never raises."""

    def __call__(self, event: Event, /) -> None: ...
