"""Streams over the loss of engines, and the truth of every end."""

from __future__ import annotations

import asyncio
import json
import random

import aiohttp
import pytest

from penstock.config.desired import Model, Replica
from penstock.events.list import StreamResumed

BODY = {"model": "org/m", "messages": [{"role": "user", "content": "a b"}], "seed": 11, "stream": True}


async def chat(world, **changes):
    """Status, text per choice, finish reasons, and whether ``[DONE]`` came; a broken connection raises."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    done = False
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{world.url}/v1/chat/completions", json=BODY | changes) as response,
    ):
        if response.status != 200:
            return response.status, await response.json(), None, None
        async for line in response.content:
            if line == b"data: [DONE]\n":
                done = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                for choice in event["choices"]:
                    texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
                    reasons[choice["index"]] = choice["finish_reason"]
    return response.status, texts, reasons, done


@pytest.mark.parametrize("trial", range(6))
async def test_a_stream_survives_random_cuts(start_world, make_behaviour, script, trial):
    """However often and wherever its engine is lost, a stream repeats nothing and loses nothing."""
    rng = random.Random(trial)
    world = await start_world(2)
    cuts = [rng.randrange(1, 12) for _ in range(10)]

    def behave(request):
        if not cuts:
            return make_behaviour()
        return make_behaviour(cut_after=cuts.pop(), cut_inside_line=rng.random() < 0.5, clean_end=rng.random() < 0.3)

    for engine in world.engines:
        engine.behave = behave
    status, texts, reasons, done = await chat(world, max_tokens=100)
    assert (status, reasons, done) == (200, {0: "length"}, True)
    assert texts == {0: script.text(11, 100)}
    resumed = [event for event in world.events if isinstance(event, StreamResumed)]
    assert len(resumed) == 10 and all(event.emitted_tokens > 0 for event in resumed)
    [ended] = world.ended
    assert (ended.outcome, ended.output_tokens) == ("finished", 100)
    assert await world.in_flight() == 0


async def test_one_of_three_choices_is_lost(start_world, make_behaviour, script):
    """With n=3, the loss of one choice's engine disturbs neither it nor the others."""
    world = await start_world(2)
    cut = [make_behaviour(cut_after=4)]
    for engine in world.engines:
        engine.behave = lambda request: cut.pop() if cut and request.id.endswith("-1") else make_behaviour(gap_s=0.001)
    status, texts, reasons, done = await chat(world, max_tokens=20, n=3)
    assert (status, done, set(reasons.values())) == (200, True, {"length"})
    assert texts[0] == script.text(11, 20) and not cut
    assert all(text.count(" ") == 20 for text in texts.values())
    assert any(len(request.emitted_token_ids) == 4 for engine in world.engines for request in engine.requests)


async def test_a_stream_waits_for_the_restarted_engine(start_world, make_behaviour, script):
    """With a single engine, killed and started again, the stream goes on from where it was."""
    world = await start_world(1)
    [engine] = world.engines
    engine.behave = lambda request: make_behaviour(gap_s=0.005)
    running = asyncio.create_task(chat(world, max_tokens=40))
    await script.until(lambda: engine.sent_tokens >= 10)
    await engine.kill()
    assert not await script.ready(world)
    await engine.start()
    status, texts, _, done = await running
    assert (status, texts, done) == (200, {0: script.text(11, 40)}, True)


async def test_a_request_during_a_restart_waits(start_world, script):
    """A request that arrives while the only engine restarts is answered, not refused."""
    world = await start_world(1)
    [engine] = world.engines
    await engine.kill()
    await script.until(lambda: _not(script.ready(world)))
    running = asyncio.create_task(chat(world, max_tokens=3))
    await script.until(lambda: _in_flight(world, 1))
    await engine.start()
    assert (await running)[0] == 200


async def _not(ready):
    return not await ready


async def _in_flight(world, count):
    return await world.in_flight() == count


