"""The headers of limits, named and written as OpenAI's API has them.

In: how a rule stands; out: ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``.
Of several limits on one unit the one with least left is shown.
"""

from __future__ import annotations

import math
from functools import cache

from penstock.asgi.respond import Header
from penstock.config.tenants import Unit
from penstock.policy.limit import Standing


def rate_limit_headers(standing: Standing) -> list[Header]:
    """Limit, what remains of it, and in how long it is whole again."""
    limit, remaining, reset = _names(standing.rule.unit)
    return [
        (limit, b"%d" % standing.rule.amount),
        (remaining, b"%d" % standing.left),
        (reset, duration_text(standing.reset_s).encode()),
    ]


@cache
def _names(unit: Unit) -> tuple[bytes, bytes, bytes]:
    return (
        b"x-ratelimit-limit-" + unit.encode(),
        b"x-ratelimit-remaining-" + unit.encode(),
        b"x-ratelimit-reset-" + unit.encode(),
    )


def duration_text(seconds: float) -> str:
    """A duration as OpenAI writes it: ``12ms``, ``1.5s``, ``6m0s``, ``26h3m0s``.  Rounded up to a millisecond."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"
