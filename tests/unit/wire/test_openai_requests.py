"""OpenAI's requests: what is taken, what is refused, and with which field's name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire.engine import ToolUse
from penstock.wire.errors import Problem
from penstock.wire.openai import chat, completions, fields, listing

HELLO = [{"role": "user", "content": "hi"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def tool(name):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def chat_requests(**changes):
    request = chat.decode(json.dumps({"model": "m", "messages": HELLO} | changes).encode())
    return chat.engine_requests(request, "id", drawn_seed=77)


def text_requests(**changes):
    request = completions.decode(json.dumps({"model": "m", "prompt": "hi"} | changes).encode())
    return completions.engine_requests(request, "id", drawn_seed=77)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"temperature": 2.5}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"top_k": -2}, "invalid_value", "top_k"),
        ({"min_p": -0.1}, "invalid_value", "min_p"),
        ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
        ({"repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 129}, "invalid_value", "n"),
        ({"n": True}, "invalid_type", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"max_tokens": 10**30}, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": -1, "max_tokens": 4}, "invalid_value", "max_completion_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, "invalid_value", "min_tokens"),
        ({"seed": 2**64}, "invalid_value", "seed"),
        ({"stop": ["a"] * 17}, "invalid_value", "stop"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"stop": ["x" * 600]}, "invalid_value", "stop"),
        ({"stop": [1]}, "invalid_type", "stop[0]"),
        ({"stop_token_ids": [-1]}, "invalid_value", "stop_token_ids[0]"),
        ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"²": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"1": 101}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"1": "a"}}, "invalid_type", "logit_bias"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"logprobs": 1}, "invalid_type", "logprobs"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": [{"content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_value", "messages[0].content"),
        ({"messages": [{"role": "function", "content": "x"}]}, "unsupported_parameter", "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "tool_call_id": "1"}]}, "invalid_value", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
            "invalid_value",
            "messages[0].tool_calls",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}]},
            "unsupported_parameter",
            "messages[0].tool_calls[0].type",
        ),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
            "unsupported_parameter",
            "messages[0].function_call",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "unsupported_parameter",
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "invalid_value",
            "messages[0].tool_calls[0].function",
        ),
        ({"tools": [{}]}, "invalid_type", "tools"),
        ({"tools": {}}, "invalid_type", "tools"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "invalid_value", "tools[0].function"),
        ({"tools": [tool("a b")]}, "invalid_value", "tools[0].function.name"),
        ({"tools": [tool("f"), tool("f")]}, "invalid_value", "tools[1].function.name"),
        ({"tools": [tool(f"f{i}") for i in range(513)]}, "invalid_value", "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "invalid_type", "tools"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [tool("f")], "tool_choice": "any"}, "invalid_value", "tool_choice"),
        ({"tools": [tool("f")], "tool_choice": 1}, "invalid_type", "tool_choice"),
        (
            {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "invalid_value",
            "tool_choice",
        ),
        (
            {"tools": [tool("f")], "tool_choice": {"type": "allowed_tools", "function": {"name": "f"}}},
            "unsupported_parameter",
            "tool_choice.type",
        ),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
        ({"function_call": {"name": "f"}}, "unsupported_parameter", "function_call"),
        ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities"),
        ({"reasoning_effort": "some"}, "invalid_value", "reasoning_effort"),
        ({"reasoning_effort": 5}, "invalid_type", "reasoning_effort"),
        ({"thinking": {"type": "maybe"}}, "invalid_value", "thinking.type"),
        ({"enable_thinking": "yes"}, "invalid_type", "enable_thinking"),
        ({"model": None}, "invalid_type", "model"),
    ],
)
def test_refused_in_chat(changes, code, param) -> None:
    """Every value out of its range, of a wrong type or not acted on is refused by its name."""
    with pytest.raises(Problem) as caught:
        chat_requests(**changes)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize("raw", [b"1e400", b"9" * 5000, b'"\xff\xfe"', b'{"a": [1e400]}'])
def test_an_unsupported_field_that_cannot_be_read(raw: bytes) -> None:
    """A field that is skipped unseen is the caller's mistake when what it holds cannot be read."""
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "functions": ' + raw + b"}"
    with pytest.raises(Problem) as caught:
        chat.decode(body)
    assert (caught.value.code, caught.value.param) == ("invalid_value", "functions")


