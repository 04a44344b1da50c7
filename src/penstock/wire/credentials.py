"""How a secret looks on the wire, and what is kept of it.

In: headers, random bytes; out: secrets, and their digests under a key that only the servers have.
A digest alone opens nothing: it is neither a secret nor computable without the server's.
"""

from __future__ import annotations

import base64
import hmac

from penstock.wire.errors import Problem

SECRET_BYTES = 32
_PREFIX = "pk-"
_MAX_BYTES = 16 * 1024
"""Longer than any token; a longer header is not worth hashing."""
_BEARER = b"bearer "


def new_secret(entropy: bytes) -> str:
    """An API key's secret from :data:`SECRET_BYTES` random bytes."""
    assert len(entropy) == SECRET_BYTES
    return _PREFIX + base64.urlsafe_b64encode(entropy).rstrip(b"=").decode()


def digest_of(secret: bytes, server_secret: bytes) -> str:
    """HMAC-SHA256 (RFC 2104) in hexadecimal."""
    return hmac.digest(server_secret, secret, "sha256").hex()


def secret_of(authorization: bytes | None, api_key: bytes | None) -> bytes | None:
    """What the caller shows: ``Authorization: Bearer`` or ``x-api-key``; ``None``: nothing.

    Raises ``Problem`` ``invalid_api_key`` for another scheme, for two that differ, and for what no secret is.
    """
    shown = None
    if authorization is not None:
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise Problem("invalid_api_key", "The authorization header has to be 'Bearer' and a key.")
        shown = authorization[len(_BEARER) :].strip()
    if api_key is not None:
        if shown is not None and shown != api_key.strip():
            raise Problem("invalid_api_key", "authorization and x-api-key show two different keys.")
        shown = api_key.strip()
    if shown is not None and not 0 < len(shown) <= _MAX_BYTES:
        raise Problem("invalid_api_key", "The key is empty or longer than any key is.")
    return shown
