"""Hearing that a client has left, and how its answer leaves."""

from __future__ import annotations

import asyncio

from penstock.gateway.http.presence import Presence
from penstock.gateway.http.server import HeadAndBody


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


class Wire:
    """Remembers the writes that reach it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.lost = False

    def is_closing(self) -> bool:
        return self.lost

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.writes.append(b"closed")


async def test_a_head_leaves_with_what_follows_it_at_once() -> None:
    """One write for both; what comes later is written as it comes."""
    wire = Wire()
    transport = HeadAndBody(wire, asyncio.get_running_loop())  # type: ignore[arg-type]
    transport.write(b"head")
    transport.write(b"body")
    transport.write(b"more")
    await asyncio.sleep(0)
    assert wire.writes == [b"headbody", b"more"]


async def test_a_head_that_nothing_follows_does_not_wait() -> None:
    """It leaves before the loop looks for anything else, and before the connection is closed."""
    wire = Wire()
    transport = HeadAndBody(wire, asyncio.get_running_loop())  # type: ignore[arg-type]
    transport.write(b"head")
    await asyncio.sleep(0)
    assert wire.writes == [b"head"]
    transport.write(b"body")
    closed = HeadAndBody(wire, asyncio.get_running_loop())  # type: ignore[arg-type]
    closed.write(b"short")
    closed.close()
    await asyncio.sleep(0)
    assert wire.writes == [b"head", b"body", b"short", b"closed"]


async def test_a_head_is_not_written_to_a_connection_that_was_lost() -> None:
    """Which the event loop would report as a bug of ours."""
    wire = Wire()
    HeadAndBody(wire, asyncio.get_running_loop()).write(b"head")  # type: ignore[arg-type]
    wire.lost = True
    await asyncio.sleep(0)
    assert wire.writes == []
