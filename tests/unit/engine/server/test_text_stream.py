"""The text stream: tokens in, protocol events out, and the same state again when emitted tokens are replayed."""

from __future__ import annotations

import asyncio
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
from penstock.wire.engine import Accepted, Delta, Event, Finished, GenerateRequest, Sampling


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The seeded model's: byte b is token b."""
    directory = Path(tmp_path_factory.mktemp("model")) / "seeded"
    write_seeded_checkpoint(directory)
    return Tokenizer.load(directory)


def stream_of(tokenizer: Tokenizer, **fields: Any) -> TextStream:
    return TextStream(GenerateRequest(id="r", sampling=Sampling(seed=1), text="p", **fields), [112], tokenizer)


def feed(stream: TextStream, text: bytes) -> list[Event]:
    """Push bytes as tokens until the stream wants to stop, then finish as the loop would; all events."""
    for token_id in text:
        if stream.push(token_id, None):
            stream.finish("stop", None, 0)
            break
    else:
        stream.finish("length", None, 0)
    return asyncio.run(stream.drain())


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta | Finished))


def end_of(events: list[Event]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished)
    return last


def test_half_a_character_is_held_back(tokenizer: Tokenizer) -> None:
    """A multi-byte character appears once, whole, with its last byte."""
    events = feed(stream_of(tokenizer), "aé€".encode())

    assert [event.text for event in events if isinstance(event, Delta)] == ["a", "", "é", "", "", "€"]


def test_a_stop_string_across_tokens_is_cut(tokenizer: Tokenizer) -> None:
    """Nothing of a stop string is sent, and the end names it."""
    events = feed(stream_of(tokenizer, stop=["END"]), b"some textEND and more")

    assert text_of(events) == "some text"
    assert (end_of(events).reason, end_of(events).stop) == ("stop", "END")
    assert end_of(events).usage.output == len("some textEND")


def test_text_that_only_looked_like_a_stop_is_sent_at_the_end(tokenizer: Tokenizer) -> None:
    """What was held back for a possible stop string is released when none came."""
    events = feed(stream_of(tokenizer, stop=["END"]), b"the EN")

    assert text_of(events) == "the EN"
    assert end_of(events).reason == "length"


def test_a_stop_string_before_min_tokens_is_text(tokenizer: Tokenizer) -> None:
    """Stop strings count only behind min_tokens."""
    events = feed(stream_of(tokenizer, stop=["a"], min_tokens=3), b"aaaaa")

    assert text_of(events) == "aaa"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.text(max_size=30), st.data())
def test_replaying_emitted_tokens_continues_without_a_seam(tokenizer: Tokenizer, text: str, data: Any) -> None:
    """Cut anywhere, a fresh stream that was given the emitted ids sends exactly the rest."""
    stops = ["ab", "é€", "b\n"]
    raw = text.encode()
    cut = data.draw(st.integers(0, len(raw)))
    whole = feed(stream_of(tokenizer, stop=stops), raw)
    before = stream_of(tokenizer, stop=stops)
    before.accept()
    emitted = []
    for token_id in raw[:cut]:
        emitted.append(token_id)
        if before.push(token_id, None):
            return
    first = [event for event in asyncio.run(before.drain()) if isinstance(event, Delta)]

    after = stream_of(tokenizer, stop=stops, emitted_token_ids=emitted)
    rest = feed(after, raw[cut:])

    assert text_of(list(first)) + text_of(rest) == text_of(whole)
    assert end_of(rest) == Finished(
        reason=end_of(whole).reason, usage=end_of(whole).usage, text=end_of(rest).text, stop=end_of(whole).stop
    )


def test_a_request_cut_right_before_its_end_knows_that_it_had_stopped(tokenizer: Tokenizer) -> None:
    """Replayed tokens that complete a stop string leave nothing to generate."""
    stream = stream_of(tokenizer, stop=["END"], emitted_token_ids=list(b"xEND"))

    assert stream.is_over
    stream.finish("length", None, 0)
    assert end_of(asyncio.run(stream.drain())).reason == "stop"


