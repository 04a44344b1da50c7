"""Tool calls in the text stream: deltas as the protocol has them, and no seam when emitted tokens are replayed."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cuts import texts_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seeded import write_seeded_checkpoint

from penstock.engine.server.stream import TextStream
from penstock.text.answer import AnswerFormat
from penstock.text.reasoning import MARKS
from penstock.text.tokenizer import Tokenizer
from penstock.text.tools.registry import LISTED, STYLES
from penstock.wire.engine import CallDelta, Delta, Event, Finished, GenerateRequest, Sampling, ToolUse
from penstock.wire.errors import Problem

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = '<tool_call>{"name": "f", "arguments": {"x": "é"}}</tool_call>'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The seeded model's: byte b is token b."""
    directory = Path(tmp_path_factory.mktemp("model")) / "seeded"
    write_seeded_checkpoint(directory)
    return Tokenizer.load(directory)


def stream_of(tokenizer: Tokenizer, style: str = "hermes", parallel: bool = True, **fields: Any) -> TextStream:
    use = ToolUse(tools=TOOLS, key="r-0", parallel=parallel)
    request = GenerateRequest(id="r", sampling=Sampling(seed=1), text="p", tool_use=use, **fields)
    answers = AnswerFormat(MARKS["think"], (STYLES | {"listed": LISTED})[style])
    parser = answers.parser(tokenizer, "", use=use)
    return TextStream(request, [112], tokenizer, parser, partial(answers.call_id, use))


def feed(stream: TextStream, text: bytes) -> list[Event]:
    """Push bytes as tokens until the stream wants to stop, then finish as the loop would; all events."""
    reason: Any = "length"
    for token_id in text:
        if stream.push(token_id, None):
            reason = "stop"
            break
    stream.finish(reason, None, 0)
    return asyncio.run(stream.drain())


def said(events: list[Event]) -> tuple[str, str, list[CallDelta]]:
    """Text, reasoning and whole calls of some events."""
    text = reasoning = ""
    calls: dict[int, CallDelta] = {}
    for event in events:
        assert isinstance(event, Delta | Finished)
        text += event.text
        reasoning += event.reasoning
        for part in event.tool_calls:
            known = calls.setdefault(part.index, CallDelta(index=part.index))
            calls[part.index] = CallDelta(
                index=part.index,
                id=known.id + part.id,
                name=known.name + part.name,
                arguments=known.arguments + part.arguments,
            )
    return text, reasoning, [calls[index] for index in sorted(calls)]


def end_of(events: list[Event]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished)
    return last


@pytest.mark.parametrize(("stop", "reason"), [("é", "stop"), ('"x": ', "stop"), ("done", "tool_calls")])
def test_a_call_that_a_stop_string_cuts_is_no_reason_to_act(tokenizer: Tokenizer, stop: str, reason: str) -> None:
    """Only whole calls end an output with tool_calls: arguments that a stop string cut end it with stop."""
    events = feed(stream_of(tokenizer, stop=[stop]), f"{CALL} done".encode())
    assert end_of(events).reason == reason
    assert end_of(events).stop == stop


def test_thinking_text_and_calls_are_apart(tokenizer: Tokenizer) -> None:
    """One output, three parts, and calls that end it by its own will give the reason."""
    stream = stream_of(tokenizer)
    for token_id in f"<think>hm</think>\nI look.\n{CALL}".encode():
        assert not stream.push(token_id, None)
    stream.finish("stop", 258, 0)
    events = asyncio.run(stream.drain())

    text, reasoning, [call] = said(events)
    assert (text, reasoning) == ("I look.", "hm")
    assert (call.name, call.arguments, call.id[:5]) == ("f", '{"x": "é"}', "call_")
    assert end_of(events).reason == "tool_calls"


def test_calls_in_thinking_are_thoughts(tokenizer: Tokenizer) -> None:
    """A model that considers a call has not made it."""
    events = feed(stream_of(tokenizer), f"<think>{CALL}</think>No.".encode())

    assert said(events) == ("No.", CALL, [])


def test_an_answer_cut_within_a_call_was_cut(tokenizer: Tokenizer) -> None:
    """The arguments are what there is of them, and the reason is the length."""
    events = feed(stream_of(tokenizer), CALL.encode()[:45])

    [call] = said(events)[2]
    assert call.arguments and '{"x": "é"}'.startswith(call.arguments)
    assert end_of(events).reason == "length"


def test_one_call_ends_the_answer_where_one_is_allowed(tokenizer: Tokenizer) -> None:
    """The engine stops with the call's last brace; replayed, it knows that nothing is left to do."""
    events = feed(stream_of(tokenizer, parallel=False), f"{CALL}{CALL}".encode())

    assert len(said(events)[2]) == 1
    assert (end_of(events).reason, end_of(events).usage.output) == ("tool_calls", len(CALL.encode()) - 12)
    emitted = [event.token_ids[0] for event in events if isinstance(event, Delta)]
    resumed = stream_of(tokenizer, parallel=False, emitted_token_ids=emitted)
    assert resumed.is_over
    resumed.finish("length", None, 0)
    assert end_of(asyncio.run(resumed.drain())).reason == "tool_calls"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.sampled_from([*STYLES, "listed"]),
    texts_of("<think>", "</think>", CALL, CALL[:40], '[TOOL_CALLS]f[ARGS]{"x": 1}', '{"name": "f", "parameters": {}}'),
    st.booleans(),
    st.data(),
)
def test_a_resumed_answer_has_no_seam_in_its_calls(
    tokenizer: Tokenizer, style: str, text: str, parallel: bool, data: Any
) -> None:
    """Cut anywhere, a fresh stream given the emitted ids sends the rest of text, thinking and calls, ids included."""
    raw = text.encode()
    cut = data.draw(st.integers(0, len(raw)))
    make = partial(stream_of, tokenizer, style, parallel, stop=["STOP"])
    whole = feed(make(), raw)
    before = make()
    if any(before.push(token_id, None) for token_id in raw[:cut]):
        return
    first = asyncio.run(before.drain()) if cut else []
    rest = feed(make(emitted_token_ids=list(raw[:cut])), raw[cut:])

    assert said([*first, *rest]) == said(whole)
    assert (end_of(rest).reason, end_of(rest).usage) == (end_of(whole).reason, end_of(whole).usage)


def test_a_model_without_a_style_says_so(tokenizer: Tokenizer) -> None:
    """Tools it cannot call are refused, unless a call is required, or the server was told to leave calls alone."""
    use = ToolUse(tools=TOOLS, key="r")
    with pytest.raises(Problem) as refused:
        AnswerFormat().parser(tokenizer, "", use=use)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")
    assert AnswerFormat(reads_calls=False).parser(tokenizer, "", use=use).push(CALL).text == CALL
    required = ToolUse(tools=TOOLS, key="r", required=True)
    parts = AnswerFormat().parser(tokenizer, "", use=required).push('[{"name": "f", "parameters": {}}]')
    assert [part.name for part in parts.calls] == ["f"]
