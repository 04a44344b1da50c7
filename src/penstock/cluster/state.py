"""The service as the admin listener, ``penstock ps`` and the progress display show it.

In: nothing; out: types.  The controller fills them in, other processes read them as JSON.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.config.desired import DesiredState
from penstock.wire.load import Load

Stage = Literal["serving", "draining", "stopping", "stopped"]


class MemberState(msgspec.Struct, frozen=True, kw_only=True):
    """One process.  ``model``: which one an engine serves."""

    id: str
    kind: str
    phase: str
    why: str
    pid: int | None
    restarts: int
    load: Load | None
    model: str = ""


class ServiceState(msgspec.Struct, frozen=True, kw_only=True):
    """The whole service.  ``ready``: a gateway and at least one engine serve, and requests are admitted.

    ``access``: in words, who is answered on the data listener.  ``unpriced``: served models without a price today.
    """

    stage: Stage
    ready: bool
    desired: DesiredState
    members: list[MemberState]
    access: str = ""
    unpriced: list[str] = []
