"""The gateway's control socket: what the controller asks of a gateway, and what it answers.

In and out: JSON over HTTP on a Unix socket.  Clients never speak it: theirs is the data listener.
"""

from __future__ import annotations

import msgspec

LOAD = "/gateway/load"
METRICS = "/gateway/metrics"
EXPLAIN = "/gateway/explain/"
"""Followed by the id of a request."""


class GatewayLoad(msgspec.Struct, frozen=True, kw_only=True):
    """``version``: the desired state it routes by; ``ready``: it would route a request now."""

    version: int
    in_flight: int
    ready: bool


class ExplainedStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision, ``at_s`` seconds after the request's head.  ``scores``: what each candidate would have cost."""

    at_s: float
    stage: str
    why: str
    scores: dict[str, float] = {}


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway decided about a request, in order."""

    id: str
    request_id: str
    route: str
    model: str
    steps: list[ExplainedStep]


decode_load = msgspec.json.Decoder(GatewayLoad).decode