async def test_all_tokens_emitted_but_not_the_end(start_world, make_behaviour, script):
    """Cut between the last token and the terminal event, a stream still gets its held-back text and its end."""
    world = await start_world(1)
    cuts = [make_behaviour(cut_after=8)]
    world.engines[0].behave = lambda request: cuts.pop() if cuts else make_behaviour()
    status, texts, reasons, done = await chat(world, max_tokens=8)
    assert (status, texts, reasons, done) == (200, {0: script.text(11, 8)}, {0: "length"}, True)
    assert [len(request.emitted_token_ids) for request in world.engines[0].requests] == [0, 8]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_kills_every_engine_ends_truthfully(start_world, make_behaviour, stream):
    """Given up, a stream ends with an in-band error and a broken connection, a plain call with a status."""
    world = await start_world(1, max_resumes=2)
    world.engines[0].behave = lambda request: make_behaviour(cut_after=0 if request.emitted_token_ids else 3)
    body = json.dumps(BODY | {"stream": stream, "max_tokens": 9}).encode()
    raw = await world.exchange(_post("/v1/chat/completions", body, b"connection: close\r\n"))
    head, _, rest = raw.partition(b"\r\n\r\n")
    if stream:
        assert b" 200 " in head and b'"code":"engine_lost"' in rest
        assert b"[DONE]" not in rest and not rest.endswith(b"0\r\n\r\n")
    else:
        assert b" 502 " in head and b'"code":"engine_lost"' in rest
    [ended] = world.ended
    assert (ended.outcome, ended.code, ended.status) == ("failed", "engine_lost", 200 if stream else 502)
    assert len(world.engines[0].requests) == 1 + 2
    assert await world.in_flight() == 0


async def test_an_engines_failure_is_told_in_band(start_world, make_behaviour):
    """A failure that no other engine would mend ends the stream with its code; the client raises."""
    world = await start_world(1)
    world.engines[0].behave = lambda request: make_behaviour(fail_after=2)
    with pytest.raises(AssertionError, match="internal_error"):
        await chat(world)
    [ended] = world.ended
    assert (ended.outcome, ended.code) == ("failed", "internal_error")


async def test_no_replica_in_time(start_world, make_behaviour, script):
    """A stream whose engine never comes back fails when its time is over, and nothing hangs."""
    world = await start_world(1, resume_timeout_s=0.3)
    [engine] = world.engines
    engine.behave = lambda request: make_behaviour(gap_s=0.005)
    running = asyncio.create_task(chat(world, max_tokens=200))
    await script.until(lambda: engine.sent_tokens >= 5)
    await engine.kill()
    with pytest.raises(AssertionError, match="engine_lost"):
        await running


async def test_overloaded_engines_are_passed_over(start_world, make_behaviour):
    """An engine that is full is left for a free one; when all are full the answer is 503 with retry-after."""
    world = await start_world(2)
    world.engines[0].behave = lambda request: make_behaviour(refuse="overloaded")
    for _ in range(3):
        assert (await chat(world, max_tokens=2))[0] == 200
    world.engines[1].behave = world.engines[0].behave
    status, body, _, _ = await chat(world, max_tokens=2)
    assert (status, body["error"]["code"]) == (503, "overloaded")


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_reaches_the_engine(start_world, make_behaviour, script, stream):
    """A client that goes away frees the engine within 300 ms, streamed or not, resumed or not."""
    world = await start_world(1)
    [engine] = world.engines
    engine.behave = lambda request: make_behaviour(gap_s=0.01)
    body = json.dumps(BODY | {"stream": stream, "max_tokens": 1000}).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(_post("/v1/chat/completions", body))
    await script.until(lambda: engine.sent_tokens >= 3)
    writer.close()
    await script.until(lambda: engine.running == 0, within_s=0.3)
    await script.until(lambda: len(world.ended) == 1)
    assert world.ended[0].outcome == "cancelled"
    assert await world.in_flight() == 0


