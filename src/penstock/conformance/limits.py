"""Limits: how they stand is in the headers, and who is turned away is told when to come back."""

from __future__ import annotations

import asyncio
import re

from penstock.conformance.check import Check, NotApplicable, demand, error_of
from penstock.conformance.endpoint import Endpoint

_BURST = 12
_DURATION = re.compile(r"(\d+(\.\d+)?(ms|h|m|s|d))+")


async def shows_how_limits_stand(endpoint: Endpoint) -> str:
    reply = await endpoint.chat()
    shown = {name: value for name, value in reply.headers.items() if name.startswith("x-ratelimit-")}
    if not shown:
        raise NotApplicable("no x-ratelimit-* header, so there seems to be no limit")
    units = {name.rsplit("-", 1)[1] for name in shown}
    for unit in units:
        limit, left = (shown.get(f"x-ratelimit-{what}-{unit}", "") for what in ("limit", "remaining"))
        demand(limit.isdigit() and left.isdigit() and int(left) <= int(limit), f"of {unit}: {shown}")
        reset = shown.get(f"x-ratelimit-reset-{unit}", "")
        demand(_DURATION.fullmatch(reset), f"the reset of {unit} is {reset!r}")
    return ", ".join(f"{name.removeprefix('x-ratelimit-')} {value}" for name, value in sorted(shown.items()))


async def says_when_to_come_back(endpoint: Endpoint) -> str:
    replies = await asyncio.gather(*(endpoint.chat(max_tokens=1) for _ in range(_BURST)))
    turned_away = [reply for reply in replies if reply.status in (429, 503)]
    if not turned_away:
        raise NotApplicable(f"{_BURST} requests at once met no limit")
    for reply in turned_away:
        error_of(reply)
        after = reply.headers.get("retry-after", "")
        demand(after.isdigit() and int(after) >= 1, f"retry-after is {after!r} at {reply}")
    return f"{len(turned_away)} of {_BURST} turned away, retry-after {turned_away[0].headers['retry-after']}"


CHECKS = (
    Check("limit-headers", "x-ratelimit-* say limit, what remains and when it is whole again.", shows_how_limits_stand),
    Check("limit-retry", "Who meets a limit gets an error with retry-after in seconds.", says_when_to_come_back),
)
