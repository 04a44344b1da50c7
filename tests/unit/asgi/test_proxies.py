"""Whose word about a client's address is believed."""

from __future__ import annotations

import pytest

from penstock.asgi.proxies import TrustedProxies

NETWORKS = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")


def client(peer: str | None, *forwarded: str, networks: tuple[str, ...] = NETWORKS) -> str:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    headers += [(b"forwarded", b"for=9.9.9.9"), (b"x-real-ip", b"9.9.9.9"), (b"true-client-ip", b"9.9.9.9")]
    return TrustedProxies(networks).client({"client": None if peer is None else (peer, 1), "headers": headers})


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("8.8.8.8", ("1.1.1.1",), "8.8.8.8"),
        ("127.0.0.1", (), "127.0.0.1"),
        ("127.0.0.1", ("1.1.1.1",), "1.1.1.1"),
        ("127.0.0.1", ("6.6.6.6, 1.1.1.1",), "1.1.1.1"),
        ("127.0.0.1", ("6.6.6.6, 1.1.1.1, 10.2.3.4",), "1.1.1.1"),
        ("127.0.0.1", ("6.6.6.6", "1.1.1.1, 10.2.3.4"), "1.1.1.1"),
        ("127.0.0.1", ("10.1.1.1, 10.2.3.4",), "10.1.1.1"),
        ("127.0.0.1", ("1.1.1.1, nonsense",), "127.0.0.1"),
        ("127.0.0.1", ("1.1.1.1, nonsense, 10.2.3.4",), "10.2.3.4"),
        ("127.0.0.1", ("1.1.1.1:4711",), "1.1.1.1"),
        ("127.0.0.1", ("[2001:db8::1]:4711",), "2001:db8::1"),
        ("127.0.0.1", ("2001:db8::1",), "2001:db8::1"),
        ("::ffff:127.0.0.1", ("1.1.1.1",), "1.1.1.1"),
        ("fd00::1", ("1.1.1.1",), "1.1.1.1"),
        ("127.0.0.1", ("",), "127.0.0.1"),
        ("127.0.0.1", (", ,",), "127.0.0.1"),
        ("127.0.0.1", ("\xff' OR 1=1 --",), "127.0.0.1"),
        (None, ("1.1.1.1",), ""),
    ],
)
def test_only_what_trusted_proxies_wrote_counts(peer, forwarded, found):
    """From the right, up to the first address that is none of theirs; what a client wrote before that is ignored."""
    assert client(peer, *forwarded) == found


def test_without_trusted_proxies_nobody_is_believed():
    """Not even loopback."""
    assert client("127.0.0.1", "1.1.1.1", networks=()) == "127.0.0.1"


@pytest.mark.parametrize("network", ["10.0.0.1/8", "example.com", "", "1.2.3"])
def test_what_is_no_network_is_refused(network):
    """Host bits that are set are a mistake, and names are not resolved."""
    with pytest.raises(ValueError, match=r"network|address|host bits"):
        TrustedProxies([network])
