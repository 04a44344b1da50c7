"""The HTTP upstream against canned bytes on a real Unix socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from unittest.mock import Mock

import msgspec
import pytest
from pulled import pulled

from penstock.runtimes import pool
from penstock.runtimes.connection import Connection
from penstock.runtimes.upstream import HttpUpstream
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.engine import Accepted, Delta, Event, Failed, Finished, GenerateRequest, Sampling, Usage, encode_line
from penstock.wire.errors import Problem

REQUEST = GenerateRequest(id="x", sampling=Sampling(seed=1), text="a")
OK = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS: list[Event] = [
    Accepted(prompt_tokens=1),
    Delta(token_ids=[3], text="é"),
    Finished(reason="stop", usage=Usage(prompt=1, output=1)),
]

EMBEDDED = Embedded(vectors=["AAAA"], prompt_tokens=7)
ACCEPTED = encode_line(Accepted(prompt_tokens=7))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@asynccontextmanager
async def canned(path: str, *answers: list[bytes]) -> AsyncIterator[list[bool]]:
    """A server that answers one request after another with ``answers``, piece by piece, then hangs up.

    Gives a list with one entry per connection that was made: whether it has ended.
    """
    queue = list(answers)
    ended: list[bool] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(ended)
        ended.append(False)
        try:
            while queue:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                for piece in queue.pop(0):
                    if piece == b"hang":
                        await reader.read()
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except asyncio.IncompleteReadError:
            return
        finally:
            ended[number] = True
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield ended
    finally:
        server.close()


async def collect(path: str):
    upstream = HttpUpstream()
    events = []
    try:
        async with aclosing(pulled(upstream.generate, path, REQUEST)) as batches:
            async for batch in batches:
                events += batch
    except Problem as problem:
        return events, problem.code
    finally:
        await upstream.close()
    return events, None


async def test_lines_split_anywhere(tmp_path) -> None:
    """However the bytes are cut, the same events come out, also inside a character."""
    path = str(tmp_path / "s")
    data = b"".join(map(encode_line, EVENTS))
    for size in (1, 2, 3, 7, 1000):
        pieces = [chunk(data[start : start + size]) for start in range(0, len(data), size)]
        async with canned(path, [OK, *pieces, b"0\r\n\r\n"]):
            assert await collect(path) == (EVENTS, None)


@pytest.mark.parametrize("end", [[b"0\r\n\r\n"], [], [chunk(b'{"type":"del')], [chunk(b'{"type":"del'), b"0\r\n\r\n"]])
async def test_ends_without_a_terminal_event(tmp_path, end) -> None:
    """Whatever was whole is delivered, the half line is not, and the end is a loss."""
    path = str(tmp_path / "s")
    whole = chunk(b"".join(map(encode_line, EVENTS[:2])))
    async with canned(path, [OK, whole, *end]):
        assert await collect(path) == (EVENTS[:2], "engine_lost")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nnope\n", "engine_protocol"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\xff\xfe\xfd\n", "engine_protocol"),
        (b"HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\n{}", "engine_protocol"),
        (b'HTTP/1.1 400 X\r\ncontent-length: 45\r\n\r\n{"error":{"message":"m","code":"overloaded"}}', "overloaded"),
        (b"SSH-2.0\r\n\r\n", "engine_lost"),
    ],
)
async def test_other_answers(tmp_path, answer, code) -> None:
    """Errors of the engine keep their code; anything else is named for what it is."""
    path = str(tmp_path / "s")
    head, mark, body = answer.partition(b"\r\n\r\n")
    async with canned(path, [head + mark, body[:9], body[9:]]):
        assert await collect(path) == ([], code)


@pytest.mark.parametrize("count", [-1, 2**32, 2**64 - 1, 2**70])
@pytest.mark.parametrize("kind", ["prompt", "cached", "output", "reasoning", "prompt_tokens"])
async def test_a_count_that_nothing_can_have_is_no_event(tmp_path, kind, count) -> None:
    """What is charged is neither given back by an engine nor more than the ledger takes."""
    path = str(tmp_path / "s")
    line = {"type": "finished", "reason": "stop", "usage": {"prompt": 1} | {kind: count}}
    if kind == "prompt_tokens":
        line = {"type": "accepted", kind: count}
    async with canned(path, [OK, chunk(json.dumps(line).encode() + b"\n")]):
        assert await collect(path) == ([], "engine_protocol")


async def test_nobody_there(tmp_path) -> None:
    """A socket that nobody serves is a lost engine, for streams and for questions."""
    path = str(tmp_path / "none")
    assert await collect(path) == ([], "engine_lost")
    upstream = HttpUpstream()
    with pytest.raises(Problem) as caught:
        await upstream.load(path)
    assert caught.value.code == "engine_lost"
    assert path not in caught.value.message
    await upstream.close()


async def test_closing_the_stream_closes_the_connection(tmp_path) -> None:
    """That is what aborts the request at the engine."""
    path = str(tmp_path / "s")
    upstream = HttpUpstream()
    async with canned(path, [OK, chunk(encode_line(EVENTS[0])), b"hang"]) as ended:
        async with aclosing(pulled(upstream.generate, path, REQUEST)) as batches:
            assert await anext(batches) == [EVENTS[0]]
        async with asyncio.timeout(0.3):
            while not all(ended):
                await asyncio.sleep(0.005)
    await upstream.close()


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_finished_stream_gives_its_connection_back(tmp_path, at_once) -> None:
    """The next request goes over the same connection, whether the end came with the rest or after it."""
    path = str(tmp_path / "s")
    pieces = [OK, chunk(b"".join(map(encode_line, EVENTS))), b"0\r\n\r\n"]
    answer = [b"".join(pieces)] if at_once else pieces
    upstream = HttpUpstream()
    async with canned(path, answer, answer) as ended:
        for _ in range(2):
            async with aclosing(pulled(upstream.generate, path, REQUEST)) as batches:
                assert [event for batch in [batch async for batch in batches] for event in batch] == EVENTS
            await turns()  # its last bytes are on their way
        assert len(ended) == 1
    await upstream.close()


WHOLE = b"".join(map(encode_line, EVENTS))
LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n" % len(WHOLE)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(LENGTH + b"transfer-encoding: chunked\r\n\r\n" + chunk(WHOLE) + b"0\r\n\r\n", id="two lengths"),
        pytest.param(LENGTH + b"content-length: 1\r\n\r\n" + WHOLE, id="the same twice"),
        pytest.param(LENGTH.replace(b"h: ", b"h: +") + b"\r\n" + WHOLE, id="a sign"),
        pytest.param(OK + b"-5\r\n" + WHOLE, id="a negative chunk"),
        pytest.param(OK + b"fffffffffffffffff\r\n" + WHOLE, id="a chunk beyond all numbers"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH + b"\r\n" + WHOLE, id="in two steps"),
        pytest.param(b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n" + WHOLE, id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n\r\n" + WHOLE, id="a header with a zero"),
    ],
)
async def test_no_event_is_taken_from_what_is_no_http(tmp_path, answer) -> None:
    """Where two readers could disagree about a response's end, the engine counts as lost before a single event."""
    path = str(tmp_path / "s")
    async with canned(path, [answer]):
        assert await collect(path) == ([], "engine_lost")


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"x-more: " + b"y" * 1000 + b"\r\n", id="head"),
        pytest.param(OK + b"1", b";x=" + b"y" * 1000, id="chunk extension"),
        pytest.param(OK + b"0\r\n", b"x-more: " + b"y" * 1000 + b"\r\n", id="trailer"),
    ],
)
async def test_what_never_ends_is_cut(tmp_path, begin, again) -> None:
    """Headers, trailers and extensions without end cost a bounded amount of memory and are a loss."""
    path = str(tmp_path / "s")
    async with canned(path, [begin, *[again] * 1000, b"hang"]):
        assert await collect(path) == ([], "engine_lost")


