"""Public names in front of the served models: aliases, weights, fallbacks, shadow copies.

In: what somebody wrote in the service's file or sent to the admin API; out: frozen values.
Whether they hold together with one another and with the models is ``policy/names.py``'s to say.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Sticky = Literal["caller", "conversation"]
"""What always falls on the same side of a split: a session, a user or a key; or each conversation by itself."""

Share = Annotated[float, Meta(gt=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=10_000)]


class Shadow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """``share`` of the requests goes to ``model``, too; at most ``max_in_flight`` choices at a time, in each gateway.

    A request for more choices (``n``) than that is never copied.
    """

    model: str
    share: Share = 1.0
    max_in_flight: Count = 8


class Name(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a name stands for.

    ``to``: a model or another name, or several with their weights, of which each caller gets one.
    ``fallbacks``: models or names that are asked in order where that one cannot take the request.
    """

    to: str | dict[str, float]
    fallbacks: tuple[str, ...] = ()
    shadow: Shadow | None = None
    sticky: Sticky = "caller"

    @property
    def weights(self) -> dict[str, float]:
        return {self.to: 1.0} if isinstance(self.to, str) else self.to
