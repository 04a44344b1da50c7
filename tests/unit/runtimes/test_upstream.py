"""The HTTP upstream against canned bytes on a real Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from penstock.runtimes.upstream import HttpUpstream
from penstock.wire.engine import Accepted, Delta, Event, Finished, GenerateRequest, Sampling, Usage, encode_line
from penstock.wire.errors import Problem

REQUEST = GenerateRequest(id="x", sampling=Sampling(seed=1), text="a")
OK = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENTS: list[Event] = [
    Accepted(prompt_tokens=1),
    Delta(token_ids=[3], text="é"),
    Finished(reason="stop", usage=Usage(prompt=1, output=1)),
]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@asynccontextmanager
async def canned(path: str, *answers: list[bytes], closed: list[bool] | None = None) -> AsyncIterator[int]:
    """A server that answers one request after another with ``answers``, piece by piece, then hangs up."""
    queue = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while queue:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                await reader.readexactly(length)
                for piece in queue.pop(0):
                    if piece == b"hang":
                        await reader.read()
                        if closed is not None:
                            closed.append(True)
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield 0
    finally:
        server.close()


async def collect(path: str):
    upstream = HttpUpstream()
    events = []
    try:
        async with aclosing(upstream.generate(path, REQUEST)) as batches:
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
    closed: list[bool] = []
    upstream = HttpUpstream()
    async with canned(path, [OK, chunk(encode_line(EVENTS[0])), b"hang"], closed=closed):
        async with aclosing(upstream.generate(path, REQUEST)) as batches:
            assert await anext(batches) == [EVENTS[0]]
        async with asyncio.timeout(0.3):
            while not closed:
                await asyncio.sleep(0.005)
    await upstream.close()


async def test_a_finished_stream_gives_its_connection_back(tmp_path) -> None:
    """The next request goes over the same connection."""
    path = str(tmp_path / "s")
    answer = [OK, chunk(b"".join(map(encode_line, EVENTS))), b"0\r\n\r\n"]
    upstream = HttpUpstream()
    async with canned(path, answer, answer):
        for _ in range(2):
            async with aclosing(upstream.generate(path, REQUEST)) as batches:
                assert [event for batch in [batch async for batch in batches] for event in batch] == EVENTS
    await upstream.close()