@pytest.mark.parametrize(
    ("answer", "tokens", "code"),
    [
        pytest.param([ACCEPTED[:5], ACCEPTED[5:], encode_line(EMBEDDED)], [7], None, id="vectors"),
        pytest.param([encode_line(EMBEDDED)], [], None, id="vectors alone"),
        pytest.param([ACCEPTED, encode_line(Failed(code="draining", message=""))], [7], "draining", id="failed"),
        pytest.param([ACCEPTED], [7], "engine_lost", id="cut"),
        pytest.param([ACCEPTED, b"{}\n"], [7], "engine_protocol", id="another line"),
    ],
)
async def test_an_embedding_says_first_what_it_takes_on(tmp_path, answer, tokens, code) -> None:
    """Whoever waits for vectors knows their tokens before; an end without vectors is its problem."""
    path = str(tmp_path / "s")
    told: list[int] = []
    upstream = HttpUpstream()
    async with canned(path, [OK, *map(chunk, answer), chunk(b"")]):
        asked = upstream.embed(
            path, EmbedRequest(id="x", texts=["a"]), lambda accepted: told.append(accepted.prompt_tokens)
        )
        [ended] = await asyncio.gather(asked, return_exceptions=True)
        await upstream.close()
    assert ended == EMBEDDED if code is None else isinstance(ended, Problem) and ended.code == code
    assert told == tokens


