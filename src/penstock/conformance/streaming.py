"""Streams: how they are framed, begun and ended, what they count, and that they come as they are made."""

from __future__ import annotations

import statistics
from typing import Any

from penstock.conformance.answers import usage_adds_up
from penstock.conformance.check import Check, answered, demand, unless_refused
from penstock.conformance.endpoint import Endpoint
from penstock.conformance.stream import Stream, read_stream, streamed

_PACE_S = 0.010
_PLATEAU_S = (0.036, 0.046)
"""Delayed acknowledgements meet Nagle's algorithm: small writes then come in steps of 40 ms."""
_PACED_CHUNKS = 60


async def is_an_event_stream(endpoint: Endpoint) -> str:
    stream = await streamed(endpoint)
    content_type = stream.reply.headers.get("content-type", "")
    demand(content_type.split(";")[0].strip() == "text/event-stream", f"the content type is {content_type!r}")
    encoding = stream.reply.headers.get("content-encoding", "identity")
    demand(encoding == "identity", f"the content encoding is {encoding!r}")
    demand(not stream.wrong, "; ".join(stream.wrong[:3]))
    return f"{len(stream.chunks)} events, {stream.comments} comments"


async def begins_with_the_role(endpoint: Endpoint) -> str:
    first = (await streamed(endpoint)).chunks[0]
    choices = first.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    demand(delta.get("role") == "assistant", f"the first chunk's delta is {delta}")
    return "role assistant"


async def says_why_it_ends(endpoint: Endpoint) -> str:
    stream = await streamed(endpoint)
    reasons = stream.reasons()
    demand(len(reasons) == 1, f"finish reasons are {reasons}")
    demand(stream.choices(0)[-1].get("finish_reason"), f"parts of the choice follow finish_reason {reasons[0]!r}")
    return f"finish_reason {reasons[0]}"


async def ends_with_done(endpoint: Endpoint) -> str:
    stream = await streamed(endpoint)
    demand(stream.is_done, f"the last event is {stream.chunks[-1]}")
    demand(not stream.late, f"{stream.late} events follow [DONE]")
    demand(stream.reply.end == "whole", f"after [DONE] the body's end is: {stream.reply.end}")
    return "[DONE], then the body's end"


async def is_one_answer(endpoint: Endpoint) -> str:
    stream = await streamed(endpoint)
    for name in ("id", "object", "created", "model"):
        values = {str(chunk.get(name)) for chunk in stream.chunks}
        demand(len(values) == 1, f"{name} has {len(values)} values: {sorted(values)[:3]}")
    kind = stream.chunks[0].get("object")
    demand(kind == "chat.completion.chunk", f"object is {kind!r}")
    return f"{len(stream.chunks)} chunks of {stream.chunks[0].get('id')}"


async def shows_usage_last(endpoint: Endpoint) -> str:
    stream = await streamed(endpoint, stream_options={"include_usage": True})
    *before, last = stream.chunks
    demand(last.get("choices") == [], f"the last chunk's choices are {last.get('choices')!r}")
    shown = usage_adds_up(last.get("usage"), most=24)
    for chunk in before:
        demand("usage" in chunk and chunk["usage"] is None, f"usage before the last chunk is {chunk.get('usage', '-')}")
    return f"null {len(before)} times, then {shown}"


async def shows_no_usage_unasked(endpoint: Endpoint) -> str:
    stream = await streamed(endpoint)
    demand(not any(chunk.get("usage") for chunk in stream.chunks), "a chunk carries a usage that nobody asked for")
    demand(all(chunk.get("choices") for chunk in stream.chunks), "a chunk has no choices")
    return "none"


async def says_what_a_plain_answer_says(endpoint: Endpoint) -> str:
    plain = answered(await endpoint.chat(max_tokens=48))
    stream = await streamed(endpoint, max_tokens=48)
    text = plain["choices"][0]["message"].get("content") or ""
    demand(stream.text() == text, f"streamed {stream.text()!r}, plain {text!r}")
    return f"{len(text)} characters, {sum(ord(char) > 127 for char in text)} of them not ASCII"


