"""The engine's events as OpenAI's bodies and streams."""

from __future__ import annotations

import json

import pytest

from penstock.wire.engine import Accepted, CallDelta, Delta, Finished, TokenLogprob, TopLogprob, Usage
from penstock.wire.openai.chat_answer import ChatBody, ChatStream
from penstock.wire.openai.completions_answer import CompletionBody, CompletionStream

ENTRY = TokenLogprob(1, "a", None, [97], [TopLogprob(1, "a", -0.5, [97])])


def frames(data: bytes) -> list:
    assert data.endswith(b"\n\n") or not data
    return [json.loads(frame.removeprefix(b"data: ")) for frame in data.split(b"\n\n") if frame[6:7] == b"{"]


def test_held_text_comes_before_the_reason() -> None:
    """What was held back is its own delta, and the last chunk carries the reason alone."""
    stream = ChatStream("id", "m", 1, 1, include_usage=False)
    chunks = frames(
        stream.push(0, [Accepted(prompt_tokens=1), Finished(reason="stop", usage=Usage(prompt=1), text="x")])
    )
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "x"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)
    assert stream.end() == b"data: [DONE]\n\n"


def test_empty_deltas_are_silent_unless_scored() -> None:
    """A token without text yet makes no chunk, but its log-probability does."""
    stream = ChatStream("id", "m", 1, 1, include_usage=True)
    assert stream.push(0, [Delta(token_ids=[1])]) == b""
    [chunk] = frames(stream.push(0, [Delta(token_ids=[1], logprobs=[ENTRY])]))
    assert chunk["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0
    assert chunk["usage"] is None


def test_reasoning_is_a_field_of_its_own() -> None:
    """Streamed apart from the content; in a body it is left out where there is none."""
    events = [Delta(token_ids=[1], reasoning="hm"), Delta(token_ids=[2], text="a", reasoning="!")]
    end = Finished(reason="stop", usage=Usage(prompt=1, output=2, reasoning=1))
    stream = ChatStream("id", "m", 1, 1, include_usage=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in frames(stream.push(0, [*events, end]))]
    assert deltas == [{"reasoning_content": "hm"}, {"content": "a", "reasoning_content": "!"}, {}]
    assert frames(stream.end())[0]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}

    body = ChatBody("id", "m", 1, 2)
    body.push(0, [*events, end])
    body.push(1, [Delta(token_ids=[2], text="a"), end])
    first, second = (choice["message"] for choice in json.loads(body.body())["choices"])
    assert (first["reasoning_content"], first["content"]) == ("hm!", "a")
    assert "reasoning_content" not in second


def test_calls_stream_and_add_up() -> None:
    """Id, type and name come first, then arguments; in a body they are whole and the content is null."""
    events = [
        Delta(token_ids=[1], tool_calls=[CallDelta(index=0, id="c0", name="f", arguments='{"')]),
        Delta(
            token_ids=[2], tool_calls=[CallDelta(index=0, arguments='x": 1}'), CallDelta(index=1, id="c1", name="g")]
        ),
    ]
    end = Finished(reason="tool_calls", usage=Usage(prompt=1), tool_calls=[CallDelta(index=1, arguments="{}")])
    stream = ChatStream("id", "m", 1, 1, include_usage=False)
    choices = [chunk["choices"][0] for chunk in frames(stream.push(0, [*events, end]))]
    assert [choice["delta"].get("tool_calls") for choice in choices] == [
        [{"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"'}}],
        [
            {"index": 0, "function": {"arguments": 'x": 1}'}},
            {"index": 1, "id": "c1", "type": "function", "function": {"name": "g", "arguments": ""}},
        ],
        [{"index": 1, "function": {"arguments": "{}"}}],
        None,
    ]
    assert all("content" not in choice["delta"] for choice in choices)
    assert choices[-1]["finish_reason"] == "tool_calls"

    body = ChatBody("id", "m", 1, 1)
    body.push(0, [*events, end])
    message = json.loads(body.body())["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_usage_counts_a_prompt_once() -> None:
    """Choices of one prompt share its tokens; other prompts add theirs."""
    body = CompletionBody("id", "m", 1, 4, 2)
    for index, prompt in enumerate([3, 3, 5, 5]):
        usage = Usage(prompt=prompt, cached=1, output=2)
        body.push(index, [Accepted(prompt_tokens=prompt), Finished(reason="length", usage=usage)])
    usage = json.loads(body.body())["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (8, 8, 16)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def test_offsets_go_on_over_chunks() -> None:
    """``text_offset`` counts from the choice's beginning, over the echoed prompt and every chunk."""
    stream = CompletionStream("id", "m", 1, 1, 1, include_usage=False)
    first = stream.push(0, [Accepted(prompt_tokens=1, prompt_text="a", prompt_logprobs=[ENTRY])])
    second = stream.push(0, [Delta(token_ids=[1], text="a", logprobs=[ENTRY])])
    offsets = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in frames(first + second)]
    assert offsets == [[0], [1]]


def test_special_characters_stay_one_line() -> None:
    """Newlines and separators in the text never break a frame."""
    text = 'a\n\nb\r\x85\u2028"\\é'
    stream = ChatStream("id", "m", 1, 1, include_usage=False)
    data = stream.push(0, [Delta(token_ids=[1], text=text)])
    assert data.count(b"\n") == 2 and frames(data)[0]["choices"][0]["delta"]["content"] == text
    body = ChatBody("id", "m", 1, 1)
    body.push(0, [Delta(token_ids=[1], text=text), Finished(reason="stop", usage=Usage(prompt=1))])
    assert json.loads(body.body())["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("name", ["m", '","content":"\\u0000"', "é\u2028"])
def test_a_frame_of_text_alone_is_the_whole_frame_with_that_text(name, usage) -> None:
    """What is made beforehand around a text gives the very bytes that encoding the whole chunk gives."""
    for text in ["a", "\0", '"\\', "é\u2028\U0001f600", "\n"]:
        stream = ChatStream("id", name, 1, 2, include_usage=usage)
        alone = stream.push(1, [Delta(token_ids=[1], text=text)])
        with_empty_logprobs = stream.push(1, [Delta(token_ids=[1], text=text, logprobs=[])])
        expected = with_empty_logprobs.replace(b'"logprobs":{"content":[],"refusal":null}', b'"logprobs":null')
        assert alone == expected and alone.startswith(b"data: {")
