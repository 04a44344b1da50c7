"""Truthful ends: whatever happens behind the endpoint, an answer is whole or says that it is not."""

from __future__ import annotations

from typing import Any

from penstock.conformance.check import Check, answered, demand, error_of, hides_internals
from penstock.conformance.endpoint import Endpoint
from penstock.conformance.stream import Stream, read_stream

_TOKENS = 40


async def a_cut_stream_is_told(endpoint: Endpoint) -> str:
    return _survived_or_told(await _stream(endpoint))


async def a_cut_answer_is_told(endpoint: Endpoint) -> str:
    reply = await endpoint.chat(max_tokens=_TOKENS)
    if reply.status == 200:
        usage = answered(reply).get("usage") or {}
        demand(usage.get("completion_tokens") == _TOKENS, f"a part of the answer passes for the whole: {usage}")
        return "it was made whole"
    demand(reply.status >= 500, f"the answer is {reply}")
    error_of(reply)
    return f"told with {reply.status}"


async def a_failed_stream_is_told(endpoint: Endpoint) -> str:
    stream = await _stream(endpoint)
    if stream.reply.status == 200:
        demand(stream.error is not None, f"no error is said in-band; the body's end is: {stream.reply.end}")
    return _survived_or_told(stream)


async def a_gone_upstream_is_told(endpoint: Endpoint) -> str:
    reply = await endpoint.chat(max_tokens=_TOKENS)
    demand(reply.status in (500, 502, 503, 504), f"the answer is {reply}")
    error_of(reply)
    hides_internals(reply.body)
    return f"told with {reply.status}"


async def _stream(endpoint: Endpoint) -> Stream:
    return read_stream(await endpoint.chat(stream=True, max_tokens=_TOKENS, stream_options={"include_usage": True}))


def _survived_or_told(stream: Stream) -> str:
    """``NotTrue`` where a stream that lost its upstream looks like one that ended well."""
    reply = stream.reply
    if reply.status != 200:
        demand(reply.status >= 500, f"the answer is {reply}")
        error_of(reply)
        return f"told with {reply.status}"
    if stream.error is None and stream.is_done:
        usage: dict[str, Any] = next((chunk["usage"] for chunk in stream.chunks if chunk.get("usage")), {})
        demand(usage.get("completion_tokens") == _TOKENS, f"a part of the answer passes for the whole: {usage}")
        demand(len(stream.reasons()) == 1, f"finish reasons are {stream.reasons()}")
        return "it was made whole"
    demand(not stream.reasons(), f"it failed, and says finish_reason {stream.reasons()}")
    if stream.error is None:
        demand(reply.end == "cut", f"it stops without a word, and its body's end is: {reply.end}")
        return "told by the broken connection"
    hides_internals(str(stream.error).encode())
    demand(not stream.is_done, "[DONE] follows the error")
    return f"told in-band, and the body's end is: {reply.end}"


CHECKS = (
    Check(
        "end-cut-stream",
        "A stream whose engine is lost is whole, or says that it is not.",
        a_cut_stream_is_told,
        "breaking",
    ),
    Check("end-cut-answer", "An answer whose engine is lost is whole, or an error.", a_cut_answer_is_told, "breaking"),
    Check(
        "end-failed-stream",
        "A failure in mid-stream is said in-band, without [DONE].",
        a_failed_stream_is_told,
        "failing",
    ),
    Check("end-gone", "An engine that is gone is an error, without its address.", a_gone_upstream_is_told, "crashing"),
)
