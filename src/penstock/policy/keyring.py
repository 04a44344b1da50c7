"""Which principal a shown key makes, by one version of tenants and keys.

In: an ``Access`` and the servers' secret; out: principals, or ``invalid_api_key``.  Built once per version; afterwards
a key costs one HMAC and one look into a dictionary.  Nobody learns from the time it takes how near a guess was: what is
compared is the HMAC, which a guesser cannot aim.
"""

from __future__ import annotations

import hmac
import math

from penstock.config.tenants import Access, Principal
from penstock.policy.rights import principal
from penstock.wire.credentials import digest_of
from penstock.wire.errors import Problem


class Keyring:
    """Immutable.  ``is_empty``: no key was ever made, as opposed to none that still works."""

    def __init__(self, access: Access, server_secret: bytes) -> None:
        self.access = access
        self.tenants = {tenant.name: tenant for tenant in access.tenants}
        self.is_empty = not access.asks_for_keys
        self._secret = server_secret
        self._known: dict[str, tuple[str, float, Principal]] = {}
        for key in access.keys:
            who = principal(key, self.tenants)
            until = math.inf if key.expires_at is None else key.expires_at
            until = until if key.revoked_at is None else -math.inf
            self._known[key.digest] = (key.digest, until, who)
            if key.old_digest:
                self._known[key.old_digest] = (key.old_digest, min(until, key.old_until), who)

    def find(self, shown: bytes, now: float) -> Principal | None:
        """Who shows this secret; ``None``: no key of ours.  Raises ``invalid_api_key`` for one that is over."""
        digest = digest_of(shown, self._secret)
        kept, until, who = self._known.get(digest, ("", 0.0, None))
        if who is None or not hmac.compare_digest(kept, digest):
            return None
        if now >= until:
            raise Problem("invalid_api_key", "This key was revoked, replaced or has expired.")
        return who
