"""The first stage: who asks.

In: the credentials of a request's head; out: a ``Principal``, which is all that later stages see of them.
Where no keys are configured everybody is anonymous.
"""

from __future__ import annotations

import msgspec

from penstock.config.tenants import ANONYMOUS, Principal
from penstock.wire.engine import EmbedRequest, GenerateRequest


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What the head says of the caller.  Values of headers as they came; ``address``: the client's, for the records."""

    authorization: bytes | None = None
    api_key: bytes | None = None
    address: str = ""


class Identify:
    """Turns credentials into a principal, and keeps tenants apart in the engines' prefix caches."""

    def arrive(self, credentials: Credentials) -> Principal:
        return ANONYMOUS

    def salted(self, principal: Principal, requests: list[GenerateRequest]) -> list[GenerateRequest]:
        """The requests with their tenant's salt: what one tenant sent is never a cached prefix of another's."""
        salt = _salt(principal)
        return [msgspec.structs.replace(request, cache_salt=salt) for request in requests] if salt else requests

    def salted_embed(self, principal: Principal, request: EmbedRequest) -> EmbedRequest:
        """As :meth:`salted`."""
        salt = _salt(principal)
        return msgspec.structs.replace(request, cache_salt=salt) if salt else request


def _salt(principal: Principal) -> str:
    # The anonymous share one cache: there is nobody to keep them apart by.
    return f"tenant:{principal.tenant}" if principal is not ANONYMOUS else ""
