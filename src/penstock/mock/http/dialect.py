"""In which words a mock engine answers: the engine protocol's lines, or OpenAI's chunks and bodies.

In: events; out: bytes of an HTTP/1.1 response.  OpenAI's dialect is there for gateways that speak no engine protocol,
so that they can be measured against the same engine.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from penstock.mock import words
from penstock.wire import engine as protocol
from penstock.wire import sse

_END = b"0\r\n\r\n"
_LINES_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
_FRAMES_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_DONE = b"data: [DONE]\n\n"
_QUOTED = [msgspec.json.encode(words.piece(token_id)) for token_id in range(words.VOCABULARY)]


class Dialect(Protocol):
    """One response, from its head to its end.  What it answers is written at once; it may be nothing yet."""

    def accepted(self, event: protocol.Accepted) -> bytes: ...

    def token(self, token_id: int) -> bytes:
        """A delta that is one token and its piece."""

    def delta(self, event: protocol.Delta) -> bytes: ...

    def end(self, event: protocol.Finished | protocol.Failed | None) -> bytes:
        """``None``: it ends without saying so."""


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def head(status: int, length: int, content_type: bytes = b"application/json") -> bytes:
    """The head of a response that comes in one piece."""
    return b"HTTP/1.1 %d \r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (status, content_type, length)


class EngineLines:
    """The engine protocol."""

    def accepted(self, event: protocol.Accepted) -> bytes:
        return _LINES_HEAD + chunk(protocol.encode_line(event))

    def token(self, token_id: int) -> bytes:
        return _DELTAS[token_id]

    def delta(self, event: protocol.Delta) -> bytes:
        return chunk(protocol.encode_line(event))

    def end(self, event: protocol.Finished | protocol.Failed | None) -> bytes:
        return _END if event is None else chunk(protocol.encode_line(event)) + _END


class OpenAiStream:
    """Chat completion chunks."""

    def __init__(self, model: str, include_usage: bool) -> None:
        self._start = b'data: {"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1,"model":'
        self._start += msgspec.json.encode(model)
        self._include_usage = include_usage
        self._piece = self._start + b',"choices":[{"index":0,"delta":{"content":'

    def accepted(self, event: protocol.Accepted) -> bytes:
        first = (
            self._start
            + b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
        )
        return _FRAMES_HEAD + chunk(first)

    def token(self, token_id: int) -> bytes:
        return chunk(self._piece + _QUOTED[token_id] + b'},"finish_reason":null}]}\n\n')

    def delta(self, event: protocol.Delta) -> bytes:
        return chunk(self._piece + msgspec.json.encode(event.text) + b'},"finish_reason":null}]}\n\n')

    def end(self, event: protocol.Finished | protocol.Failed | None) -> bytes:
        if not isinstance(event, protocol.Finished):
            return _END if event is None else chunk(sse.error_frame(protocol.problem_of(event))) + _END
        text = self.delta(protocol.Delta(token_ids=[], text=event.text)) if event.text else b""
        reason = b',"choices":[{"index":0,"delta":{},"finish_reason":"%b"}]}\n\n' % event.reason.encode()
        usage = b""
        if self._include_usage:
            usage = self._start + b',"choices":[],"usage":%b}\n\n' % msgspec.json.encode(_usage(event.usage))
        return text + chunk(self._start + reason + usage + _DONE) + _END


class OpenAiBody:
    """One chat completion."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._text: list[str] = []

    def accepted(self, event: protocol.Accepted) -> bytes:
        return b""

    def token(self, token_id: int) -> bytes:
        self._text.append(words.piece(token_id))
        return b""

    def delta(self, event: protocol.Delta) -> bytes:
        self._text.append(event.text)
        return b""

    def end(self, event: protocol.Finished | protocol.Failed | None) -> bytes:
        if not isinstance(event, protocol.Finished):
            problem = protocol.problem_of(event or protocol.Failed(code="engine_lost", message="The script says so."))
            body = msgspec.json.encode(problem.body())
            return head(problem.spec.status, len(body)) + body
        message = {"role": "assistant", "content": "".join(self._text) + event.text}
        completion = {
            "id": "chatcmpl-mock",
            "object": "chat.completion",
            "created": 1,
            "model": self._model,
            "choices": [{"index": 0, "message": message, "finish_reason": event.reason}],
            "usage": _usage(event.usage),
        }
        body = msgspec.json.encode(completion)
        return head(200, len(body)) + body


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Chat(msgspec.Struct):
    messages: list[dict[str, Any]]
    model: str = ""
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    temperature: float | None = None


def openai_request(body: bytes, number: int) -> tuple[protocol.GenerateRequest, Dialect]:
    """A chat request as the engine's own, and how it wants to be answered.  What is not read is ignored."""
    asked = _decode_chat(body)
    request = protocol.GenerateRequest(
        id=f"openai-{number}",
        sampling=protocol.Sampling(seed=asked.seed or 0, temperature=asked.temperature),
        messages=asked.messages,
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
    )
    if not asked.stream:
        return request, OpenAiBody(asked.model)
    include_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    return request, OpenAiStream(asked.model, include_usage)


def _usage(usage: protocol.Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
    }


_decode_chat = msgspec.json.Decoder(_Chat).decode
_DELTAS = [
    chunk(protocol.encode_line(protocol.Delta(token_ids=[token_id], text=words.piece(token_id))))
    for token_id in range(words.VOCABULARY)
]
ENGINE_LINES = EngineLines()
