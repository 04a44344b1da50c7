"""One event stream to one client."""

from __future__ import annotations

import asyncio
from typing import Any

from penstock.gateway.http.stream import EventStream
from penstock.wire import sse
from penstock.wire.errors import Problem


class Wire:
    """As a pipe is, to a client that reads."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.arrived = asyncio.Event()

    def begin(self, headers: Any, frames: bytes) -> None:
        self.messages.append({"headers": headers})
        if frames:
            self.write(frames)

    def write(self, frames: bytes) -> None:
        self.messages.append({"body": frames})
        self.arrived.set()

    async def end(self, frames: bytes) -> None:
        self.messages.append({"body": frames, "more_body": False})

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.messages) < count:
                self.arrived.clear()
                await self.arrived.wait()


async def test_silence_is_filled_with_comments() -> None:
    """A stream that is silent gets keep-alive comments until it ends, and none after."""
    wire = Wire()
    stream = EventStream(wire, [], keep_alive_s=0.02)
    stream.write(b"data: 1\n\n")
    stream.begin()
    await wire.until(4)
    await stream.end(sse.DONE)
    count = len(wire.messages)
    await asyncio.sleep(0.05)
    assert len(wire.messages) == count
    assert wire.body.startswith(b"data: 1\n\n: keep-alive\n\n: keep-alive\n\n") and wire.body.endswith(sse.DONE)
    assert wire.messages[-1]["more_body"] is False


async def test_a_busy_stream_has_no_comments() -> None:
    """Frames that come more often than the keep-alive interval leave no room for comments."""
    wire = Wire()
    stream = EventStream(wire, [], keep_alive_s=0.5)
    stream.begin()
    for _ in range(5):
        assert stream.write(b"data: x\n\n") is None
    stream.stop()
    assert sse.KEEP_ALIVE not in wire.body


async def test_a_failed_stream_is_left_incomplete() -> None:
    """The error is an event, and the response never ends cleanly."""
    wire = Wire()
    stream = EventStream(wire, [], keep_alive_s=10)
    stream.begin()
    await stream.fail(Problem("engine_lost", "gone"))
    assert b'data: {"error":{"message":"gone"' in wire.body and b"[DONE]" not in wire.body
    assert all(message.get("more_body", True) for message in wire.messages)
