"""How an answer leaves: a head in one write with what follows it at once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from penstock.gateway.http.pipe import Pipe


class Wire:
    """Remembers the writes that reach it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False
        self.num_ended = 0

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def ended(self) -> None:
        self.num_ended += 1

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def cycle_of(wire: Any, method: str = "POST", *, keep_alive: bool = True) -> RequestResponseCycle:
    """A request whose head was read."""
    log = logging.getLogger(__name__)
    return RequestResponseCycle(
        scope={"type": "http", "method": method},  # type: ignore[typeddict-item]
        transport=wire,
        flow=FlowControl(wire),
        logger=log,
        access_logger=log,
        access_log=False,
        default_headers=[(b"date", b"today")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=wire.ended,
    )


HEAD = b"HTTP/1.1 200 OK\r\ndate: today\r\nx-a: 1\r\n"


async def test_a_whole_answer_is_one_write() -> None:
    """Head and body; then the next request's turn begins, on the same connection."""
    wire = Wire()
    cycle = cycle_of(wire)
    await Pipe(cycle).answer([(b"x-a", b"1")], b"body")
    assert wire.writes == [HEAD + b"content-length: 4\r\n\r\nbody"] and not wire.closed
    assert cycle.response_started and cycle.response_complete and wire.num_ended == 1


async def test_a_stream_begins_with_its_first_frames_and_ends_with_its_last() -> None:
    """In one write each, and one for what is between them."""
    wire = Wire()
    cycle = cycle_of(wire)
    pipe = Pipe(cycle)
    pipe.begin([(b"x-a", b"1")], b"data: 1\n\n")
    pipe.write(b"data: 2\n\n")
    assert cycle.response_started and wire.num_ended == 0
    await pipe.end(b"data: 3\n\n")
    assert wire.writes == [
        HEAD + b"transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        b"9\r\ndata: 2\n\n\r\n",
        b"9\r\ndata: 3\n\n\r\n0\r\n\r\n",
    ]
    assert cycle.response_complete and wire.num_ended == 1


async def test_a_stream_may_begin_before_its_first_frame() -> None:
    """An empty chunk would be its end."""
    wire = Wire()
    Pipe(cycle_of(wire)).begin([(b"x-a", b"1")], b"")
    assert wire.writes == [HEAD + b"transfer-encoding: chunked\r\n\r\n"]


@pytest.mark.parametrize(("headers", "keep_alive"), [([(b"connection", b"close")], True), ([], False)])
async def test_a_connection_that_will_not_be_kept_says_so_once_and_ends(headers: Any, keep_alive: bool) -> None:
    """Whether the server wants its end or the client does."""
    wire = Wire()
    await Pipe(cycle_of(wire, keep_alive=keep_alive)).answer(headers, b"", 503)
    assert wire.writes[0].startswith(b"HTTP/1.1 503 ") and wire.writes[0].count(b"connection: close\r\n") == 1
    assert wire.closed


async def test_a_head_alone_was_asked_for() -> None:
    """The length of what is not sent is told."""
    wire = Wire()
    await Pipe(cycle_of(wire, "HEAD")).answer([(b"x-a", b"1")], b"body")
    assert wire.writes == [HEAD + b"content-length: 4\r\n\r\n"]


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\0", b"a\x7f"])
async def test_no_value_ends_its_line(value: bytes) -> None:
    """Whatever got into a header: nothing of the answer leaves."""
    wire = Wire()
    with pytest.raises(RuntimeError, match="end its line"):
        await Pipe(cycle_of(wire)).answer([(b"x-a", value)], b"")
    with pytest.raises(RuntimeError, match="end its line"):
        Pipe(cycle_of(wire)).begin([(b"x-a", value)], b"")
    assert wire.writes == []


async def test_a_client_that_left_is_written_nothing() -> None:
    """Nor is anybody made to wait for it."""
    wire = Wire()
    cycle = cycle_of(wire)
    cycle.disconnected = True
    pipe = Pipe(cycle)
    assert pipe.begin([], b"data: 1\n\n") is None and pipe.write(b"data: 2\n\n") is None
    await pipe.end(b"data: 3\n\n")
    await pipe.answer([], b"body")
    assert wire.writes == []


async def test_a_client_that_reads_slowly_is_waited_for() -> None:
    """After each write of a stream, and before an answer that follows one which it has not read."""
    wire = Wire()
    cycle = cycle_of(wire)
    cycle.flow.pause_writing()
    pipe = Pipe(cycle)
    wait = pipe.begin([], b"data: 1\n\n")
    assert wait is not None and len(wire.writes) == 1
    waiting = [asyncio.ensure_future(wait), asyncio.ensure_future(Pipe(cycle).answer([], b"body"))]
    await asyncio.sleep(0)
    assert len(wire.writes) == 1 and not any(task.done() for task in waiting)
    cycle.flow.resume_writing()
    await asyncio.gather(*waiting)
    assert len(wire.writes) == 2


def test_a_body_that_is_there_is_taken_once() -> None:
    """One that is not complete, or larger than it may be, is left for whoever asks for its parts."""
    cycle = cycle_of(Wire())
    pipe = Pipe(cycle)
    cycle.body += b"12345"
    assert pipe.body(5) is None
    cycle.more_body = False
    assert pipe.body(4) is None
    assert pipe.body(5) == b"12345" and cycle.body == b""
