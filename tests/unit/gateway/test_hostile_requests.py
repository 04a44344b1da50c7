"""Requests that mean to be taken for others: smuggled, split, sent elsewhere, or never finished."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from contextlib import suppress

import pytest

from penstock.config.tenants import TOP, Access, ApiKey, Rights, Tenant
from penstock.gateway.http import server
from penstock.wire.credentials import digest_of

SERVER_SECRET = b"s" * 32
PATH = "/v1/chat/completions"
CHAT = {"model": "org/m", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}
BODY = json.dumps(CHAT).encode()
INNER = b"GET /version HTTP/1.1\r\nhost: smuggled\r\n\r\n"
"""Answered, its answer would have the word version in it."""


@pytest.fixture
async def world(start_world):
    tenants = (Tenant(name=TOP, rights=Rights(role="admin")), Tenant(name="lab", parent=TOP))
    key = ApiKey(id="id-good", tenant="lab", digest=digest_of(b"pk-good", SERVER_SECRET))
    return await start_world(1, access=Access(version=2, tenants=tenants, keys=(key,)))


def head(*headers: str, line: str = f"POST {PATH} HTTP/1.1") -> bytes:
    lines = [line, "host: x", "authorization: Bearer pk-good", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


async def answers(world, raw: bytes) -> list[int]:
    """The statuses of all that comes back before the connection ends, or has been silent for a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(raw)
    received = b""
    with suppress(TimeoutError):
        while more := await asyncio.wait_for(reader.read(65_536), 1.0):
            received += more
    writer.close()
    assert b'{"version"' not in received, "the request within the request was answered"
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]


