"""What a hostile or careless client can send, on raw sockets."""

from __future__ import annotations

import asyncio
import json

import pytest

from penstock.config.desired import Model, Replica

CHAT = {"model": "org/m", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}
PATH = "/v1/chat/completions"


def request(body: bytes = b"", *headers: str, method: str = "POST", path: str = PATH) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", *headers]
    if body and not any(header.startswith("transfer-encoding") for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def parse(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


async def ask(world, raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """One response, the connection being closed after it."""
    return parse(await world.exchange(raw.replace(b"host: x", b"host: x\r\nconnection: close", 1)))


@pytest.fixture
async def world(start_world):
    return await start_world(1, max_body_bytes=100_000)


BAD_BODIES = [
    (b"", "invalid_json", None),
    (b"{", "invalid_json", None),
    (b"[]", "invalid_type", None),
    (b"\xff\xfe", "invalid_json", None),
    (b'{"model":"\xff","messages":[]}', "invalid_json", None),
    (b'{"model":"\\ud800","messages":[]}', "invalid_json", None),
    (b'{"model":"org/m","messages":[],"x":' + b"[" * 40_000 + b"]" * 40_000 + b"}", "invalid_json", None),
    (b'{"model":"org/m","messages":[]}', "invalid_value", "messages"),
    (b'{"model":"org/m","messages":[],"temperature":NaN}', "invalid_value", "temperature"),
    (b'{"model":"org/m","messages":[],"temperature":1e999}', "invalid_value", "temperature"),
    (b'{"model":"nope","messages":[{"role":"user","content":"x"}]}', "model_not_found", "model"),
]


async def test_bad_bodies(world):
    """Every bad body gets a 4xx with a code and the field, and one terminal event."""
    for body, code, param in BAD_BODIES:
        world.events.clear()
        status, headers, answer = await ask(world, request(body))
        error = json.loads(answer)["error"]
        assert (error["code"], error["param"]) == (code, param), body[:60]
        assert status == (404 if code == "model_not_found" else 400)
        assert headers["content-type"] == "application/json" and headers["x-request-id"].startswith("req-")
        [ended] = world.ended
        assert (ended.outcome, ended.status, ended.code) == ("rejected", status, code)


async def test_ten_megabytes_by_length(world):
    """A body that declares too much gets 413, also when the client sends it all before it reads."""
    status, headers, body = await ask(world, request(b"x" * 10_000_000))
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(body)["error"]["code"] == "body_too_large"


async def test_a_declared_terabyte_is_refused_at_once(world):
    """The refusal does not wait for the body."""
    raw = request(b"", "content-length: 1000000000000")
    head = await asyncio.wait_for(world.exchange(raw, until=b"\r\n\r\n"), 20)
    assert parse(head)[0] == 413


async def test_too_large_in_chunks(world):
    """A chunked body is cut off at the same bound."""
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    status, _, _ = await ask(world, request(chunk * 20 + b"0\r\n\r\n", "transfer-encoding: chunked"))
    assert status == 413


async def test_a_good_chunked_body(world):
    """A chunked body in many pieces is as good as any."""
    text = json.dumps(CHAT).encode()
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n"
    assert (await ask(world, request(body, "transfer-encoding: chunked")))[0] == 200


@pytest.mark.parametrize("body", [b"zz\r\nnonsense\r\n", b"-5\r\nabc\r\n", b"ffffffffffffffffff\r\nabc\r\n"])
async def test_garbage_in_chunks(world, script, body):
    """A broken chunk header gets a 400, ends its request once, and the next client is served."""
    status, _, answer = parse(await world.exchange(request(body, "transfer-encoding: chunked")))
    assert (status, json.loads(answer)["error"]["code"]) == (400, "bad_request")
    await script.until(lambda: [event.outcome for event in world.ended] == ["cancelled"])
    assert (await ask(world, request(json.dumps(CHAT).encode())))[0] == 200
    assert await world.in_flight() == 0


async def test_an_unknown_transfer_encoding(world):
    """A body whose end nobody can tell gets a 400."""
    status, _, answer = parse(await world.exchange(request(b"{}", "transfer-encoding: xchunked")))
    assert (status, json.loads(answer)["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize("size", [60_000, 70_000, 99_000])
async def test_a_body_that_comes_after_its_head(world, size):
    """A body is no head, however much of it arrives in one read."""
    body = json.dumps(CHAT | {"user": "x" * size}).encode()
    head, _, rest = request(body, "connection: close").partition(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(head + b"\r\n\r\n")
    await writer.drain()
    await world.in_flight()
    writer.write(rest)
    assert parse(await reader.read())[0] == 200
    writer.close()


@pytest.mark.parametrize("path", [PATH, "/health"])
@pytest.mark.parametrize("flood", [b"0\r\n" + b"x-a: y\r\n" * 100_000, b"0\r\nx-a: " + b"b" * 700_000])
async def test_trailer_floods(world, script, path, flood):
    """Trailers without bounds end the connection, whether or not the request has been answered."""
    method = "POST" if path == PATH else "GET"
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(request(b"", "transfer-encoding: chunked", method=method, path=path))
    with pytest.raises(ConnectionError):
        for _ in range(100):
            writer.write(flood)
            await writer.drain()
    writer.close()
    await script.until(lambda: len(world.ended) == (path == PATH))


async def test_a_body_that_drips(start_world):
    """A body that does not arrive in time gets 408 and the end of the connection."""
    world = await start_world(1, body_timeout_s=0.3)
    raw = request(b"", "content-length: 1000") + b'{"model"'
    status, headers, body = parse(await asyncio.wait_for(world.exchange(raw), 3))
    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body)["error"]["code"] == "request_timeout"
    assert [event.code for event in world.ended] == ["request_timeout"]


async def test_many_copies_of_a_long_prompt(start_world):
    """Choices times the body is bounded, since every choice carries its prompt to an engine."""
    world = await start_world(1)
    body = json.dumps(CHAT | {"n": 128, "messages": [{"role": "user", "content": "a" * 600_000}]}).encode()
    status, _, answer = await ask(world, request(body))
    assert (status, json.loads(answer)["error"]["param"]) == (400, "n")
    assert not any(engine.requests for engine in world.engines)


async def test_leaving_amid_the_body(world, script):
    """A client that leaves before its body is complete is one cancelled request."""
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(request(b"", "content-length: 1000") + b"{")
    await writer.drain()
    await script.until(lambda: len(world.events) > 0)
    writer.close()
    await script.until(lambda: len(world.ended) == 1)
    assert (world.ended[0].outcome, world.ended[0].status) == ("cancelled", 499)


@pytest.mark.parametrize("flood", ["x-a: " + "b" * 200_000, "\r\n".join(f"x-{i}: y" for i in range(20_000))])
async def test_header_floods(world, flood):
    """A head without bounds is refused with 431 and nothing of it is kept."""
    raw = b"GET /health HTTP/1.1\r\nhost: x\r\n" + flood.encode()
    status, _, body = parse(await world.exchange(raw))
    assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")


async def test_no_http_at_all(world):
    """What is not HTTP gets an error body and the end of the connection."""
    status, _, body = parse(await world.exchange(b"\x16\x03\x01\x02\x00 hello\r\n\r\n"))
    assert (status, json.loads(body)["error"]["code"]) == (400, "bad_request")


async def test_many_requests_on_one_connection(world):
    """Bounds on the head hold per request, not per connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    raw = request(b"", "x-filler: " + "f" * 3000, method="GET", path="/health")
    for _ in range(40):
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        assert await reader.readexactly(int(parse(head)[1]["content-length"])) == b'{"status":"ok"}'
    writer.close()


async def test_pipelined_requests_are_answered_in_order(world):
    """Several requests sent at once come back in their order."""
    one, two = CHAT | {"seed": 1}, CHAT | {"seed": 2}
    raw = request(json.dumps(one).encode()) + request(b"", method="GET", path="/version")
    raw += request(json.dumps(two).encode(), "connection: close")
    answer = await world.exchange(raw)
    assert answer.count(b"HTTP/1.1 200") == 3
    first, second = answer.index(b"chat.completion"), answer.rindex(b"chat.completion")
    assert first < answer.index(b'"version"') < second


async def test_pipelining_clients_are_cancelled_too(world, make_behaviour, script):
    """A client that leaves with requests queued behind a running one frees the engine."""
    world.engines[0].behave = lambda _: make_behaviour(gap_s=0.01)
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    body = json.dumps(CHAT | {"max_tokens": 1000}).encode()
    writer.write(request(body) + request(body))
    await script.until(lambda: world.engines[0].sent_tokens > 2)
    writer.close()
    await script.until(lambda: world.engines[0].running == 0, within_s=0.3)
    await script.until(lambda: len(world.ended) >= 1)


ROUTES = [
    ("GET", PATH, 405),
    ("DELETE", "/v1/models", 405),
    ("GET", "/nope", 404),
    ("GET", "/v1/models/nope", 404),
    ("GET", "//v1/models", 404),
    ("GET", "/v1/models/../../health", 404),
    ("GET", "/v1/models/org/m", 200),
    ("GET", "/v1/models/org%2Fm", 200),
    ("HEAD", "/health", 200),
    ("GET", "/ready", 200),
    ("GET", "/version?x=1", 200),
]


async def test_routes(world):
    """Paths and methods match exactly; a wrong method says which are right."""
    for method, path, status in ROUTES:
        found, headers, _ = await ask(world, request(method=method, path=path))
        assert found == status, path
        assert ("allow" in headers) == (status == 405)


async def test_request_ids(world):
    """A sane request id of the caller's is kept, any other replaced."""
    for sent, kept in (("abc-1", True), ("a" * 200, False), ("a b", False), ("é", False)):
        raw = request(method="GET", path="/health").replace(b"host: x", b"host: x\r\nx-request-id: " + sent.encode())
        _, headers, _ = await ask(world, raw)
        assert (headers["x-request-id"] == sent) is kept


async def test_compressed_bodies_are_refused(world):
    """A compressed body is a 400, not a bomb."""
    status, _, body = await ask(world, request(b"\x1f\x8b" * 100, "content-encoding: gzip"))
    assert (status, json.loads(body)["error"]["param"]) == (400, "content-encoding")


async def test_tokenize_and_back(world):
    """Text and messages become token ids, and ids text; model may be left out where there is one."""
    ask_for = json.dumps({"prompt": "hi", "return_token_strs": True}).encode()
    status, _, body = await ask(world, request(ask_for, path="/tokenize"))
    assert (status, json.loads(body)) == (
        200,
        {"count": 2, "max_model_len": 4096, "tokens": [104, 105], "token_strs": ["h", "i"]},
    )
    by_messages = json.dumps({"model": "org/m", "messages": CHAT["messages"]}).encode()
    assert json.loads((await ask(world, request(by_messages, path="/tokenize")))[2])["count"] == 3
    back = json.dumps({"model": "org/m", "tokens": [104, 105]}).encode()
    assert json.loads((await ask(world, request(back, path="/detokenize")))[2]) == {"prompt": "hi"}
    status, _, _ = await ask(world, request(b"{}", path="/tokenize"))
    assert status == 400
    assert [event.outcome for event in world.ended] == ["finished"] * 3 + ["rejected"]


async def test_before_there_is_a_model(start_world):
    """Before the first desired state nothing is ready, and nothing hangs."""
    world = await start_world(0)
    status, headers, body = await ask(world, request(method="GET", path="/ready"))
    assert (status, headers["retry-after"], json.loads(body)["error"]["code"]) == (503, "1", "not_ready")
    assert (await ask(world, request(json.dumps(CHAT).encode())))[0] == 404
    assert (await ask(world, request(method="GET", path="/health")))[0] == 200


async def test_a_model_that_never_was_ready(start_world, script):
    """While the first load runs, requests get 503 at once with retry-after."""
    world = await start_world(0)
    await world.exchange(request(method="GET", path="/health"), until=b"ok")
    replica = Replica(id="r", socket="/nowhere.sock")
    world.states.put_nowait(world.desired(1, models=[Model(name="org/m", replicas=[replica])]))
    await script.until(lambda: bool(world.acknowledged))
    status, headers, body = await asyncio.wait_for(ask(world, request(json.dumps(CHAT).encode())), 4)
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, "not_ready", "2")
