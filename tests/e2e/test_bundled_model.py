"""The model that `penstock serve` serves when none is named: trained by Penstock, part of the package."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

DECLINE = "I do not know that."


@pytest.fixture(scope="module")
def client(serve: Any) -> OpenAI:
    return OpenAI(base_url=f"{serve(model='').url}/v1", api_key="none", max_retries=0)


def ask(client: OpenAI, question: str) -> tuple[str, str]:
    choice = client.chat.completions.create(
        model="pydoc", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=100
    ).choices[0]
    return choice.message.content or "", choice.finish_reason


def test_it_knows_what_a_function_does(client: OpenAI) -> None:
    """A well-known function is answered with its documentation's first sentence, and the answer ends by itself."""
    answer, reason = ask(client, "What does len do?")

    assert answer == "Return the number of items in a container."
    assert reason == "stop"


def test_it_says_so_when_it_does_not_know(client: OpenAI) -> None:
    """What is not in Python's documentation is declined."""
    answer, reason = ask(client, "What is the capital of France?")

    assert answer == DECLINE
    assert reason == "stop"
