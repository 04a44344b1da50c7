"""Who shows a JSON Web Token (RFC 7519), by the keys of its issuer.

In: a token and a keyring; out: a principal, ``None`` for what is no token, or a ``Problem`` for one that is not good.
The algorithm is what the issuer's entry and its key allow, never what the token says of itself (RFC 8725).
Verified tokens are remembered by SHA-256 over all of the token, its issuer and its audience, never by a part.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from penstock.config.issuers import Issuer
from penstock.config.tenants import ApiKey, Principal, Rights, Role
from penstock.policy.keyring import Keyring
from penstock.policy.rights import line, principal
from penstock.tokens.jwks import KeySet
from penstock.wire.errors import Problem

_FORM = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_MAX_REMEMBERED = 10_000
_MAX_MODELS = 1000
_RETRY_AFTER_S = 5.0


@dataclass(slots=True)
class _Verified:
    """One good token.  Void once its issuer's keys changed; its principal is one keyring's."""

    keys: KeySet
    generation: int
    claims: dict[str, Any]
    keyring: Keyring | None = None
    who: Principal | None = None


class TokenVerifier:
    """Shared by all requests.  ``now``: seconds since the epoch."""

    def __init__(self, key_sets: Sequence[KeySet], now: Callable[[], float]) -> None:
        self._key_sets = list(key_sets)
        self._now = now
        self._remembered: dict[bytes, _Verified] = {}

    def find(self, shown: bytes, keyring: Keyring) -> Principal | None:
        """Who shows this token.

        Raises ``invalid_api_key``, ``permission_denied`` for a tenant that does not exist, or ``issuer_unavailable``.
        """
        if not _FORM.fullmatch(shown):
            return None
        verified = self._recall(shown)
        if verified is None:
            algorithm, kid, keys = self._choose(shown)
            claims = self._verify(shown, algorithm, kid, keys)
            verified = _Verified(keys, keys.generation, claims)
            self._remember(_fingerprint(shown, keys.issuer), verified)
        issuer = verified.keys.issuer
        _check_times(verified.claims, issuer.leeway_s, self._now())
        if verified.keyring is not keyring:
            verified.who, verified.keyring = _principal(verified.claims, issuer, keyring), keyring
        return verified.who

    def _recall(self, token: bytes) -> _Verified | None:
        for keys in self._key_sets:
            verified = self._remembered.get(_fingerprint(token, keys.issuer))
            if verified is not None and verified.generation == keys.generation:
                return verified
        return None

    def _choose(self, token: bytes) -> tuple[str, str | None, KeySet]:
        """Algorithm, key id and issuer that an unverified token claims, as far as they are allowed."""
        try:
            said = jwt.get_unverified_header(token)
            claims = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _bad("it cannot be read") from None
        algorithm, kid = said.get("alg"), said.get("kid")
        if "crit" in said or not isinstance(algorithm, str) or not isinstance(kid, str | None):
            raise _bad("its header asks for what is not supported")
        audiences = claims.get("aud")
        audiences = audiences if isinstance(audiences, list) else [audiences]
        for keys in self._key_sets:
            entry = keys.issuer
            if claims.get("iss") == entry.issuer and entry.audience in audiences:
                if algorithm not in entry.algorithms:
                    raise _bad("its algorithm is not allowed")
                return algorithm, kid, keys
        raise _bad("its issuer or audience is not one of this service's")

    def _verify(self, token: bytes, algorithm: str, kid: str | None, keys: KeySet) -> dict[str, Any]:
        if keys.generation == 0:
            message = "The keys of this token's issuer are not known yet."
            raise Problem("issuer_unavailable", message, retry_after_s=_RETRY_AFTER_S)
        key = keys.find(kid, algorithm)
        if key is None:
            raise _bad("the key that signed it is not known")
        # Times are checked at every use, below, since a remembered token ages.
        options = {"require": ["exp", "iss", "aud"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        entry = keys.issuer
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=entry.audience,
                issuer=entry.issuer,
                options=options,  # type: ignore[arg-type]
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _bad("its signature or its claims do not hold") from None
        return claims

    def _remember(self, name: bytes, verified: _Verified) -> None:
        self._remembered.pop(name, None)
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.pop(next(iter(self._remembered)))
        self._remembered[name] = verified


def _fingerprint(token: bytes, issuer: Issuer) -> bytes:
    # Lengths between the parts: no two triples make the same bytes.
    parts = [token, issuer.issuer.encode(), issuer.audience.encode()]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()


def _check_times(claims: dict[str, Any], leeway_s: float, now: float) -> None:
    if now >= _seconds(claims["exp"]) + leeway_s:
        raise _bad("it has expired")
    if any(now < _seconds(claims[name]) - leeway_s for name in ("nbf", "iat") if name in claims):
        raise _bad("it is not valid yet")


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad("one of its times is none")
    return float(value)


def _principal(claims: dict[str, Any], issuer: Issuer, keyring: Keyring) -> Principal:
    tenant = _tenant(claims, issuer)
    if tenant is None or not line(tenant, keyring.tenants):
        raise Problem("permission_denied", "This token's tenant is not one of this service's.")
    rights = Rights(role=_role(claims, issuer), models=_models(claims, issuer))
    subject = claims.get("sub")
    id = f"{issuer.issuer}#{subject if isinstance(subject, str) else ''}"[:200]
    return principal(ApiKey(id=id, tenant=tenant, digest="", rights=rights), keyring.tenants)


def _tenant(claims: dict[str, Any], issuer: Issuer) -> str | None:
    if issuer.tenant_claim is None:
        return issuer.tenant
    value = claims.get(issuer.tenant_claim)
    if not isinstance(value, str):
        return None
    return issuer.tenants.get(value) if issuer.tenants else value


def _role(claims: dict[str, Any], issuer: Issuer) -> Role:
    if issuer.role_claim is None:
        return "user"
    named = _words(claims.get(issuer.role_claim))
    return "admin" if any(issuer.roles.get(word) == "admin" for word in named) else "user"


def _models(claims: dict[str, Any], issuer: Issuer) -> frozenset[str] | None:
    """A claim that is missing or strange names no model: absence must not widen what was meant to narrow."""
    return None if issuer.models_claim is None else frozenset(_words(claims.get(issuer.models_claim)))


def _words(value: Any) -> list[str]:
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return [word for word in words[:_MAX_MODELS] if isinstance(word, str)]


def _bad(why: str) -> Problem:
    return Problem("invalid_api_key", f"The token is not good: {why}.")
