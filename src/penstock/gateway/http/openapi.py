"""The OpenAPI 3.1 document of the data listener, from the types that its bodies are decoded into and encoded from.

In: nothing; out: the document as JSON, made once when first asked for.  What the types cannot say, ranges and which
fields go together, is refused with 400 and the field's name.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import msgspec

from penstock import __version__
from penstock.gateway.identify import Credentials
from penstock.wire.openai import chat, chat_answer, completions, completions_answer, embeddings, listing

_REFERENCE = "#/components/schemas/{name}"
_REFUSALS = (400, 401, 403, 404, 408, 413, 415, 429, 431, 502, 503, 507)
"""What a data route answers besides 200; 500 is a bug and not in the document."""


class EmbeddingsAnswer(msgspec.Struct):
    """As ``wire.openai.embeddings.answer`` writes it."""

    object: str
    data: list[embeddings.EmbeddingItem]
    model: str
    usage: embeddings.Usage


class ErrorBody(msgspec.Struct):
    """As ``wire.errors`` writes it."""

    message: str
    type: str
    param: str | None
    code: str


class Error(msgspec.Struct):
    """Every answer that is not 200."""

    error: ErrorBody


class Operation(NamedTuple):
    """``takes`` ``None``: a GET.  ``streams``: it may be answered with events."""

    words: str
    gives: Any
    takes: Any = None
    streams: bool = False


OPERATIONS: dict[str, Operation] = {
    "/v1/chat/completions": Operation("Chat.", chat_answer.Completion, chat.ChatRequest, streams=True),
    "/v1/completions": Operation("Text.", completions_answer.Completion, completions.CompletionRequest, streams=True),
    "/v1/embeddings": Operation("Embeddings.", EmbeddingsAnswer, embeddings.EmbeddingsRequest),
    "/tokenize": Operation("Text to tokens.", listing.TokenizeAnswer, listing.TokenizeBody),
    "/detokenize": Operation("Tokens to text.", listing.DetokenizeAnswer, listing.DetokenizeBody),
    "/v1/models": Operation("The models.", listing.ModelList),
    "/v1/models/{id}": Operation("One model.", listing.ModelCard),
    "/health": Operation("200 while the process answers.", dict[str, str]),
    "/ready": Operation("200 once requests are served.", dict[str, str]),
    "/version": Operation("The version of Penstock.", dict[str, str]),
}


def page(_path: str, _credentials: Credentials) -> bytes:
    """GET /openapi.json"""
    return _document()


@cache
def _document() -> bytes:
    kinds = [kind for operation in OPERATIONS.values() for kind in (operation.takes, operation.gives) if kind]
    schemas, components = msgspec.json.schema_components([*kinds, Error], ref_template=_REFERENCE)
    by_kind = {repr(kind): schema for kind, schema in zip([*kinds, Error], schemas, strict=True)}
    paths = {path: _item(path, operation, by_kind) for path, operation in OPERATIONS.items()}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Penstock's data listener", "version": __version__},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"key": []}, {}],
        }
    )


def _item(path: str, operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    content = _json(schemas[repr(operation.gives)])
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    refusal = {"description": "Why not.", "content": _json(schemas[repr(Error)])}
    responses = {"200": {"description": operation.words, "content": content}}
    responses |= {str(status): refusal for status in _REFUSALS}
    described: dict[str, Any] = {"summary": operation.words, "responses": responses}
    if operation.takes is not None:
        described["requestBody"] = {"required": True, "content": _json(schemas[repr(operation.takes)])}
    if "{id}" in path:
        described["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    return {"get" if operation.takes is None else "post": described}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