async def streams_several_choices(endpoint: Endpoint) -> str:
    stream = await streamed(endpoint, what="n: 2", n=2, temperature=1, seed=1)
    indices = {choice.get("index") for chunk in stream.chunks for choice in chunk.get("choices") or []}
    demand(indices == {0, 1}, f"indices are {sorted(map(str, indices))}")
    for index in (0, 1):
        reasons = stream.reasons(index)
        demand(len(reasons) == 1, f"finish reasons of choice {index} are {reasons}")
    return "choices 0 and 1, each with its end"


async def comes_as_it_is_made(endpoint: Endpoint) -> str:
    stream = await _paced(endpoint)
    gaps = [late - early for early, late in zip(stream.times, stream.times[1:], strict=False)]
    steps = sum(_PLATEAU_S[0] <= gap <= _PLATEAU_S[1] for gap in gaps)
    bundled = sum(gap < _PACE_S / 20 for gap in gaps)
    shown = f"median gap {statistics.median(gaps) * 1000:.1f} ms, {steps} of {len(gaps)} of about 40 ms"
    demand(steps <= len(gaps) / 4, shown)
    demand(bundled <= len(gaps) / 2, f"{shown}; {bundled} chunks come together with the one before")
    return shown


async def keeps_alive(endpoint: Endpoint) -> str:
    body = endpoint.chat_body(stream=True)
    async with endpoint.exchange("POST", "/chat/completions", body) as exchange:
        while not exchange.reply.status:
            demand(await exchange.more(endpoint.silence_s), f"no head within {endpoint.silence_s:g} s")
        unless_refused(exchange.reply, "a stream")
        # The role comes at once; what is awaited is a sign of life after it.
        known = len(exchange.reply.pieces)
        begin = exchange.reply.pieces[-1][0] if known else 0.0
        while len(exchange.reply.pieces) < known + 2 and read_stream(exchange.reply).comments == 0:
            num_known = len(exchange.reply.pieces)
            goes_on = await exchange.more(endpoint.silence_s)
            more = goes_on or len(exchange.reply.pieces) > num_known
            demand(more, f"nothing within {endpoint.silence_s:g} s of silence")
        return f"a sign of life after {exchange.reply.pieces[-1][0] - begin:.1f} s"


async def _paced(endpoint: Endpoint) -> Stream:
    body: dict[str, Any] = endpoint.chat_body(stream=True, max_tokens=10_000)
    async with endpoint.exchange("POST", "/chat/completions", body) as exchange:
        while len(read_stream(exchange.reply).chunks) < _PACED_CHUNKS:
            demand(await exchange.more(endpoint.silence_s), f"the stream ends early: {exchange.reply}")
        return read_stream(exchange.reply)


CHECKS = (
    Check("stream-framing", "A stream is text/event-stream; every event is JSON in UTF-8.", is_an_event_stream),
    Check("stream-role", "The first chunk carries the role.", begins_with_the_role),
    Check("stream-reason", "The last part of a choice, and no other, says why it ends.", says_why_it_ends),
    Check("stream-done", "A stream ends with [DONE] and the whole end of its body.", ends_with_done),
    Check("stream-identity", "All chunks have one id, object, created and model.", is_one_answer),
    Check(
        "stream-usage", "With include_usage it is null in all chunks but the last, without choices.", shows_usage_last
    ),
    Check("stream-no-usage", "Without include_usage no chunk carries a usage.", shows_no_usage_unasked),
    Check("stream-text", "A greedy stream says what the plain answer says.", says_what_a_plain_answer_says),
    Check("stream-choices", "With n: 2 both choices stream under their index.", streams_several_choices),
    Check(
        "stream-pace", "Tokens made every 10 ms come singly, and not in steps of 40 ms.", comes_as_it_is_made, "paced"
    ),
    Check("stream-alive", "A long silence is filled with signs of life.", keeps_alive, "silent"),
)
