"""Text to token ids and back, by the tokenizer that only an engine has.

In and out: msgspec structs, one JSON object each; the paths stand with the rest of the protocol in ``wire.engine``.
"""

from __future__ import annotations

from typing import Any

import msgspec


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Text or messages to token ids.  Exactly one of ``text`` and ``messages`` is set; ``tools`` go with messages."""

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    template_kwargs: dict[str, Any] = {}
    tools: list[dict[str, Any]] = []


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids, their texts, and the model's context."""

    token_ids: list[int]
    token_texts: list[str]
    context_tokens: int


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids to text."""

    token_ids: list[int]


class Detokenized(msgspec.Struct, frozen=True, kw_only=True):
    """What they spell."""

    text: str
