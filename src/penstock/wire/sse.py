"""Server-sent events as OpenAI's clients read them.

In: one JSON text per event; out: the bytes of the event stream.  Never splits or buffers.
Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import msgspec

from penstock.wire.errors import Problem

CONTENT_TYPE = b"text/event-stream; charset=utf-8"
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def frame(json: bytes) -> bytes:
    """One event.  ``json`` must hold no raw newline, which JSON encoders never write."""
    return b"data: " + json + b"\n\n"


def error_frame(problem: Problem) -> bytes:
    """The in-band error: OpenAI's clients raise ``APIError`` on an event that has an ``error`` member."""
    return frame(_encode(problem.body()))
