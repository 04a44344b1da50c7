"""What a mock engine says when nothing disturbs it."""

from __future__ import annotations

from penstock.mock.words import text_of, token_of


def answer_of(key: int, num_tokens: int) -> str:
    """The text of an answer of so many tokens."""
    return text_of([token_of(key, position) for position in range(num_tokens)])