@pytest.mark.parametrize("raw", [b"1e400", b"9" * 5000, b'"\xff\xfe"', b'[{"type": "function", "x": 1e400}]'])
def test_tools_that_cannot_be_read(raw: bytes) -> None:
    """What is no tool, or cannot be passed on, is refused by its name."""
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": ' + raw + b"}"
    with pytest.raises(Problem) as caught:
        chat.engine_requests(chat.decode(body), "id", 1)
    assert (caught.value.param or "").startswith("tools")


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": [[]]}, "invalid_value", "prompt[0]"),
        ({"prompt": ["a", 1]}, "invalid_type", "prompt[1]"),
        ({"prompt": [1, [2]]}, "invalid_type", "prompt[1]"),
        ({"prompt": [-1]}, "invalid_value", "prompt[0]"),
        ({"prompt": [[1], [10**12]]}, "invalid_value", "prompt[1][0]"),
        ({"prompt": None}, "invalid_type", "prompt"),
        ({"prompt": ["a"] * 100, "n": 6}, "invalid_value", "prompt"),
        ({"logprobs": 21}, "invalid_value", "logprobs"),
        ({"best_of": 3, "n": 2}, "unsupported_parameter", "best_of"),
        ({"best_of": 1, "n": 2}, "invalid_value", "best_of"),
        ({"suffix": "x"}, "unsupported_parameter", "suffix"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ],
)
def test_refused_in_completions(changes, code, param) -> None:
    """Text completions refuse what is theirs alone as plainly."""
    with pytest.raises(Problem) as caught:
        text_requests(**changes)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_fields_that_ask_for_nothing_are_taken() -> None:
    """Nulls, neutral values and unknown fields change nothing."""
    plain = chat_requests()
    neutral = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "audio": None,
        "temperature": None,
        "stop": None,
        "store": False,
        "metadata": {"a": "b"},
        "user": "u",
        "no_such_field": [1, {"x": None}],
    }
    assert chat_requests(**neutral) == plain


def test_messages_as_templates_take_them() -> None:
    """Text parts are joined, the developer is the system, and unknown members stay outside."""
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "refusal": None},
        {"role": "user", "content": "c", "name": "n"},
    ]
    assert chat_requests(messages=messages)[0].messages == [
        {"role": "system", "content": "a\nb"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "c", "name": "n"},
    ]


@pytest.mark.parametrize(
    ("changes", "kwargs"),
    [
        ({}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low", "enable_thinking": True, "thinking": True}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "enable_thinking": False, "thinking": False}),
        ({"enable_thinking": False}, {"enable_thinking": False, "thinking": False}),
        ({"thinking": {"type": "enabled"}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "adaptive"}}, {}),
        (
            {"reasoning_effort": "high", "enable_thinking": False, "thinking": {"type": "enabled"}},
            {"reasoning_effort": "high", "enable_thinking": False, "thinking": False},
        ),
        (
            {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False, "x": 1}},
            {"reasoning_effort": "high", "enable_thinking": False, "x": 1},
        ),
    ],
)
def test_how_much_to_think_reaches_the_template(changes, kwargs) -> None:
    """Every spelling of the switch becomes the variables that templates read, and the nearer word wins."""
    assert chat_requests(**changes)[0].template_kwargs == kwargs


def test_earlier_reasoning_reaches_the_template() -> None:
    """An assistant's reasoning, by either name, is a member of its message; nobody else's is."""
    messages = [
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        {"role": "assistant", "content": "a", "reasoning": "so"},
        {"role": "user", "content": "b", "reasoning_content": "x"},
    ]
    assert chat_requests(messages=messages)[0].messages == [
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
        {"role": "assistant", "content": "a", "reasoning_content": "so"},
        {"role": "user", "content": "b"},
    ]


def test_calls_and_their_results_reach_the_template() -> None:
    """Arguments become the object they say; the result of a call names it."""
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": [{"type": "text", "text": "42"}]},
    ]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert chat_requests(messages=messages)[0].messages == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "name": "f", "tool_call_id": "1"},
    ]


