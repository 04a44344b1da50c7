"""Closed-loop lanes: so many connections, each with one request after the other, for as little CPU as possible.

In: where to send what, how often; out: times and counts.  Reads just enough of an answer to know its first token and
its end: what is measured is the other side.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from penstock.ports import Clock

_FIRST_TOKEN = re.compile(rb'"content":\s*"[^"]')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED_END = b"0\r\n\r\n"
_FRAME = b"data: {"


@dataclass(frozen=True, slots=True)
class Load:
    """``lanes`` connections that send ``requests`` requests among them.

    ``spread_s``: over so long the lanes begin, one after the other; 0: all of them at the same moment.
    ``within_s``: after so long no further request is sent, however many are left.
    """

    host: str
    port: int
    request: bytes
    lanes: int
    requests: int
    spread_s: float = 0.0
    within_s: float = math.inf


@dataclass(slots=True)
class Lap:
    """What came of a load.  ``chunks`` counts the streams' frames; ``failures``: answers that were not whole or 200.

    ``own_cpu_s``: what the lanes themselves took.
    """

    seconds: float = 0.0
    own_cpu_s: float = 0.0
    answers: int = 0
    failures: int = 0
    chunks: int = 0
    first_token_s: list[float] = field(default_factory=list)


def chat_request(path: str, model: str, prompt: str, *, max_tokens: int, stream: bool, key: str = "none") -> bytes:
    """One HTTP request for a chat completion; greedy, so that every gateway gets the same answer."""
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": stream,
    }
    body = msgspec.json.encode(asked)
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    return f"{head}authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def run(load: Load, clock: Clock) -> Lap:
    """Send it all, or what there is time for, and wait for every answer."""
    lap = Lap()
    left = iter(range(load.requests))
    begin, own_s = clock.now(), time.process_time()
    await asyncio.gather(*(_drive(load, number, left, lap, begin, clock) for number in range(load.lanes)))
    lap.seconds, lap.own_cpu_s = clock.now() - begin, time.process_time() - own_s
    return lap


async def _drive(load: Load, number: int, left: Iterator[int], lap: Lap, begin: float, clock: Clock) -> None:
    lane: Lane | None = None
    await asyncio.sleep(load.spread_s * number / load.lanes)
    for _ in left:
        if clock.now() - begin > load.within_s:
            break
        if lane is None or lane.closed:
            lane = await connect(load.host, load.port, clock)
        whole = await lane.ask(load.request)
        lap.answers += whole
        lap.failures += not whole
        lap.chunks += lane.frames
        if lane.first_token_at is not None:
            lap.first_token_s.append(lane.first_token_at - lane.sent_at)
    if lane is not None:
        lane.close()


async def connect(host: str, port: int, clock: Clock) -> Lane:
    """One open connection."""
    _, lane = await asyncio.get_running_loop().create_connection(lambda: Lane(clock), host, port)
    return lane


class Lane(asyncio.Protocol):
    """One connection.  ``frames`` and ``first_token_at`` are of the latest answer."""

    def __init__(self, clock: Clock) -> None:
        self.closed = False
        self.frames = 0
        self.sent_at = 0.0
        self.first_token_at: float | None = None
        self._clock = clock
        self._buffer = b""
        self._missing: int | None = None
        self._in_body = False
        self._answer: asyncio.Future[bool] | None = None
        self._ok = False

    def ask(self, request: bytes) -> asyncio.Future[bool]:
        """Send it; resolved with whether a whole answer with status 200 came."""
        self.frames, self.first_token_at, self._buffer, self._in_body = 0, None, b"", False
        self._answer = asyncio.get_running_loop().create_future()
        self.sent_at = self._clock.now()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        self.closed = True
        self._transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._end(whole=False)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._buffer += data
            head, separator, data = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            self._in_body, self._buffer = True, b""
            self._ok = head[9:12] == b"200"
            length = _LENGTH.search(head)
            self._missing = int(length[1]) if length else None
        if self._missing is not None:
            self._missing -= len(data)
            if self._missing <= 0:
                self._end(whole=self._ok)
            return
        seen = self._buffer + data
        self.frames += seen.count(_FRAME) - self._buffer.count(_FRAME)
        if self.first_token_at is None and _FIRST_TOKEN.search(seen):
            self.first_token_at = self._clock.now()
        self._buffer = seen[-32:]
        if seen.endswith(_CHUNKED_END):
            self._end(whole=self._ok)

    def _end(self, *, whole: bool) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(whole)
