"""Whom the listeners answer, and where.

In: settings; out: the same in words, as a TLS context, as a verifier of tokens, as an address.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.asgi.tls import server_context
from penstock.cluster.listen import is_loopback
from penstock.config.issuers import Issuer
from penstock.config.settings import ServeSettings

if TYPE_CHECKING:
    from penstock.tokens.verify import TokenVerifier

OPEN = "is open: no key exists, and everybody who reaches it is answered; penstock keys create closes it"
CLOSED = "asks for keys"
CLOSED_WITHOUT_KEYS = "asks for keys, and none exists yet; penstock keys create makes one"


def access_of(settings: ServeSettings, has_keys: bool) -> str:
    """Who is answered on the data listener, in words."""
    if has_keys or settings.issuers:
        return CLOSED
    return OPEN if is_open_without_keys(settings, settings.host) else CLOSED_WITHOUT_KEYS


def is_open_without_keys(settings: ServeSettings, host: str) -> bool:
    """Whether a listener on ``host`` answers everybody while there is no key."""
    # Behind a proxy everybody comes from loopback.
    return settings.insecure_no_auth or (is_loopback(host) and not settings.trusted_proxies)


def tls_of(settings: ServeSettings) -> ssl.SSLContext | None:
    """What both listeners show.  Raises ``Problem`` ``invalid_setting`` for a certificate that does not do."""
    return server_context(Path(settings.tls_cert), Path(settings.tls_key)) if settings.tls_cert else None


def tokens_of(issuers: tuple[Issuer, ...]) -> tuple[TokenVerifier | None, list[Coroutine[Any, Any, None]]]:
    """Who verifies tokens, and what keeps fetching the issuers' keys; nobody where there are no issuers."""
    if not issuers:
        return None, []
    from penstock.tokens.jwks import KeySet, source_of
    from penstock.tokens.verify import TokenVerifier

    key_sets = [KeySet(issuer) for issuer in issuers]
    return TokenVerifier(key_sets, time.time), [keys.keep(source_of(keys.issuer.jwks)) for keys in key_sets]


def url_of(listener: socket.socket, host: str, *, is_tls: bool = False) -> str:
    """Where this machine reaches ``listener``."""
    address, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, host)
    return f"{'https' if is_tls else 'http'}://{f'[{shown}]' if ':' in shown else shown}:{port}"
