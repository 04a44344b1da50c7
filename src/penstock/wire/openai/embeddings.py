"""Embeddings: OpenAI's request to one engine request, and the engine's vectors to OpenAI's body.

In: a body; out: ``EmbeddingsRequest`` and its ``EmbedRequest``, or a ``Problem`` that names the field.
Source: https://platform.openai.com/docs/api-reference/embeddings.  Nothing is cut: a text that is too long is refused.
"""

from __future__ import annotations

import sys
from array import array
from base64 import b64decode
from typing import Literal

import msgspec

from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.errors import Problem
from penstock.wire.openai import fields
from penstock.wire.openai.decode import decode_body
from penstock.wire.openai.fields import UNSET, Absent

MAX_INPUTS = 2048
_UNSUPPORTED = ("truncate_prompt_tokens", "truncation_side")


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``encoding_format`` is float if left out, as OpenAI has it.  ``user``: as of a completion."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    truncate_prompt_tokens: Absent = UNSET
    truncation_side: Absent = UNSET


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    embedding: str | list[float]
    object: str = "embedding"


_decoder = msgspec.json.Decoder(EmbeddingsRequest)
_encode = msgspec.json.Encoder().encode


def decode(body: bytes) -> EmbeddingsRequest:
    """Decode and check one request body.  Raises ``Problem``."""
    request = decode_body(_decoder, body)
    fields.refuse_unsupported(request, _UNSUPPORTED)
    if request.dimensions is not None and request.dimensions < 1:
        raise Problem("invalid_value", f"dimensions is {request.dimensions}; at least 1 is needed.", param="dimensions")
    if not request.input:
        raise Problem("invalid_value", "input is empty; a text or token ids are needed.", param="input")
    if isinstance(request.input, list):
        _check_items(request.input)
    return request


def _check_items(items: list[str | int | list[int]]) -> None:
    kind = type(items[0])
    if kind is int:
        _check_one_prompt(items)
        return
    if len(items) > MAX_INPUTS:
        message = f"input has {len(items)} items; at most {MAX_INPUTS} are allowed."
        raise Problem("invalid_value", message, param="input")
    for index, item in enumerate(items):
        if type(item) is not kind:
            raise _mixed(index)
        if item == "" or item == []:
            raise Problem("invalid_value", f"input[{index}] is empty.", param=f"input[{index}]")
        if isinstance(item, list):
            fields.check_token_ids(item, f"input[{index}]")


def _check_one_prompt(items: list[str | int | list[int]]) -> None:
    token_ids = [item for item in items if isinstance(item, int)]
    if len(token_ids) < len(items):
        raise _mixed(next(index for index, item in enumerate(items) if not isinstance(item, int)))
    fields.check_token_ids(token_ids, "input")


def _mixed(index: int) -> Problem:
    message = f"input[{index}] is of another kind than input[0]; texts, token ids and lists do not mix."
    return Problem("invalid_type", message, param=f"input[{index}]")


def engine_request(request: EmbeddingsRequest, id: str) -> EmbedRequest:
    items = request.input
    texts = [items] if isinstance(items, str) else [item for item in items if isinstance(item, str)]
    token_ids = None
    if not texts:
        token_ids = [item for item in items if isinstance(item, list)] or [
            [item for item in items if isinstance(item, int)]
        ]
    return EmbedRequest(id=id, texts=texts or None, token_ids=token_ids, num_dimensions=request.dimensions)


def answer(request: EmbeddingsRequest, embedded: Embedded) -> bytes:
    """OpenAI's body.  Item by item: a worker thread that encodes a long list lets the event loop go on in between."""
    is_base64 = request.encoding_format == "base64"
    items = [
        _encode(EmbeddingItem(index=index, embedding=vector if is_base64 else floats(vector)))
        for index, vector in enumerate(embedded.vectors)
    ]
    usage = Usage(prompt_tokens=embedded.prompt_tokens, total_tokens=embedded.prompt_tokens)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (
        b",".join(items),
        _encode(request.model),
        _encode(usage),
    )


def floats(vector: str) -> list[float]:
    """The numbers of a vector in base64 of little-endian float32."""
    numbers = array("f", b64decode(vector))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
