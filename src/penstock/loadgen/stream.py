"""The client's side of an OpenAI-compatible stream.  In: bytes as they arrive; out: chunks with what a client needs.

Server-sent events (WHATWG HTML, section 9.2), the part that such servers use: ``data`` lines and comments.
Does no I/O and keeps no text.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.config.settings import KEY_HINT


class TokenDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: TokenDetails | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class ErrorBody(msgspec.Struct):
    """OpenAI's error; some servers give a number as the code, and some none."""

    message: str = ""
    type: str | None = None
    code: str | int | None = None

    def name(self, fallback: str) -> str:
        return str(self.code or self.type or fallback)


class Chunk(msgspec.Struct):
    """One event of a chat or completions stream."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: ErrorBody | None = None

    @property
    def text(self) -> str:
        """The answer's new text, chat or completions; without reasoning."""
        return "".join((choice.delta.content if choice.delta else choice.text) or "" for choice in self.choices)

    @property
    def reasoning(self) -> str:
        return "".join((choice.delta.reasoning_content if choice.delta else None) or "" for choice in self.choices)

    @property
    def finish_reason(self) -> str | None:
        return next((choice.finish_reason for choice in self.choices if choice.finish_reason), None)


class _ErrorReply(msgspec.Struct):
    error: ErrorBody | str


_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_error = msgspec.json.Decoder(_ErrorReply).decode


class ChunkReader:
    """Cuts a byte stream into chunks.  ``done`` turns true at ``[DONE]``; what follows it is ignored."""

    def __init__(self) -> None:
        self.done = False
        self._rest = b""

    def feed(self, data: bytes) -> list[Chunk]:
        """The chunks that ``data`` completes.  Raises ``msgspec.DecodeError`` for anything but JSON in our shape."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        chunks: list[Chunk] = []
        for line in lines:
            if self.done or not line.startswith(b"data:"):
                continue
            payload = line[5:].strip()
            if payload == b"[DONE]":
                self.done = True
            elif payload:
                chunks.append(_decode_chunk(payload))
        return chunks


def error_of(status: int, body: bytes) -> ErrorBody:
    """The error in a reply that is not 200; one made from the status where the body is not OpenAI's."""
    try:
        error = _decode_error(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ErrorBody(message=body[:200].decode("utf-8", "replace"), code=f"http_{status}")
    return ErrorBody(message=error, code=f"http_{status}") if isinstance(error, str) else error


def hint_for(status: int) -> str:
    """What to do about an error reply, where its status alone tells."""
    return KEY_HINT if status == 401 else ""


def headers(api_key: str | None) -> dict[str, str]:
    """The request headers of a streaming client; no compression, which would hold tokens back."""
    fixed = {"content-type": "application/json", "accept": "text/event-stream", "accept-encoding": "identity"}
    return fixed | ({"authorization": f"Bearer {api_key}"} if api_key else {})


def api_base(url: str) -> str:
    """``http://host:port/v1`` for an address given with or without scheme and ``/v1``."""
    base = url.rstrip("/")
    if "://" not in base:
        base = f"http://{base}"
    return base if base.endswith("/v1") else f"{base}/v1"


def encode(body: dict[str, Any]) -> bytes:
    return msgspec.json.encode(body)