def test_echo_announces_the_prompt(tokenizer: Tokenizer) -> None:
    """With echo the first event carries the prompt's text."""
    stream = stream_of(tokenizer, echo=True)
    stream.accept()

    (accepted,) = asyncio.run(stream.drain())
    assert accepted == Accepted(prompt_tokens=1, prompt_text="p", prompt_token_ids=[112])


def thinking_stream(tokenizer: Tokenizer, prompt: str = "", **fields: Any) -> TextStream:
    request = GenerateRequest(id="r", sampling=Sampling(seed=1), text="p", **fields)
    answer = AnswerFormat(MARKS["think"]).parser(tokenizer, prompt)
    return TextStream(request, [112], tokenizer, answer)


def reasoning_of(events: list[Event]) -> str:
    return "".join(event.reasoning for event in events if isinstance(event, Delta | Finished))


def test_reasoning_is_apart_and_counted(tokenizer: Tokenizer) -> None:
    """Thinking is its own field, and usage counts its tokens up to the mark that closes it."""
    events = feed(thinking_stream(tokenizer), b"<think>\nhm\n</think>\n\nHi.")

    assert (reasoning_of(events), text_of(events)) == ("hm", "Hi.")
    assert end_of(events).usage.reasoning == len("<think>\nhm\n</think>")
    assert end_of(events).usage.output == len("<think>\nhm\n</think>\n\nHi.")


def test_without_thinking_nothing_counts_as_reasoning(tokenizer: Tokenizer) -> None:
    """A model that may think and does not, or whose prompt has closed the thinking, has none."""
    for prompt in ("", "<think>\n\n</think>\n\n"):
        events = feed(thinking_stream(tokenizer, prompt), b"Hi.")
        assert (reasoning_of(events), text_of(events), end_of(events).usage.reasoning) == ("", "Hi.", 0)


def test_thinking_that_never_ends_is_all_there_is(tokenizer: Tokenizer) -> None:
    """Cut by its length inside the thinking, an answer has no text."""
    events = feed(thinking_stream(tokenizer, "<think>\n"), b"hm, hm")

    assert (reasoning_of(events), text_of(events), end_of(events).usage.reasoning) == ("hm, hm", "", 6)


def test_stop_strings_count_in_thinking_too(tokenizer: Tokenizer) -> None:
    """A stop string ends the output wherever it appears, as it does at other servers."""
    events = feed(thinking_stream(tokenizer, stop=["END"]), b"<think>a END b</think>c")

    assert (reasoning_of(events), text_of(events), end_of(events).stop) == ("a ", "", "END")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(texts_of("<think>", "</think>", "ab", "\n"), st.sampled_from(["", "<think>\n"]), st.data())
def test_a_resumed_answer_has_no_seam_in_its_parts(tokenizer: Tokenizer, text: str, prompt: str, data: Any) -> None:
    """Cut anywhere, a fresh stream given the emitted ids sends the rest of each part, and counts the same."""
    raw = text.encode()
    cut = data.draw(st.integers(0, len(raw)))
    whole = feed(thinking_stream(tokenizer, prompt, stop=["ab"]), raw)
    before = thinking_stream(tokenizer, prompt, stop=["ab"])
    if any(before.push(token_id, None) for token_id in raw[:cut]):
        return
    first = [] if cut == 0 else [event for event in asyncio.run(before.drain()) if isinstance(event, Delta)]
    rest = feed(thinking_stream(tokenizer, prompt, stop=["ab"], emitted_token_ids=list(raw[:cut])), raw[cut:])

    assert reasoning_of([*first]) + reasoning_of(rest) == reasoning_of(whole)
    assert text_of([*first]) + text_of(rest) == text_of(whole)
    assert end_of(rest).usage == end_of(whole).usage
