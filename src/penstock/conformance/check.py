"""What a check is, and the judgements that several groups share.

In: an endpoint; out: the evidence, or ``NotTrue``, or ``NotApplicable``.  A check never looks at another's findings.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from penstock.conformance.endpoint import Endpoint, Reply

Behind = Literal["any", "paced", "silent", "breaking", "failing", "crashing"]
"""What answers behind the endpoint.  ``any``: something real.  Else a mock engine: ``paced`` says a token every 10 ms
without end, ``silent`` waits long before its first, ``breaking`` cuts the connection after 5 tokens of every attempt,
``failing`` says after 5 that it failed, ``crashing`` ends at its first request."""

T = TypeVar("T")

_SEEDS = (1, 2, 3, 4)
_REFUSALS = frozenset({400, 404, 405, 422, 501})
_INTERNALS = re.compile(
    rb"Traceback|site-packages|\.py\b|\.rs:\d|https?://[^\s\"\\]*:\d|\b(?:localhost|\[::1\]|(?:\d+\.){3}\d+):\d"
    rb"|\b[a-z_]+\.[A-Z]\w*(?:Error|Exception)\b|\bat 0x[0-9a-f]{6}"
    rb"|(?i:litellm|aiohttp|httpx|reqwest|hyper::|pydantic|starlette|serde)"
)
"""Stack traces, source files, addresses with a port, exceptions with their module, names of libraries."""


class NotTrue(Exception):
    """The check failed; the text is the evidence."""


class NotApplicable(Exception):
    """The endpoint does not have what the check is about; the text says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """``truth``: one sentence that is true of an endpoint that passes."""

    name: str
    truth: str
    run: Callable[[Endpoint], Awaitable[str]]
    behind: Behind = "any"


def demand(holds: object, evidence: str) -> None:
    """Raise ``NotTrue`` unless it holds."""
    if not holds:
        raise NotTrue(evidence)


def answered(reply: Reply) -> Any:
    """The JSON of an answer that has to be 200 and whole."""
    demand(reply.status == 200 and reply.end in ("whole", "eof"), f"the answer is {reply}")
    value = reply.json()
    demand(isinstance(value, dict), f"the body is no JSON object: {reply}")
    return value


def unless_refused(reply: Reply, what: str) -> Reply:
    """The reply, unless the endpoint openly says that it does not have this: then the check does not apply."""
    if reply.status in _REFUSALS:
        raise NotApplicable(f"{what} is refused: {reply}")
    return reply


def error_of(reply: Reply) -> dict[str, Any]:
    """The error of a reply with OpenAI's error body; ``NotTrue`` for any other body."""
    value = reply.json()
    error = value.get("error") if isinstance(value, dict) else None
    demand(isinstance(error, dict), f"the body has no error object: {reply}")
    assert isinstance(error, dict)
    demand(isinstance(error.get("message"), str) and error["message"], f"the error has no message: {reply}")
    demand(isinstance(error.get("type"), str), f"the error's type is no text: {reply}")
    for name in ("param", "code"):
        demand(name in error, f"the error has no {name}: {reply}")
        demand(error[name] is None or isinstance(error[name], str), f"{name} is neither text nor null: {reply}")
    return error


async def ending(ask: Callable[[int], Awaitable[T]], reason: Callable[[T], str | None]) -> T:
    """The first answer, of a few seeds, that comes to its own end.  What was cut by its length says nothing."""
    for seed in _SEEDS:
        found = await ask(seed)
        if reason(found) != "length":
            return found
    raise NotApplicable("no answer comes to its end within its tokens")


def hides_internals(text: bytes) -> None:
    """``NotTrue`` where a text for clients shows what is inside."""
    found = _INTERNALS.search(text)
    if found:
        around = text[max(found.start() - 40, 0) : found.end() + 40].decode("utf-8", "replace")
        raise NotTrue(f"it shows {found[0].decode('utf-8', 'replace')!r}: ...{around}...")
