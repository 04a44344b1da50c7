"""The small bodies: the list of models, and text to token ids and back.

In and out: JSON as OpenAI's clients read it; ``/tokenize`` and ``/detokenize`` have the shapes that vLLM gave them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.wire.errors import Problem
from penstock.wire.openai import fields
from penstock.wire.openai.decode import Field, decode_body
from penstock.wire.openai.fields import UNSET
from penstock.wire.openai.messages import Message, engine_messages
from penstock.wire.openai.tools import tools_of
from penstock.wire.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

_encode = msgspec.json.Encoder().encode


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """``max_model_len`` is the context in tokens, ``quantization`` what weights are kept in (``none``: as released);
    null while no replica has told.  ``parent``: the model that this one is a LoRA adapter of.
    """

    id: str
    created: int
    max_model_len: int | None
    quantization: str | None = None
    parent: str | None = None
    object: str = "model"
    owned_by: str = "penstock"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    data: list[ModelCard]
    object: str = "list"


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one of ``prompt`` and ``messages``.  ``model`` may be left out where one model is served."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Field = UNSET


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


class TokenizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    prompt: str


_tokenize_decoder = msgspec.json.Decoder(TokenizeBody)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeBody)


def decode_tokenize(body: bytes) -> TokenizeBody:
    request = decode_body(_tokenize_decoder, body)
    if (request.prompt is None) == (request.messages is None):
        raise Problem("invalid_value", "Exactly one of prompt and messages is needed.", param="prompt")
    return request


def tokenize_request(body: TokenizeBody) -> TokenizeRequest:
    return TokenizeRequest(
        text=body.prompt,
        messages=None if body.messages is None else engine_messages(body.messages),
        add_special_tokens=body.add_special_tokens is not False,
        add_generation_prompt=body.add_generation_prompt is not False,
        template_kwargs=body.chat_template_kwargs or {},
        tools=tools_of(body.tools),
    )


def tokenize_answer(body: TokenizeBody, answer: Tokenized) -> bytes:
    return _encode(
        TokenizeAnswer(
            count=len(answer.token_ids),
            max_model_len=answer.context_tokens,
            tokens=answer.token_ids,
            token_strs=answer.token_texts if body.return_token_strs else None,
        )
    )


def decode_detokenize(body: bytes) -> DetokenizeBody:
    request = decode_body(_detokenize_decoder, body)
    fields.check_token_ids(request.tokens, "tokens")
    return request


def detokenize_request(body: DetokenizeBody) -> DetokenizeRequest:
    return DetokenizeRequest(token_ids=body.tokens)


def detokenize_answer(answer: Detokenized) -> bytes:
    return _encode(DetokenizeAnswer(prompt=answer.text))


def encode_models(cards: list[ModelCard]) -> bytes:
    return _encode(ModelList(data=cards))


def encode_model(card: ModelCard) -> bytes:
    return _encode(card)
