"""Whose word about a client's address is believed.

In: networks of proxies, and a request; out: the client's address.  ``x-forwarded-for`` counts only as far as trusted
proxies wrote it: from the right, up to the first address that is none of theirs.  Nothing else is read of a proxy.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from penstock.asgi.server import Scope

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_WITH_PORT = re.compile(r"^(?:\[(?P<six>[^\]]*)\]|(?P<four>[^:]*))(?::\d+)?$")


class TrustedProxies:
    """``networks`` as in 10.0.0.0/8 or 127.0.0.1.  Raises ``ValueError`` for one that is none."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def client(self, scope: Scope) -> str:
        """The client's address; empty where a connection has none."""
        peer = scope.get("client")
        if peer is None:
            return ""
        if not self._networks or not self._trusts(_parsed(peer[0])):
            return str(peer[0])
        client = str(peer[0])
        written = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        for text in reversed(written.decode("latin-1").split(",")):
            address = _parsed(text.strip())
            if address is None:
                break
            client = str(address)
            if not self._trusts(address):
                break
        return client

    def _trusts(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _parsed(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        match = _WITH_PORT.fullmatch(text)
        try:
            address = ipaddress.ip_address((match["six"] or match["four"]) if match else "")
        except ValueError:
            return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
