"""A model that thinks aloud, through the official client: its thinking is apart from its answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from scripted import write_scripted_checkpoint

SCRIPTS = {
    "A": "<think>\nA café: they want one word — “yes”.\n</think>\n\nYes, that is my answer: oui.",
    "B": "No thinking was needed to say this.",
    "\n": "The template had opened this.\n</think>\nAnd then the answer came.",
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\nB"
    "{% else %}{{ messages[-1].content[-1] }}{% if messages[-1].content[-1] == 'C' %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def client(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    directory: Path = tmp_path_factory.mktemp("model") / "thinker"
    directory.mkdir()
    write_scripted_checkpoint(directory, SCRIPTS, TEMPLATE, special=("<think>", "</think>"))
    with OpenAI(base_url=f"{serve(model=str(directory)).url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, letter: str, **fields: Any) -> Any:
    messages: list[Any] = [{"role": "user", "content": f"Say {letter}"}]
    return client.chat.completions.create(model="thinker", messages=messages, max_tokens=200, **fields)


def test_thinking_is_apart(client: OpenAI) -> None:
    """Whole and streamed, reasoning_content holds the thinking and content the answer; usage counts both."""
    whole = ask(client, "A")
    chunks = list(ask(client, "A", stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]

    message = whole.choices[0].message
    assert message.reasoning_content == "A café: they want one word — “yes”."
    assert message.content == "Yes, that is my answer: oui."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert sum(bool(getattr(delta, "reasoning_content", None)) for delta in deltas) > 3
    usage = whole.usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert chunks[-1].usage.completion_tokens_details == usage.completion_tokens_details


def test_the_template_may_open_the_thinking(client: OpenAI) -> None:
    """Where the prompt ends with the opening mark, the model's first word is thinking."""
    message = ask(client, "C").choices[0].message
    assert message.reasoning_content == "The template had opened this."
    assert message.content == "And then the answer came."


def test_a_model_need_not_think(client: OpenAI) -> None:
    """Without thinking, or with thinking switched off in any spelling, there is no reasoning."""
    off: list[dict[str, Any]] = [
        {},
        {"reasoning_effort": "none"},
        {"extra_body": {"enable_thinking": False}},
        {"extra_body": {"thinking": {"type": "disabled"}}},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    ]
    for fields in off:
        answer = ask(client, "A" if fields else "B", **fields)
        assert answer.choices[0].message.content == SCRIPTS["B"]
        assert not hasattr(answer.choices[0].message, "reasoning_content")
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert ask(client, "A", reasoning_effort="high").choices[0].message.reasoning_content


def test_log_probabilities_cover_every_token(client: OpenAI) -> None:
    """Tokens of thinking, marks and answer each have their entry."""
    answer = ask(client, "A", logprobs=True)
    chunks = ask(client, "A", logprobs=True, stream=True)
    streamed = [e for c in chunks if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    entries = answer.choices[0].logprobs.content

    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == SCRIPTS["A"]
    assert len(entries) == answer.usage.completion_tokens - 1, "all but the end token"
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
