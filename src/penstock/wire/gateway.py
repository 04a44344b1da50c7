"""The gateway's control socket: what the controller asks of a gateway, and what it answers.

In and out: JSON over HTTP on a Unix socket.  Clients never speak it: theirs is the data listener.
"""

from __future__ import annotations

import msgspec

LOAD = "/gateway/load"
METRICS = "/gateway/metrics"


class GatewayLoad(msgspec.Struct, frozen=True, kw_only=True):
    """``version``: the desired state it routes by; ``ready``: it would route a request now."""

    version: int
    in_flight: int
    ready: bool


decode_load = msgspec.json.Decoder(GatewayLoad).decode