@pytest.mark.parametrize("ask", ["load", "embed"])
async def test_a_body_without_end_is_cut(tmp_path, monkeypatch, ask) -> None:
    """An engine that answers for ever is no engine: what is kept of its answer has a bound, and it is hung up on."""
    path = str(tmp_path / "s")
    most = 1024 * 1024
    monkeypatch.setattr("penstock.runtimes.upstream._MAX_LINE_BYTES", most)
    upstream = HttpUpstream()
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        with suppress(ConnectionError):
            while sent < 64 * most:
                writer.write(chunk(b"1" * 65536))
                await writer.drain()
                sent += 65536
        hung_up.set()
        writer.close()

    hung_up = asyncio.Event()
    server = await asyncio.start_unix_server(serve, path)
    try:
        with pytest.raises(Problem) as raised:
            if ask == "load":
                await upstream.load(path)
            else:
                await upstream.embed(path, EmbedRequest(id="x", texts=["a"]), lambda accepted: None)
        assert raised.value.code == "engine_protocol"
        await hung_up.wait()
        assert sent < 3 * most
    finally:
        await upstream.close()
        server.close()


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"garbage"])
async def test_a_response_that_nobody_asked_for_is_nobodys(tmp_path, more) -> None:
    """An engine that sends more than its response gets another connection for the next request."""
    path = str(tmp_path / "s")
    answer = OK + chunk(WHOLE) + b"0\r\n\r\n"
    upstream = HttpUpstream()
    async with canned(path, [answer + more], [answer]) as ended:
        for _ in range(2):
            assert await events_of(upstream, path) == EVENTS
    assert len(ended) == 2
    await upstream.close()


async def test_a_connection_that_ended_while_idle_is_not_used(tmp_path) -> None:
    """A restarted engine costs no request the way over the connection that it had before."""
    path = str(tmp_path / "s")
    answer = OK + chunk(WHOLE) + b"0\r\n\r\n"
    upstream = HttpUpstream()
    for _ in range(2):
        async with canned(path, [answer]):
            assert await events_of(upstream, path) == EVENTS
        await turns()
    await upstream.close()


async def test_idle_connections_are_closed_in_time(tmp_path, monkeypatch) -> None:
    """What was idle for longer than the bound goes when another is given back."""
    path = str(tmp_path / "s")
    answer = OK + chunk(WHOLE) + b"0\r\n\r\n"
    upstream = HttpUpstream()
    async with canned(path, [answer], [answer], [answer]) as ended:
        first, second = events_of(upstream, path), events_of(upstream, path)
        await asyncio.gather(first, second)
        monkeypatch.setattr(pool, "_IDLE_S", -1.0)
        await events_of(upstream, path)
        await until(lambda: any(ended))
    await upstream.close()


async def test_an_engine_is_read_no_faster_than_its_client_reads(tmp_path) -> None:
    """Of a flood that nobody takes only a bounded part leaves the engine, and all of it comes once it is taken."""
    path = str(tmp_path / "s")
    sent = 0
    deltas = encode_line(Delta(token_ids=[1], text="x" * 1000)) * 64

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + chunk(encode_line(EVENTS[0])))
        for _ in range(256):
            writer.write(chunk(deltas))
            await writer.drain()
            sent += len(deltas)
        writer.write(chunk(encode_line(EVENTS[-1])) + b"0\r\n\r\n")
        writer.close()

    upstream = HttpUpstream()
    async with (
        await asyncio.start_unix_server(serve, path),
        aclosing(pulled(upstream.generate, path, REQUEST)) as batches,
    ):
        num_events = len(await anext(batches))
        was = -1
        while was != sent:
            was = sent
            await asyncio.sleep(0.1)
        assert 0 < sent < 4 * 1024 * 1024
        num_events += sum([len(batch) async for batch in batches])
    assert num_events == 256 * 64 + 2
    await upstream.close()


async def test_closing_the_upstream_breaks_what_runs(tmp_path) -> None:
    """Running streams end as lost, not as finished and not never."""
    path = str(tmp_path / "s")
    upstream = HttpUpstream()
    server = canned(path, [OK, chunk(encode_line(EVENTS[0])), b"hang"])
    async with server, aclosing(pulled(upstream.generate, path, REQUEST)) as batches:
        await anext(batches)
        await upstream.forget(path)
        with pytest.raises(Problem) as caught:
            await anext(batches)
    assert caught.value.code == "engine_lost"


async def test_an_engine_that_never_answered_is_forgotten_as_any_other(tmp_path) -> None:
    """What nobody accepted leaves nothing behind that forgetting could stumble over."""
    path = str(tmp_path / "s")
    upstream = HttpUpstream()
    with pytest.raises(Problem):
        await events_of(upstream, path)
    await upstream.forget(path)


