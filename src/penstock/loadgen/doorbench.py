"""What a gateway costs, measured from outside: CPU per request and per chunk, memory, start, added time to first token.

In: a gateway that runs in front of upstreams, and these; out: figures.  The CPU is the operating
system's account of the gateway's processes; the same lanes that load it give the time without it.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, Protocol

import msgspec

from penstock.loadgen.account import Account
from penstock.loadgen.lanes import Lane, Lap, Load, chat_request, connect, run
from penstock.ports import Clock
from penstock.wire.errors import Problem

PATH = "/v1/chat/completions"
_PROMPT = "The quick brown fox jumps over the lazy dog. " * 25
_SETTLE_S = 0.5
_OPENING = 64
"""How many streams are opened at a time: the listener's backlog is not what is measured."""


class _Way(NamedTuple):
    """How requests come whose first tokens are timed; ``tokens`` and their pace make a stream's length."""

    lanes: int
    tokens: int
    spread_s: float


_ROUNDS = 4
_WAYS = (_Way(1, 2, 0.0), _Way(32, 16, 0.2), _Way(32, 16, 0.0))
"""Alone, 32 in parallel, 32 at once.  A stream of 16 tokens takes the mock engine about 0.2 s."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much is sent.  ``lap_s``: a slow gateway gets no more requests of a kind after so long.

    ``open_streams`` 0 leaves that part out.
    """

    requests: int = 1000
    requests_alone: int = 300
    stream_tokens: int = 200
    streams: int = 64
    streams_alone: int = 1
    first_tokens: int = 64
    lap_s: float = 5.0
    open_streams: int = 5000
    open_hold_s: float = 5.0


