"""Who may do what on the admin listener.

In: a request's head and the role that its route declares; out: the actor, or a ``Problem``.
Decided by the route that was matched, never by the text of a path or of a Host header.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from penstock.asgi.server import Scope
from penstock.config.tenants import ANONYMOUS, Access, Principal, Role
from penstock.policy.keyring import Keyring
from penstock.wire.credentials import secret_of
from penstock.wire.errors import Problem

_PORT = re.compile(r":\d+$")


class Tokens(Protocol):
    """Signed tokens of others; as the gateway's."""

    def find(self, shown: bytes, keyring: Keyring) -> Principal | None: ...


class Guard:
    """``token`` is the operator's: whoever can read the run directory.  The operator's actor is ``None``.

    ``state_is_open``: only this machine reaches the listener, or something else guards it, so that metrics and state
    need no key.  ``open_without_keys``: while there is no key, everybody is the operator; for loopback alone.
    """

    def __init__(
        self,
        secret: bytes,
        token: str,
        now: Callable[[], float],
        *,
        state_is_open: bool,
        open_without_keys: bool,
        tokens: Tokens | None = None,
    ) -> None:
        self.token = token
        self._secret = secret
        self._now = now
        self._state_is_open = state_is_open
        self._open_without_keys = open_without_keys and tokens is None
        self._tokens = tokens
        self._keyring: Keyring | None = None
        self._lost = False

    async def follow(self, news: AsyncIterator[Access | Problem]) -> None:
        async for access in news:
            self.adopt(access)

    def adopt(self, access: Access | Problem) -> None:
        """As ``Identify.adopt`` of the gateway."""
        self._lost = isinstance(access, Problem)
        if not isinstance(access, Problem):
            self._keyring = Keyring(access, self._secret)

    @property
    def has_keys(self) -> bool:
        return self._keyring is None or not self._keyring.is_empty

    def admit(self, scope: Scope, role: Role | None, *, is_state: bool) -> Principal | None:
        """The actor.  ``role`` ``None`` answers anybody; ``is_state``: the route only tells how the service is.

        Raises ``invalid_api_key``, ``permission_denied`` or ``store_unavailable``.
        """
        if role is None or (is_state and self._state_is_open):
            return ANONYMOUS
        headers = scope["headers"]
        shown = secret_of(_header(headers, b"authorization"), _header(headers, b"x-api-key"))
        if shown is not None and hmac.compare_digest(shown, self.token.encode()):
            return None
        if not self.has_keys and self._open_without_keys:
            _check_host(_header(headers, b"host"))
            return None
        if shown is None:
            raise Problem("invalid_api_key", "This listener asks for an administrator's key and none was sent.")
        actor = self._find(shown)
        if actor is None and (self._lost or self._keyring is None):
            raise Problem("store_unavailable", "The store of keys is not available.", retry_after_s=1.0)
        if actor is None:
            raise Problem("invalid_api_key", "The key is not one of this service.")
        if role == "admin" and actor.role != "admin":
            raise Problem("permission_denied", "This key is not an administrator's.")
        return actor

    def _find(self, shown: bytes) -> Principal | None:
        if self._keyring is None:
            return None
        who = self._tokens.find(shown, self._keyring) if self._tokens is not None else None
        return who or self._keyring.find(shown, self._now())


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)


def _check_host(host: bytes | None) -> None:
    """An open listener on loopback answers only to names of this machine.

    A page in a browser can make its own name lead to 127.0.0.1, but the browser then sends that name.
    """
    name = _PORT.sub("", (host or b"").decode("latin-1"))
    if name == "localhost":
        return
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        raise Problem("permission_denied", "Without keys this listener answers to addresses, not to names.") from None
