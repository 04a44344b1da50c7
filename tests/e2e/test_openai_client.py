"""The official client, unmodified, against the real service: every field does what OpenAI says it does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

MODEL = "seeded-1"
BYTE_A = ord("A")
"""In the seeded model, byte b is token b."""
CHAT: list[Any] = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def client(service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def complete(client: OpenAI, prompt: Any = "The quick brown fox", **fields: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **({"max_tokens": 24, "temperature": 0} | fields))


def chat(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=CHAT, **({"max_tokens": 24, "temperature": 0} | fields))


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    """Chat and text, streamed and whole, give the same text, reason and usage."""
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    text = complete(client)
    pieces = list(complete(client, stream=True, stream_options={"include_usage": True}))

    assert chunks[0].choices[0].delta.role == "assistant"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == text.choices[0].text
    assert pieces[-1].usage.prompt_tokens == text.usage.prompt_tokens == len("The quick brown fox")


def test_usage_is_left_out_unless_asked_for(client: OpenAI) -> None:
    """Without stream_options no chunk carries usage."""
    assert all(chunk.usage is None for chunk in chat(client, stream=True))


def test_every_form_of_prompt(client: OpenAI) -> None:
    """Text, token ids, and lists of either are the same prompts; choices come in the order of the prompts."""
    one = complete(client, "AB").choices[0].text
    other = complete(client, "CD").choices[0].text

    assert complete(client, [65, 66]).choices[0].text == one
    assert [choice.text for choice in complete(client, ["AB", "CD"]).choices] == [one, other]
    assert [choice.text for choice in complete(client, [[65, 66], [67, 68]]).choices] == [one, other]


def test_stop_strings_end_the_text_before_them(client: OpenAI) -> None:
    """A stop string taken from the middle of an answer cuts it there, streamed and whole."""
    text = complete(client).choices[0].text
    stop = text[9:12]
    expected = text[: text.index(stop)]

    whole = complete(client, stop=[stop, "never occurs in this text"]).choices[0]
    streamed = list(complete(client, stop=stop, stream=True))

    assert (whole.text, whole.finish_reason) == (expected, "stop")
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected
    assert streamed[-1].choices[0].finish_reason == "stop"


def test_a_seed_decides_and_no_seed_does_not(client: OpenAI) -> None:
    """Equal seeds give equal samples, alone and as one of several choices; without a seed samples differ."""
    hot: dict[str, Any] = {"temperature": 1.5, "max_tokens": 40}
    first, second = (complete(client, seed=11, **hot).choices[0].text for _ in range(2))
    several = complete(client, seed=11, n=3, **hot).choices

    assert first == second == several[0].text
    assert len({choice.text for choice in several}) == 3
    assert [choice.index for choice in several] == [0, 1, 2]
    assert len({complete(client, **hot).choices[0].text for _ in range(3)}) == 3


@pytest.mark.parametrize(
    "fields", [{"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}, {"temperature": 0}]
)
def test_each_way_to_cut_the_tail_ends_in_the_best_token(client: OpenAI, fields: dict[str, Any]) -> None:
    """A tiny top_p, a top_k of one, a min_p of one and temperature zero are all greedy."""
    assert complete(client, **({"temperature": 1.2} | fields)).choices[0].text == complete(client).choices[0].text


def test_penalties_and_biases_move_the_choice(client: OpenAI) -> None:
    """A bias can force or forbid a token; each penalty changes what greedy decoding repeats."""
    plain = complete(client, max_tokens=100).choices[0].text
    forced = complete(client, logit_bias={str(BYTE_A): 100}).choices[0].text
    penalised = complete(client, logit_bias={str(BYTE_A): 100}, frequency_penalty=2.0, max_tokens=200).choices[0].text

    assert forced == "A" * 24
    assert penalised.startswith("A" * 10) and set(penalised) != {"A"}
    for fields in ({"presence_penalty": 2.0}, {"extra_body": {"repetition_penalty": 3.0}}):
        assert complete(client, max_tokens=100, **fields).choices[0].text != plain


@pytest.mark.parametrize("streamed", [False, True])
def test_chat_logprobs(client: OpenAI, streamed: bool) -> None:
    """Each token has its log-probability and as many alternatives as asked for, the best first."""
    answer = chat(client, logprobs=True, top_logprobs=3, stream=streamed, max_tokens=8)
    choices = [chunk.choices[0] for chunk in answer if chunk.choices] if streamed else answer.choices
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]

    assert len(entries) == 8
    for entry in entries:
        values = [top.logprob for top in entry.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert entry.logprob == values[0] <= 0
        assert bytes(entry.bytes).decode(errors="replace") == entry.token


def test_echo_scores_the_prompt(client: OpenAI) -> None:
    """With echo, logprobs and no output, a prompt's own log-probabilities come back: what evaluations ask for."""
    choice = complete(client, "ABCD", echo=True, logprobs=2, max_tokens=0).choices[0]

    assert choice.text == "ABCD"
    assert choice.logprobs.tokens == ["A", "B", "C", "D"]
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
    assert choice.logprobs.text_offset == [0, 1, 2, 3]
    assert [len(top or {}) >= 2 for top in choice.logprobs.top_logprobs] == [False, True, True, True]