class OpenStreams(msgspec.Struct, frozen=True, kw_only=True):
    """``alive``: how many of them got tokens while all were open.  Memory is the gateway's, with all open."""

    count: int
    alive: int
    memory_bytes: int
    bytes_per_stream: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway.  Per request: 16 in flight; per chunk: 32 streams, whatever a stream costs beside its chunks
    included; added: over the same lanes without the gateway, whose own time to the first token is ``direct``.

    At 32 in parallel the requests come one by one; in a burst all 32 come at the same moment and the last has to wait
    for the others.  ``load_busy``: the most of a core that the load itself took; near 1, it was measured.
    ``num_*``: over how many requests and chunks the processor's time was taken.
    """

    start_s: float
    memory_bytes: int
    memory_after_bytes: int
    cpu_ms_per_request: float
    cpu_ms_per_request_alone: float
    requests_per_s: float
    cpu_ms_per_chunk: float
    cpu_ms_per_chunk_alone: float
    added_ttft_p50_ms: float
    added_ttft_p50_ms_at_32: float
    added_ttft_p50_ms_in_a_burst: float
    direct_ttft_p50_ms: float
    direct_ttft_p50_ms_at_32: float
    direct_ttft_p50_ms_in_a_burst: float
    load_busy: float
    num_requests: int
    num_requests_alone: int
    num_chunks: int
    num_chunks_alone: int
    open_streams: OpenStreams | None


class Door(msgspec.Struct, frozen=True):
    """A running gateway, or an upstream without one.  ``key`` is shown to it with every request."""

    host: str
    port: int
    pid: int
    start_s: float
    model: str
    key: str = "none"


class Upstreams(Protocol):
    """Mock engines: one answers at once and whole, one token by token, one so slowly that its streams stay open."""

    whole: Door
    tokens: Door
    slow: Door


class Start(Protocol):
    """Starts the gateway in front of an upstream; ready when entered."""

    def __call__(self, upstream: Door) -> AbstractAsyncContextManager[Door]: ...


class Pair(NamedTuple):
    """A gateway in front of ``Upstreams.whole`` and once more of ``tokens``; ``idle_bytes``: nobody has asked yet."""

    whole: Door
    tokens: Door
    idle_bytes: int


@asynccontextmanager
async def running(start: Start, upstreams: Upstreams) -> AsyncIterator[Pair]:
    """Both of them, started one after the other."""
    async with start(upstreams.whole) as whole:
        await asyncio.sleep(_SETTLE_S)
        idle_bytes = Account(whole.pid).memory_bytes()
        async with start(upstreams.tokens) as tokens:
            yield Pair(whole, tokens, idle_bytes)


async def measure(pair: Pair, upstreams: Upstreams, sizes: Sizes, clock: Clock) -> Figures:
    """All figures but those of open streams.

    Raises ``Problem`` ``endpoint_error`` when it does not answer everything.
    """
    door, account = pair.whole, Account(pair.whole.pid)
    ask = _request(door, max_tokens=64, stream=False)
    await _lap(door, ask, 16, max(sizes.requests // 10, 1), sizes, clock)  # warm
    busy, cpu_s = await _cpu(account, door, ask, 16, sizes.requests, sizes, clock)
    alone, alone_cpu_s = await _cpu(account, door, ask, 1, sizes.requests_alone, sizes, clock)
    door, account = pair.tokens, Account(pair.tokens.pid)
    ask = _request(door, max_tokens=sizes.stream_tokens, stream=True)
    await _lap(door, ask, 8, 8, sizes, clock)
    streams, streams_cpu_s = await _cpu(account, door, ask, 32, sizes.streams, sizes, clock)
    lone, lone_cpu_s = await _cpu(account, door, ask, 1, sizes.streams_alone, sizes, clock)
    firsts = [await _first_tokens(door, upstreams.tokens, way, sizes, clock) for way in _WAYS]
    return Figures(
        start_s=pair.whole.start_s,
        memory_bytes=pair.idle_bytes,
        memory_after_bytes=account.memory_bytes(),
        cpu_ms_per_request=1000 * cpu_s / busy.answers,
        cpu_ms_per_request_alone=1000 * alone_cpu_s / alone.answers,
        requests_per_s=busy.answers / busy.seconds,
        cpu_ms_per_chunk=1000 * streams_cpu_s / streams.chunks,
        cpu_ms_per_chunk_alone=1000 * lone_cpu_s / lone.chunks,
        added_ttft_p50_ms=firsts[0].added_ms,
        added_ttft_p50_ms_at_32=firsts[1].added_ms,
        added_ttft_p50_ms_in_a_burst=firsts[2].added_ms,
        direct_ttft_p50_ms=firsts[0].direct_ms,
        direct_ttft_p50_ms_at_32=firsts[1].direct_ms,
        direct_ttft_p50_ms_in_a_burst=firsts[2].direct_ms,
        load_busy=max(
            *(lap.own_cpu_s / lap.seconds for lap in (busy, alone, streams, lone)), *(f.busy for f in firsts)
        ),
        num_requests=busy.answers,
        num_requests_alone=alone.answers,
        num_chunks=streams.chunks,
        num_chunks_alone=lone.chunks,
        open_streams=None,
    )


async def hold_open(door: Door, sizes: Sizes, clock: Clock) -> OpenStreams:
    """Open so many streams, wait until all of them have got a token, look, and leave."""
    account = Account(door.pid)
    request = _request(door, max_tokens=100_000, stream=True)
    before = account.memory_bytes()
    lanes: list[Lane] = []
    try:
        while len(lanes) < sizes.open_streams:
            more = min(_OPENING, sizes.open_streams - len(lanes))
            opened = await asyncio.gather(*(connect(door.host, door.port, clock) for _ in range(more)))
            for lane in opened:
                lane.ask(request)
            lanes += opened
            await asyncio.sleep(0.01)
        deadline = clock.now() + 60.0
        while clock.now() < deadline and any(lane.first_token_at is None and not lane.closed for lane in lanes):
            await asyncio.sleep(0.1)
        frames = [lane.frames for lane in lanes]
        await asyncio.sleep(sizes.open_hold_s)
        alive = sum(lane.frames > was and not lane.closed for lane, was in zip(lanes, frames, strict=True))
        memory = account.memory_bytes()
    finally:
        for lane in lanes:
            lane.close()
    return OpenStreams(
        count=len(lanes), alive=alive, memory_bytes=memory, bytes_per_stream=(memory - before) // len(lanes)
    )


def median_of(runs: Sequence[Figures]) -> Figures:
    """Figure by figure; open streams are of the run that held them."""
    names = [name for name in Figures.__struct_fields__ if name != "open_streams"]
    middle = {name: statistics.median(getattr(run, name) for run in runs) for name in names}
    opened = next((run.open_streams for run in runs if run.open_streams is not None), None)
    whole = {name: int(middle[name]) for name in names if isinstance(getattr(runs[0], name), int)}
    return Figures(**{**middle, **whole}, open_streams=opened)


def _request(door: Door, *, max_tokens: int, stream: bool) -> bytes:
    return chat_request(PATH, door.model, _PROMPT, max_tokens=max_tokens, stream=stream, key=door.key)


async def _lap(door: Door, request: bytes, lanes: int, requests: int, sizes: Sizes, clock: Clock) -> Lap:
    return await _whole(Load(door.host, door.port, request, lanes, requests, within_s=sizes.lap_s), clock)


async def _whole(load: Load, clock: Clock) -> Lap:
    lap = await run(load, clock)
    if lap.failures:
        message = f"{lap.failures} of {load.requests} requests got no whole answer with status 200."
        raise Problem("endpoint_error", message)
    return lap


async def _cpu(
    account: Account, door: Door, request: bytes, lanes: int, requests: int, sizes: Sizes, clock: Clock
) -> tuple[Lap, float]:
    before = account.cpu_s()
    lap = await _lap(door, request, lanes, requests, sizes, clock)
    return lap, account.cpu_s() - before


class _FirstTokens(NamedTuple):
    direct_ms: float
    added_ms: float
    busy: float


async def _first_tokens(door: Door, upstream: Door, way: _Way, sizes: Sizes, clock: Clock) -> _FirstTokens:
    """Through the gateway and without it in turns, so that a noisy machine disturbs both."""
    through: list[float] = []
    direct: list[float] = []
    busy = 0.0
    for _ in range(_ROUNDS):
        for place, times in ((upstream, direct), (door, through)):
            request = _request(place, max_tokens=way.tokens, stream=True)
            requests = max(sizes.first_tokens // _ROUNDS, 2 * way.lanes if way.lanes > 1 else 1)
            load = Load(place.host, place.port, request, way.lanes, requests, way.spread_s, sizes.lap_s)
            lap = await _whole(load, clock)
            times.extend(lap.first_token_s)
            busy = max(busy, lap.own_cpu_s / lap.seconds)
    direct_ms = 1000 * statistics.median(direct)
    return _FirstTokens(direct_ms, 1000 * statistics.median(through) - direct_ms, busy)