@pytest.mark.parametrize("text", ["{x: 1}", "[1]", '{"x": NaN}', '{"x": 1e400}', '{"x": "\\ud800"}', "[" * 5000])
def test_arguments_that_are_no_object_stay_text(text: str) -> None:
    """What a model wrote wrongly goes back to it as it was."""
    message = {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": text}}]}
    [request] = chat_requests(messages=[message])
    assert (request.messages or [])[0]["tool_calls"][0]["function"]["arguments"] == text


@pytest.mark.parametrize(
    ("changes", "use"),
    [
        ({}, {}),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"tool_choice": "none"}, None),
        ({"tool_choice": "required"}, {"required": True}),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, {"required": True, "name": "g"}),
        ({"parallel_tool_calls": False}, {"parallel": False}),
    ],
)
def test_which_calls_an_answer_may_have(changes, use) -> None:
    """Every choice has its own key, and with tool_choice none the tools are not even shown."""
    tools = [tool("f"), tool("g") | {"extra": [1]}]
    requests = chat_requests(tools=tools, n=2, **changes)
    expected = [None, None] if use is None else [ToolUse(tools=tools, key=f"id-{i}", **use) for i in range(2)]
    assert [request.tool_use for request in requests] == expected


def test_continuing_a_message_generates_no_prompt() -> None:
    """``continue_final_message`` implies that no new turn is opened, and excludes asking for one."""
    [request] = chat_requests(continue_final_message=True)
    assert (request.continue_final_message, request.add_generation_prompt) == (True, False)
    with pytest.raises(Problem):
        chat_requests(continue_final_message=True, add_generation_prompt=True)


def test_defaults() -> None:
    """Text completions stop at 16 tokens as OpenAI's do, chat goes on to the context; top_k -1 switches it off."""
    assert text_requests()[0].max_tokens == 16
    assert text_requests(max_tokens=0, echo=True)[0].max_tokens == 0
    assert chat_requests()[0].max_tokens is None
    assert chat_requests(top_k=-1)[0].sampling.top_k == 0
    assert chat_requests(max_tokens=5, max_completion_tokens=6)[0].max_tokens == 6


def test_seeds() -> None:
    """Without a seed one is drawn; with one, every prompt draws alike and every choice differs."""
    assert chat_requests()[0].sampling.seed == 77
    drawn = [request.sampling.seed for request in text_requests(prompt=["a", "b"], n=2)]
    assert len(set(drawn)) == 4
    given_seeds = [request.sampling.seed for request in text_requests(prompt=["a", "b"], n=2, seed=5)]
    assert given_seeds[:2] == given_seeds[2:] and given_seeds[0] == 5 != given_seeds[1]
    assert [request.id for request in text_requests(prompt=["a", "b"], n=2)] == ["id-0", "id-1", "id-2", "id-3"]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 511))
def test_derived_seeds_fit_the_protocol(seed: int, choice: int) -> None:
    """A derived seed is the same every time and never negative."""
    assert 0 <= fields.derived_seed(seed, choice) < 2**63
    assert fields.derived_seed(seed, choice) == fields.derived_seed(seed, choice)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_names = sorted({*chat.ChatRequest.__struct_fields__, *completions.CompletionRequest.__struct_fields__})


@given(st.dictionaries(st.sampled_from(_names), _json, max_size=5))
def test_no_body_surprises_the_decoder(body) -> None:
    """Whatever JSON comes in the known fields, the answer is requests or a ``Problem``, never another error."""
    for make in (chat_requests, text_requests):
        try:
            make(**body)
        except Problem:
            continue


@given(st.binary(max_size=60))
def test_no_bytes_surprise_the_decoder(body: bytes) -> None:
    """Whatever bytes come, the answer is a ``Problem``."""
    with pytest.raises(Problem):
        chat.decode(body)


def test_tools_are_tokenised_with_the_messages_they_go_with() -> None:
    """``/tokenize`` counts a prompt with its tools, and refuses what a chat would refuse."""
    body = {"messages": [{"role": "assistant", "tool_calls": [CALL]}], "tools": [tool("f")]}
    request = listing.tokenize_request(listing.decode_tokenize(json.dumps(body).encode()))
    assert request.tools == [tool("f")]
    assert (request.messages or [])[0]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    with pytest.raises(Problem):
        listing.tokenize_request(listing.decode_tokenize(json.dumps(body | {"tools": [{}]}).encode()))