def test_echoed_scores_do_not_depend_on_what_is_cached(client: OpenAI) -> None:
    """Scoring a prompt that the prefix cache holds gives the same numbers as the first time."""
    prompt = "a prompt that fills more than one block of the cache, so that it would be found there"
    first, second = (complete(client, prompt, echo=True, logprobs=0, max_tokens=1) for _ in range(2))

    ours, again = (answer.choices[0].logprobs.token_logprobs[1:-1] for answer in (first, second))
    assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(ours, again, strict=True))


def test_a_repeated_prompt_is_read_from_the_cache(client: OpenAI) -> None:
    """Usage says how many prompt tokens were cached, and the answer is the same."""
    prompt = "0123456789" * 12
    first, second = (complete(client, prompt) for _ in range(2))

    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == 96
    assert second.choices[0].text == first.choices[0].text


def test_lengths(client: OpenAI) -> None:
    """max_completion_tokens wins over max_tokens; min_tokens and ignore_eos keep an ending model going."""
    end = {str(256): 100, str(258): 100}

    assert chat(client, max_completion_tokens=3).usage.completion_tokens == 3
    ended = complete(client, logit_bias=end)
    assert (ended.choices[0].finish_reason, ended.choices[0].text) == ("stop", "")
    held = complete(client, logit_bias=end, extra_body={"min_tokens": 5})
    assert (held.choices[0].finish_reason, held.usage.completion_tokens) == ("stop", 6)
    assert complete(client, logit_bias=end, extra_body={"ignore_eos": True}).usage.completion_tokens == 24


def test_models(client: OpenAI) -> None:
    """The served model is listed and can be looked up; another is not found."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other/model")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"max_tokens": 10**5}, "context_length_exceeded", "max_tokens"),
        ({"max_tokens": 10**12}, "invalid_value", "max_tokens"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"stop": 7}, "invalid_type", "stop"),
        ({"logit_bias": {"259": 1}}, None, None),
        ({"extra_body": {"suffix": "x"}}, "unsupported_parameter", "suffix"),
        ({"extra_body": {"no_such_field": 1}}, None, None),
    ],
)
def test_bad_fields(client: OpenAI, fields: dict[str, Any], code: str | None, param: str | None) -> None:
    """A wrong field is a 400 that names it; an unknown one is ignored."""
    if code is None:
        assert complete(client, **fields).choices[0].text
        return
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **fields)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    ],
)
def test_what_comes_later_says_so(client: OpenAI, fields: dict[str, Any]) -> None:
    """Tools that the model cannot call are refused by name, never ignored."""
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **fields)
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param in fields


def test_a_model_that_knows_no_calls_can_be_made_to_call(client: OpenAI) -> None:
    """A babbling model whose template says nothing of tools makes a valid call where one is required."""
    parameters = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": parameters | {"additionalProperties": False}}}
    ]
    for streamed in (False, True):
        answer = chat(client, tools=tools, tool_choice="required", max_tokens=200, stream=streamed)
        choices = [c.choices[0].delta for c in answer if c.choices] if streamed else [answer.choices[0].message]
        calls = [call for choice in choices for call in choice.tool_calls or []]
        names = {call.function.name for call in calls} - {None}
        assert names == {"f"}
        assert "".join(call.function.arguments or "" for call in calls).count('"n"') >= 1


def test_a_prompt_beyond_the_context_names_both_numbers(client: OpenAI) -> None:
    """The refusal says how long the prompt is and how much there is room for."""
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, "x" * 3000)
    assert caught.value.code == "context_length_exceeded"
    assert "3000" in caught.value.message and "2048" in caught.value.message
