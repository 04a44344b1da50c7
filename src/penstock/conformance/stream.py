"""An event stream taken apart: chunks with their times, comments, the end mark, and what does not belong there.

In: a reply's pieces; out: a ``Stream``.  Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock.conformance.check import demand, unless_refused
from penstock.conformance.endpoint import Endpoint, Reply

_LINE_END = re.compile(rb"\r\n|\n|\r")
_FIELDS = (b"event:", b"id:", b"retry:")


@dataclass(slots=True)
class Stream:
    """``wrong``: lines that are no event stream, events that are no object.  ``late``: events after the end mark."""

    reply: Reply
    chunks: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    comments: int = 0
    is_done: bool = False
    late: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def error(self) -> Any:
        """The error that was said in-band, ``None`` without one."""
        return next((chunk["error"] for chunk in self.chunks if chunk.get("error")), None)

    def choices(self, index: int) -> list[dict[str, Any]]:
        """Every part of one choice."""
        found = [choice for chunk in self.chunks for choice in chunk.get("choices") or [] if isinstance(choice, dict)]
        return [choice for choice in found if choice.get("index") == index]

    def deltas(self, index: int = 0) -> list[dict[str, Any]]:
        return [choice.get("delta") or {} for choice in self.choices(index)]

    def text(self, index: int = 0) -> str:
        return "".join(delta.get("content") or "" for delta in self.deltas(index))

    @property
    def reason(self) -> str | None:
        """The last finish reason of the first choice."""
        return next(iter(self.reasons()[-1:]), None)

    def reasons(self, index: int = 0) -> list[str]:
        """The finish reasons that are set; one, if all is well."""
        return [choice["finish_reason"] for choice in self.choices(index) if choice.get("finish_reason")]


def read_stream(reply: Reply) -> Stream:
    """Take a reply apart; an event counts from the piece that completes it."""
    stream, rest, data = Stream(reply), b"", list[bytes]()
    for at_s, piece in reply.pieces:
        rest += piece
        # A CR at the end may be half of a CRLF.
        lines = _LINE_END.split(rest[:-1] if rest.endswith(b"\r") else rest)
        rest = lines.pop() + (b"\r" if rest.endswith(b"\r") else b"")
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif line.startswith(b":"):
                stream.comments += 1
            elif line and not line.startswith(_FIELDS):
                stream.wrong.append(f"a line that is no field: {line[:80]!r}")
            elif not line and data:
                _take(stream, b"\n".join(data), at_s)
                data.clear()
    if rest.strip() or data:
        stream.wrong.append(f"an event without its end: {(rest or data[0])[:80]!r}")
    return stream


def _take(stream: Stream, data: bytes, at_s: float) -> None:
    if stream.is_done:
        stream.late += 1
        return
    if data == b"[DONE]":
        stream.is_done = True
        return
    try:
        chunk = msgspec.json.decode(data)
        data.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        stream.wrong.append(f"an event that is no JSON in UTF-8 ({error}): {data[:80]!r}")
        return
    if not isinstance(chunk, dict):
        stream.wrong.append(f"an event that is no object: {data[:80]!r}")
        return
    stream.chunks.append(chunk)
    stream.times.append(at_s)


async def streamed(endpoint: Endpoint, what: str = "", **fields: Any) -> Stream:
    """Ask for a stream that has to succeed.  With ``what``: a refusal means that the check does not apply."""
    reply = await endpoint.chat(stream=True, **fields)
    if what:
        unless_refused(reply, what)
    demand(reply.status == 200, f"the answer is {reply}")
    stream = read_stream(reply)
    demand(stream.chunks, f"there is no chunk: {reply}")
    demand(stream.error is None, f"the stream failed: {stream.error}")
    return stream