async def test_cancelling_while_waiting_for_an_engine(start_world, script):
    """A client that leaves while its stream waits for a replica is counted out at once."""
    world = await start_world(1)
    await world.engines[0].kill()
    await script.until(lambda: _not(script.ready(world)))
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(_post("/v1/chat/completions", json.dumps(BODY).encode()))
    await script.until(lambda: _in_flight(world, 1))
    writer.close()
    await script.until(lambda: _in_flight(world, 0), within_s=0.5)
    assert world.ended[-1].outcome == "cancelled"


async def test_a_client_that_does_not_read_holds_the_engine_back(start_world, make_behaviour, script):
    """Back-pressure: what is not read is not fetched, so memory stays bounded."""
    world = await start_world(1)
    [engine] = world.engines
    engine.behave = lambda request: make_behaviour()
    body = json.dumps(BODY | {"max_tokens": 1_000_000, "logprobs": True, "top_logprobs": 20}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port, limit=1024)
    writer.write(_post("/v1/chat/completions", body))
    seen = -1

    async def stalled():
        nonlocal seen
        before, seen = seen, engine.sent_tokens
        await asyncio.sleep(0.2)
        return seen == before and seen > 0

    await script.until(stalled, within_s=20)
    assert engine.sent_tokens < 100_000
    writer.close()
    await script.until(lambda: engine.running == 0)


async def test_five_hundred_at_once(start_world, make_behaviour, script):
    """500 concurrent streams all end, each with its own text, and nothing is in flight afterwards."""
    world = await start_world(2)
    for engine in world.engines:
        engine.behave = lambda request: make_behaviour(gap_s=0.02)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(seed):
            body = BODY | {"seed": seed, "max_tokens": 3}
            async with session.post(f"{world.url}/v1/chat/completions", json=body) as response:
                text = await response.text()
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            assert text.endswith("data: [DONE]\n\n")
            return "".join(event["choices"][0]["delta"].get("content", "") for event in events)

        texts = await asyncio.gather(*(one(seed) for seed in range(500)))
    assert texts == [script.text(seed, 3) for seed in range(500)]
    assert len(world.ended) == 500
    assert await world.in_flight() == 0
    counts = [len(engine.requests) for engine in world.engines]
    assert min(counts) > 200


async def test_draining_refuses_new_and_finishes_running(start_world, make_behaviour, script):
    """When the desired state admits nothing, new requests get 503, running ones end, and serving returns."""
    world = await start_world(1)
    [engine] = world.engines
    engine.behave = lambda request: make_behaviour(gap_s=0.01)
    running = asyncio.create_task(chat(world, max_tokens=30))
    await script.until(lambda: engine.sent_tokens >= 3)
    world.states.put_nowait(world.desired(2, admitting=False))
    await script.until(lambda: any(a.version == 2 and a.in_flight == 1 for a in world.acknowledged))
    raw = await world.exchange(_post("/v1/chat/completions", json.dumps(BODY).encode()))
    assert b" 503 " in raw and b'"code":"draining"' in raw and b"retry-after: 1" in raw
    assert b"connection: close" in raw.lower()
    world.stop.set()
    status, texts, _, done = await running
    assert (status, texts, done) == (200, {0: script.text(11, 30)}, True)
    await asyncio.wait_for(asyncio.shield(world.serving), 20)
    assert world.acknowledged[-1].in_flight == 0


async def test_a_draining_replica_gets_nothing_new(start_world):
    """A replica that the desired state drains is acknowledged and routed around."""
    world = await start_world(2)
    drained = world.desired(2).models[0].replicas
    replicas = [Replica(id="r0", socket=drained[0].socket, draining=True), drained[1]]
    world.states.put_nowait(world.desired(2, models=[Model(name="org/m", replicas=replicas)]))
    async with asyncio.timeout(20):
        while not any(a.version == 2 for a in world.acknowledged):
            await asyncio.sleep(0.005)
    for _ in range(4):
        assert (await chat(world, max_tokens=1))[0] == 200
    assert (len(world.engines[0].requests), len(world.engines[1].requests)) == (0, 4)


def _post(path: str, body: bytes, more: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + more + b"\r\n" + body
