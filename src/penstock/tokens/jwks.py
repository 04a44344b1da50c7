"""The keys of one issuer (JSON Web Key Set, RFC 7517), fetched beside the requests and never on a request's path.

In: a URL or a file; out: public keys by their ids.  Bounds: size, time, number of keys, how often; no redirects.
Keys that were fetched stay in force while the issuer is away; what it no longer lists ends with the next fetch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import msgspec

from penstock.config.issuers import Issuer

_REGULAR_S = 300.0
_AT_MOST_EVERY_S = 5.0
_TIMEOUT_S = 5.0
_MAX_BYTES = 256 * 1024
_MAX_KEYS = 100
_MIN_RSA_BITS = 2048
_KINDS = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
_log = logging.getLogger(__name__)

Fetch = Callable[[], Awaitable[bytes]]


class KeySet:
    """``generation`` counts the changes, and is 0 until the first keys are known."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.generation = 0
        self._document = b""
        self._keys: list[tuple[str | None, str, Any]] = []
        self._wanted = asyncio.Event()

    def adopt(self, document: bytes) -> None:
        """Take these keys in place of the ones before.  Raises ``ValueError`` for what is no key set."""
        if document == self._document:
            return
        try:
            listed = msgspec.json.decode(document, type=dict[str, Any])["keys"]
            found = [key for key in map(self._key, listed[:_MAX_KEYS]) if key is not None]
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise ValueError(f"not a key set: {error!r}") from None
        self._document, self._keys = document, found
        self.generation += 1

    def find(self, kid: str | None, algorithm: str) -> Any | None:
        """The key with this id and of this algorithm's kind; without an id, the only one of its kind.

        An unknown id makes the next fetch come soon: the issuer may have rotated its keys.
        """
        suiting = [key for id, kind, key in self._keys if kind == algorithm and kid in (id, None)]
        if len(suiting) == 1:
            return suiting[0]
        self._wanted.set()
        return None

    async def keep(self, fetch: Fetch) -> None:
        """Fetch now, regularly, and soon after an unknown key was asked for, but never in close succession."""
        while True:
            self._wanted.clear()
            try:
                self.adopt(await fetch())
            except (OSError, ValueError, TimeoutError) as error:
                _log.warning("the keys of %s were not fetched: %s", self.issuer.issuer, error)
                self._wanted.set()
            await asyncio.sleep(_AT_MOST_EVERY_S)
            try:
                async with asyncio.timeout(_REGULAR_S):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    def _key(self, listed: Any) -> tuple[str | None, str, Any] | None:
        """A key that may verify signatures of an allowed algorithm; whatever else a set lists is passed over."""
        if not isinstance(listed, dict) or listed.get("use", "sig") != "sig":
            return None
        for algorithm in self.issuer.algorithms:
            kind, curve = _KINDS[algorithm]
            if listed.get("kty") != kind or listed.get("crv") != curve or listed.get("alg", algorithm) != algorithm:
                continue
            try:
                key = jwt.PyJWK(listed, algorithm).key
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                return None
            # A set that lists a private key by mistake still verifies with the public part alone.
            key = key.public_key() if hasattr(key, "private_bytes") else key
            if kind == "RSA" and key.key_size < _MIN_RSA_BITS:
                return None
            kid = listed.get("kid")
            return (kid if isinstance(kid, str) else None), algorithm, key
        return None


def source_of(jwks: str) -> Fetch:
    """How to fetch: over HTTP for a URL, else from a file."""

    async def from_file() -> bytes:
        return await asyncio.to_thread(_read, Path(jwks))

    async def from_url() -> bytes:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(jwks, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    raise ValueError(f"the answer was {answer.status}")
                body = bytearray()
                async for part in answer.content.iter_chunked(16 * 1024):
                    body += part
                    if len(body) > _MAX_BYTES:
                        raise ValueError(f"more than {_MAX_BYTES} bytes")
                return bytes(body)
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from None

    return from_url if "://" in jwks else from_file


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        body = file.read(_MAX_BYTES + 1)
    if len(body) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES} bytes")
    return body
