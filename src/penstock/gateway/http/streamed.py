"""A streamed answer: the events of its choices, as frames, into one event stream.

In: events within the call that brought them from the engine; out: frames on their way within the same call.
The head waits until every choice was accepted: until then a problem has a status.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from penstock.gateway.http.stream import EventStream
from penstock.wire.engine import Accepted, Event, Finished


class StreamRenderer(Protocol):
    def push(self, index: int, events: list[Event]) -> bytes: ...
    def end(self) -> bytes: ...


class Streamed:
    """``renderer_of()`` is asked with the first event, ``on_begin()`` told before the head leaves."""

    def __init__(
        self,
        stream: EventStream,
        renderer_of: Callable[[], StreamRenderer],
        on_begin: Callable[[], None],
        num_choices: int,
    ) -> None:
        self._stream = stream
        self._renderer_of = renderer_of
        self._on_begin = on_begin
        self._renderer: StreamRenderer | None = None
        self._waiting = self._running = num_choices
        self._last = b""

    def give(self, index: int, events: list[Event]) -> Awaitable[None] | None:
        """An awaitable: the client reads slowly."""
        renderer = self._renderer
        if renderer is None:
            renderer = self._renderer = self._renderer_of()
        frames = renderer.push(index, events)
        if isinstance(events[-1], Finished):
            self._running -= 1
            if not self._running:
                self._last = frames  # it leaves with the end
                return None
        if self._stream.begun:
            return self._stream.write(frames)
        self._stream.write(frames)
        self._waiting -= isinstance(events[0], Accepted)
        if self._waiting and not self._stream.holds_enough:
            return None
        return self._begin()

    async def end(self) -> None:
        """Every choice has finished."""
        assert self._renderer is not None and not self._running, "the choices ended without being finished"
        if not self._stream.begun:
            wait = self._begin()
            if wait is not None:
                await wait
        await self._stream.end(self._last + self._renderer.end())

    def _begin(self) -> Awaitable[None] | None:
        self._on_begin()
        return self._stream.begin()
