"""Cancelling: whoever goes away is not computed for.  Seen where a mock engine behind the endpoint shows its load."""

from __future__ import annotations

import asyncio

from penstock.conformance.check import Check, NotApplicable, answered, demand
from penstock.conformance.endpoint import Endpoint

_STOPPED_WITHIN_S = 0.3
_STARTED_WITHIN_S = 10.0
_GIVEN_UP_AFTER_S = 5.0
_POLL_S = 0.01


async def a_dropped_stream_stops(endpoint: Endpoint) -> str:
    return await _stops(endpoint, stream=True)


async def a_dropped_call_stops(endpoint: Endpoint) -> str:
    return await _stops(endpoint, stream=False)


async def _stops(endpoint: Endpoint, stream: bool) -> str:
    engine = endpoint.engine
    if engine is None:
        raise NotApplicable("no engine shows its load; --engine names one")
    demand(await _until(engine, running=False, within_s=_STARTED_WITHIN_S), "the engine was busy before")
    body = endpoint.chat_body(stream=stream, max_tokens=10_000)
    async with endpoint.exchange("POST", "/chat/completions", body) as exchange:
        if stream:
            await exchange.more(endpoint.timeout_s)
        demand(await _until(engine, running=True, within_s=_STARTED_WITHIN_S), f"nothing ran: {exchange.reply}")
    now = asyncio.get_running_loop().time
    dropped = now()
    stopped = await _until(engine, running=False, within_s=_GIVEN_UP_AFTER_S)
    took_s = now() - dropped
    demand(stopped, f"the engine still runs {_GIVEN_UP_AFTER_S:g} s after the client left")
    shown = f"the engine stopped after {took_s * 1000:.0f} ms"
    demand(took_s <= _STOPPED_WITHIN_S, shown)
    return shown


async def _until(engine: Endpoint, *, running: bool, within_s: float) -> bool:
    now = asyncio.get_running_loop().time
    begin = now()
    while now() - begin < within_s:
        if (answered(await engine.ask("GET", "/engine/load")).get("running", 0) > 0) == running:
            return True
        await asyncio.sleep(_POLL_S)
    return False


CHECKS = (
    Check(
        "cancel-stream", "300 ms after a client leaves its stream, the engine stops.", a_dropped_stream_stops, "paced"
    ),
    Check(
        "cancel-plain", "300 ms after a client leaves its plain call, the engine stops.", a_dropped_call_stops, "paced"
    ),
)