CHUNKED = b"0\r\n\r\n"
SMUGGLED = {
    "both lengths": head("content-length: 5", "transfer-encoding: chunked", "connection: close") + CHUNKED + INNER,
    "both lengths, the other way": head("transfer-encoding: chunked", f"content-length: {len(BODY)}") + BODY + INNER,
    "two lengths": head(f"content-length: {len(BODY)}", "content-length: 0") + BODY + INNER,
    "a list of lengths": head(f"content-length: {len(BODY)}, 0") + BODY + INNER,
    "a signed length": head(f"content-length: +{len(BODY)}") + BODY + INNER,
    "a hexadecimal length": head("content-length: 0x10") + BODY + INNER,
    "a space before the colon": head("transfer-encoding : chunked") + CHUNKED + INNER,
    "a tab before the encoding": head("transfer-encoding:\tidentity, chunked, identity") + CHUNKED + INNER,
    "chunked twice": head("transfer-encoding: chunked", "transfer-encoding: identity") + CHUNKED + INNER,
    "chunked and then not": head("transfer-encoding: chunked, identity") + CHUNKED + INNER,
    "a folded header": head("x-a: b\r\n transfer-encoding: chunked", "content-length: 0") + INNER,
    "a bare carriage return": head("x-a: b\rtransfer-encoding: chunked", "content-length: 0") + INNER,
    "a nul in a name": head("transfer\0encoding: chunked") + CHUNKED + INNER,
    "a nul in a value": head("x-a: b\0c", "content-length: 0") + INNER,
    "a chunk of a strange length": head("transfer-encoding: chunked") + b"5 \r\nabcde\r\n0\r\n\r\n" + INNER,
    "a chunk that is longer than it says": head("transfer-encoding: chunked") + b"1\r\nab\r\n0\r\n\r\n" + INNER,
    "a chunk without its end": head("transfer-encoding: chunked") + b"2\r\nab0\r\n\r\n" + INNER,
    "HTTP/0.9": b"GET /health\r\n" + INNER,
    "another version": head("content-length: 0", line=f"POST {PATH} HTTP/3.7") + INNER,
    "an upgrade to HTTP/2": head("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk")
    + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "an upgrade to anything": head("connection: upgrade", "upgrade: websocket", "content-length: 0") + INNER,
    "a method that is none": head("content-length: 0", line="G\x01T /health HTTP/1.1") + INNER,
    "a tunnel": head("content-length: 0", line="CONNECT x:443 HTTP/1.1") + INNER,
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_what_two_readers_could_read_apart_is_one_refused_request(world, name):
    """It is refused, or one answer is all there is; what stands behind it is never taken for a request of its own."""
    raw = SMUGGLED[name]
    statuses = await answers(world, raw)
    assert len(statuses) <= 1 and (not statuses or 400 <= statuses[0] < 500), statuses
    assert not world.engines[0].requests and await world.in_flight() == 0


async def test_two_requests_that_are_two_are_answered_as_two(world):
    """The check above can fail: in plain words, the second request is answered."""
    raw = head(f"content-length: {len(BODY)}") + BODY + head("connection: close", line="GET /health HTTP/1.1")
    assert await answers(world, raw) == [200, 200]


SPLITS = [
    "a\r\nx-injected: 1",
    "a\nx-injected: 1",
    "a%0d%0ax-injected: 1",
    "a\r\n\r\nHTTP/1.1 200 OK",
    "\u560d\u560ax-injected",
]


@pytest.mark.parametrize("value", SPLITS)
async def test_no_word_of_a_caller_becomes_a_header_of_an_answer(world, value):
    """Names of models, users and fields, paths, and the caller's own request id."""
    bodies = [CHAT | {"model": value}, CHAT | {"user": value}, CHAT | {value: 1}, {"model": value}]
    raws = [head(f"content-length: {len(said)}", "connection: close") + said for said in map(_encoded, bodies)]
    written = (
        value.replace("\r\n", "%0d%0a").replace("\n", "%0a").encode("ascii", "replace").decode().replace(" ", "%20")
    )
    raws.append(head("connection: close", line=f"GET /v1/models/{written} HTTP/1.1"))
    raws.append(head("connection: close", f"x-request-id: {written}", line="GET /health HTTP/1.1"))
    for raw in raws:
        received = await world.exchange(raw)
        top, _, rest = received.partition(b"\r\n\r\n")
        assert b"injected" not in top.lower(), top
        assert b"\nHTTP/1.1" not in rest


def _encoded(body: dict) -> bytes:
    return json.dumps(body).encode()


NAMED = ["http://127.0.0.1:{port}/", "http://127.0.0.1:{port}", "127.0.0.1:{port}", "//127.0.0.1:{port}/v1"]
FIELDS = ["base_url", "api_base", "upstream", "endpoint", "url", "host", "proxy", "callback_url", "api_url", "provider"]
HEADERS = [
    "host",
    "x-forwarded-host",
    "forwarded",
    "x-upstream-url",
    "x-portkey-custom-host",
    "x-base-url",
    "x-target-url",
    "x-original-url",
    "x-rewrite-url",
    "referer",
    "origin",
    "location",
    "destination",
    "via",
]


async def test_no_caller_chooses_where_a_request_goes(world):
    """Whatever names an address of theirs, in a header, a field, a model, an image or the target: nobody connects."""
    connected: list[int] = []

    async def canary(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(1)
        writer.close()

    trap = await asyncio.start_server(canary, "127.0.0.1", 0)
    port = trap.sockets[0].getsockname()[1]
    for template in NAMED:
        there = template.format(port=port)
        image = [{"type": "image_url", "image_url": {"url": there}}]
        bodies = [CHAT | {field: there} for field in FIELDS]
        bodies += [CHAT | {"model": there}, CHAT | {"messages": [{"role": "user", "content": image}]}]
        for body in map(_encoded, bodies):
            raw = head(f"content-length: {len(body)}", "connection: close") + body
            assert all(status < 500 for status in await answers(world, raw))
        for header in HEADERS:
            raw = head(f"content-length: {len(BODY)}", "connection: close", f"{header}: {there}") + BODY
            assert all(status < 500 for status in await answers(world, raw))
        target = f"POST {there}{PATH} HTTP/1.1"
        await answers(world, head(f"content-length: {len(BODY)}", "connection: close", line=target) + BODY)
    assert not connected
    _, writer = await asyncio.open_connection("127.0.0.1", port)  # the trap is one
    async with asyncio.timeout(5):
        while not connected:
            await asyncio.sleep(0.01)
    writer.close()
    trap.close()


STRANGE = [
    "' OR 1=1 --",
    '"; DROP TABLE api_keys; --',
    "{$ne: null}",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "../../etc/passwd",
]
STRANGE += ["%00%0d%0a", "\xff\xfe", "A" * 900, "*", ""]
KNOWN = [
    "accept", "accept-encoding", "accept-language", "cache-control", "cookie", "date", "dnt", "from", "if-match",
    "if-none-match", "if-modified-since", "openai-organization", "openai-project", "openai-beta", "anthropic-version",
    "anthropic-beta", "origin", "pragma", "range", "referer", "te", "user-agent", "via", "warning", "x-request-id",
    "x-stainless-retry-count", "x-stainless-lang", "idempotency-key", "traceparent", "tracestate", "baggage",
    "x-penstock-tenant", "x-penstock-key", "x-penstock-salt", "x-user", "x-role", "x-tenant", "x-real-ip",
]  # fmt: skip


async def test_no_other_header_changes_who_is_answered(world):
    """With any words in all of them a good key is answered with 200 and no key with 401, and nothing comes back."""
    for value in STRANGE:
        others = [f"{header}: {value}" for header in KNOWN]
        good = head(f"content-length: {len(BODY)}", "connection: close", *others) + BODY
        assert await answers(world, good) == [200], value
        none = good.replace(b"authorization: Bearer pk-good\r\n", b"")
        received = await world.exchange(none)
        assert b" 401 " in received.split(b"\r\n")[0] and (len(value) < 4 or value.encode("latin-1") not in received)


@pytest.mark.parametrize(
    ("together", "apart", "dripped"),
    [
        (b"", b"GET /health HTTP/1.1\r\n", b"x-a: b\r\n"),
        (b"GET /health HTTP/1.1\r\n", b"", b"x-a: b\r\n"),
        (b"", b"", b"\r\n"),
    ],
)
async def test_a_head_that_never_ends_is_ended(start_world, monkeypatch, together, apart, dripped):
    """However steadily it drips, and on a connection that was good before; others are answered meanwhile.

    It may begin together with the request before it, or consist of the empty lines that may come before a head.
    """
    monkeypatch.setattr(server, "_HEAD_TIMEOUT_S", 0.3)
    world = await start_world(1)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" + together)
    await reader.readuntil(b'"ok"}')
    began = time.monotonic()

    async def drip() -> None:
        writer.write(apart)
        while True:
            writer.write(dripped)
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):  # what drips into the end is met by a reset
            assert await reader.read() == b""
    assert time.monotonic() - began > 0.2
    dripping.cancel()
    writer.close()
    assert b" 200 " in await world.exchange(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", until=b"\r\n")


async def test_no_body_is_unpacked(world):
    """Some kilobytes that would become as many megabytes are refused as they are, whatever their packing is called."""
    body = gzip.compress(gzip.compress(b" " * 20_000_000, 1), 9)
    for coding in ("gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP", "x-gzip", "gzip, gzip"):
        raw = head(f"content-encoding: {coding}", f"content-length: {len(body)}", "connection: close") + body
        assert await answers(world, raw) == [400], coding
    assert await answers(world, head(f"content-length: {len(body)}", "connection: close") + body) == [400]


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
async def test_depth_is_refused_and_costs_nothing(world, opening):
    """A hundred thousand levels in any field are a 400 and not an overflow."""
    deep = opening * 100_000
    for body in (deep, b'{"model":"org/m","messages":' + deep, b'{"tools":' + deep):
        raw = head(f"content-length: {len(body)}", "connection: close") + body
        assert await answers(world, raw) == [400]
    good = head(f"content-length: {len(BODY)}", "connection: close") + BODY
    assert await answers(world, good) == [200]
