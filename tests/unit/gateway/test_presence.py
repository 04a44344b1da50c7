"""Hearing that a client has left."""

from __future__ import annotations

from penstock.gateway.http.presence import Presence


def test_whoever_watches_hears_once_that_the_client_left() -> None:
    """Not before, not after it has stopped watching, and not a second time."""
    presence, heard = Presence(), []
    presence.watch(lambda: heard.append("first"))
    presence.unwatch()
    presence.watch(lambda: heard.append("second"))
    assert not heard
    presence.leave()
    presence.leave()
    assert heard == ["second"]


def test_whoever_watches_too_late_hears_at_once() -> None:
    """A client that left while its body was read is not answered as if it were there."""
    presence, heard = Presence(), []
    presence.leave()
    presence.watch(lambda: heard.append(True))
    assert heard == [True]