async def test_a_connection_that_comes_too_late_is_not_used(tmp_path) -> None:
    """An engine that is forgotten while it is being connected to is lost to who wanted it, and hears nothing more."""
    path = str(tmp_path / "s")
    upstream = HttpUpstream()
    async with canned(path, [b"hang"]) as ended:
        asking = asyncio.create_task(upstream.generate(path, REQUEST, lambda events: None))
        await asyncio.sleep(0)
        await upstream.forget(path)
        with pytest.raises(Problem) as caught:
            await asking
        assert caught.value.code == "engine_lost"
        await until(lambda: all(ended))


async def test_a_response_whose_last_byte_never_comes_holds_nobody_up(tmp_path) -> None:
    """The stream ends with its terminal event, and its connection is given up soon after."""
    path = str(tmp_path / "s")
    upstream = HttpUpstream()
    async with canned(path, [OK, chunk(WHOLE), b"hang"]) as ended:
        async with asyncio.timeout(1.0):
            assert await events_of(upstream, path) == EVENTS
        await until(lambda: any(ended))
    await upstream.close()


async def test_events_are_pushed_within_the_read_that_brings_them(tmp_path) -> None:
    """No task is woken for them: none is running when they come."""
    path = str(tmp_path / "s")
    tasks = []

    def push(events: list[Event]) -> None:
        tasks.append(asyncio.current_task())

    upstream = HttpUpstream()
    pieces = [OK, *(piece for event in EVENTS for piece in (chunk(encode_line(event)), b"")), b"0\r\n\r\n"]
    async with canned(path, pieces):
        await upstream.generate(path, REQUEST, push)
    assert tasks[-1] is None
    await upstream.close()


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("error", [OSError("mine"), msgspec.ValidationError("mine"), Problem("invalid_value", "mine")])
async def test_what_the_taker_raises_comes_out_unchanged(tmp_path, error, later) -> None:
    """At once or from what it wanted awaited: it is no fault of the engine's, and the connection is closed."""
    path = str(tmp_path / "s")

    async def fail() -> None:
        raise error

    def push(events: list[Event]):
        if later:
            return fail()
        raise error

    upstream = HttpUpstream()
    async with canned(path, [OK, chunk(encode_line(EVENTS[0])), b"hang"]) as ended:
        with pytest.raises(type(error)) as caught:
            await upstream.generate(path, REQUEST, push)
        assert caught.value is error
        await until(lambda: all(ended))
    await upstream.close()


async def test_nothing_is_pushed_to_who_has_to_wait(tmp_path) -> None:
    """What comes meanwhile is pushed afterwards, in its order."""
    path = str(tmp_path / "s")
    may_go = asyncio.Event()
    seen: list[Event] = []

    def push(events: list[Event]):
        seen.extend(events)
        return may_go.wait() if not may_go.is_set() else None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + chunk(encode_line(EVENTS[0])))
        await until(lambda: seen)
        writer.write(chunk(encode_line(EVENTS[1])))
        await turns()
        writer.write(chunk(encode_line(EVENTS[2])) + b"0\r\n\r\n")
        writer.close()

    upstream = HttpUpstream()
    async with await asyncio.start_unix_server(serve, path):
        running = asyncio.create_task(upstream.generate(path, REQUEST, push))
        await until(lambda: seen)
        await turns()
        await turns()
        assert seen == [EVENTS[0]]
        may_go.set()
        await running
    assert seen == EVENTS
    await upstream.close()


async def test_a_relay_ends_with_the_part_that_is_enough() -> None:
    """What comes in the same turn of the loop, before anybody has noticed the end, is for the next who reads."""
    taken: list[bytes] = []

    def take(data: bytes) -> bool:
        taken.append(data)
        return True

    connection = Connection(lambda freed: None, lambda lost: None)
    connection.connection_made(Mock())
    connection.send(b"")
    relaying = asyncio.create_task(connection.relay(take))
    await asyncio.sleep(0)
    connection.data_received(OK + chunk(b"1"))
    connection.data_received(chunk(b"2"))
    assert await relaying and taken == [b"1"]
    assert await connection.read() == b"2"


async def events_of(upstream: HttpUpstream, path: str) -> list[Event]:
    """One whole stream."""
    async with aclosing(pulled(upstream.generate, path, REQUEST)) as batches:
        return [event for batch in [batch async for batch in batches] for event in batch]


async def until(holds) -> None:
    async with asyncio.timeout(5.0):
        while not holds():
            await asyncio.sleep(0.005)


async def turns() -> None:
    """Let everything happen that needs no time."""
    for _ in range(100):
        await asyncio.sleep(0)
