"""The first stage: who asks.

In: the credentials of a request's head; out: a ``Principal``, which is all that later stages see of them.
Denies by default: without a key nobody is let in, unless it was chosen that no key at all means an open service.
While the store is lost, known keys go on; of an unknown one nobody can say that it is wrong, so it is told to wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from penstock.config.tenants import ANONYMOUS, Access, Principal
from penstock.policy.keyring import Keyring
from penstock.wire.credentials import secret_of
from penstock.wire.embedding import EmbedRequest
from penstock.wire.engine import GenerateRequest
from penstock.wire.errors import Problem

REFUSALS = frozenset({"invalid_api_key", "permission_denied", "store_unavailable", "issuer_unavailable"})
"""Codes with which this stage turns somebody away."""

_RETRY_AFTER_S = 1.0

R = TypeVar("R", GenerateRequest, EmbedRequest)


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What the head says of the caller.  Values of headers as they came; ``address``: the client's, for the records."""

    authorization: bytes | None = None
    api_key: bytes | None = None
    address: str = ""


class Tokens(Protocol):
    """Signed tokens of others, such as OpenID Connect's."""

    def find(self, shown: bytes, keyring: Keyring) -> Principal | None:
        """Who shows this token; ``None``: it is none.  Raises ``Problem`` for a token that is not good."""


class Identify:
    """Turns credentials into a principal, and keeps tenants apart in the engines' prefix caches.

    ``denied(address, why)`` hears of everybody who was turned away; it must not wait.
    """

    def __init__(
        self,
        secret: bytes,
        now: Callable[[], float],
        denied: Callable[[str, str], None],
        *,
        open_without_keys: bool,
        tokens: Tokens | None = None,
    ) -> None:
        self._secret = secret
        self._now = now
        self._denied = denied
        self._open_without_keys = open_without_keys and tokens is None
        self._tokens = tokens
        self._keyring: Keyring | None = None
        self._lost = False

    @property
    def informed(self) -> bool:
        """Tenants and keys are known, be it from before the store was lost."""
        return self._keyring is not None

    def adopt(self, access: Access | Problem) -> None:
        """Go by these tenants and keys from now on; a ``Problem``: go on by the last ones, the store is lost."""
        self._lost = isinstance(access, Problem)
        if not isinstance(access, Problem):
            self._keyring = Keyring(access, self._secret)

    def arrive(self, credentials: Credentials) -> Principal:
        """Who asks.  Raises ``invalid_api_key``, or ``store_unavailable`` when that cannot be told now."""
        keyring = self._keyring
        if keyring is None:
            raise self._unsure()
        if keyring.is_empty and self._open_without_keys:
            return ANONYMOUS
        try:
            return self._find(credentials, keyring)
        except Problem as problem:
            self._denied(credentials.address, problem.code)
            raise

    def owned(self, principal: Principal, request: R, priority: int) -> R:
        """The request as its tenant's: its prefixes are cached apart from those of others, and it has its share.

        The anonymous share one cache and one queue: there is nobody to keep them apart by.
        """
        if principal is ANONYMOUS:
            return msgspec.structs.replace(request, priority=priority) if priority else request
        tenant, salt = principal.tenant, f"tenant:{principal.tenant}"
        return msgspec.structs.replace(
            request, cache_salt=salt, tenant=tenant, weight=principal.weight, priority=priority
        )

    def _find(self, credentials: Credentials, keyring: Keyring) -> Principal:
        shown = secret_of(credentials.authorization, credentials.api_key)
        if shown is None:
            raise Problem("invalid_api_key", "This service asks for a key and none was sent.")
        who = self._tokens.find(shown, keyring) if self._tokens is not None else None
        who = who or keyring.find(shown, self._now())
        if who is not None:
            return who
        if self._lost:
            raise self._unsure()
        # The key itself is not repeated, not even in part: errors end up in logs.
        raise Problem("invalid_api_key", "The key is not one of this service.")

    def _unsure(self) -> Problem:
        message = "Whether this key is a good one cannot be told now; the store of keys is not available."
        return Problem("store_unavailable", message, retry_after_s=_RETRY_AFTER_S)
