"""A mock engine on a real socket, driven by the gateway's own upstream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from mocked import answer_of
from pulled import pulled

from penstock.asgi.server import bind_unix
from penstock.cli.wiring.clock import Monotonic
from penstock.config.mock import Fault, MockScript
from penstock.mock import words
from penstock.mock.http.serve import serve_mock
from penstock.mock.script import checked, fault_of
from penstock.observe import samples
from penstock.runtimes.upstream import HttpUpstream
from penstock.wire import engine as protocol
from penstock.wire.embedding import EmbedRequest
from penstock.wire.errors import Problem
from penstock.wire.load import Load, ProgressRequest
from penstock.wire.tokenization import DetokenizeRequest, TokenizeRequest


class Mock:
    """One running mock engine and an upstream that asks it."""

    def __init__(self, socket: str, stop: asyncio.Event, serving: asyncio.Task[None]) -> None:
        self.socket = socket
        self.stop = stop
        self.serving = serving
        self.upstream = HttpUpstream()

    async def events(self, request: protocol.GenerateRequest) -> list[protocol.Event]:
        return [event async for batch in pulled(self.upstream.generate, self.socket, request) for event in batch]

    async def load(self) -> Load:
        return await self.upstream.load(self.socket)


@asynccontextmanager
async def running(directory: Path, script: MockScript) -> AsyncIterator[Mock]:
    path = str(directory / "mock.sock")
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve_mock([bind_unix(path)], model="m", script=checked(script), clock=Monotonic(), stop=stop)
    )
    mock = Mock(path, stop, serving)
    try:
        yield mock
    finally:
        await mock.upstream.close()
        stop.set()
        await serving


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def start(**script: Any) -> Mock:
            return await stack.enter_async_context(running(tmp_path, MockScript(**{"drain_s": 0.5, **script})))

        yield start


def request(id: str = "r", text: str = "hello", seed: int = 7, **fields: Any) -> protocol.GenerateRequest:
    return protocol.GenerateRequest(id=id, sampling=protocol.Sampling(seed=seed), text=text, **fields)


def said(events: list[protocol.Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, protocol.Delta | protocol.Finished))


def ids(events: list[protocol.Event]) -> list[int]:
    return [token for event in events if isinstance(event, protocol.Delta) for token in event.token_ids]


async def undisturbed(mock: Mock, asked: protocol.GenerateRequest) -> list[protocol.Event]:
    return await mock.events(asked)


async def test_an_answer_is_accepted_streamed_and_finished_with_its_usage(start: Any) -> None:
    """One Accepted, one delta per token, one Finished; prompt tokens are the prompt's bytes."""
    mock = await start()
    events = await mock.events(request(max_tokens=20))
    assert isinstance(events[0], protocol.Accepted) and events[0].prompt_tokens == len("hello")
    assert len(ids(events)) == 20 == len(events) - 2
    end = events[-1]
    assert isinstance(end, protocol.Finished)
    assert (end.reason, end.usage) == ("length", protocol.Usage(prompt=5, output=20))
    assert said(events) == answer_of(words.key_of(request(), b"hello"), 20)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 7, 19, 20])
@pytest.mark.parametrize("fields", [{}, {"stop": ["lo"]}, {"logprobs": 2}, {"stop": ["ka "], "logprobs": 0}])
async def test_a_resumed_answer_continues_the_one_before(start: Any, cut: int, fields: dict[str, Any]) -> None:
    """Wherever it was cut, emitted tokens bring the rest of the same tokens and of the same text."""
    mock = await start()
    for seed in range(12):
        whole = await mock.events(request(max_tokens=20, seed=seed, **fields))
        tokens = ids(whole)
        if cut > len(tokens):
            continue
        emitted, text = 0, ""
        for event in whole:
            if isinstance(event, protocol.Delta) and emitted < cut:
                emitted += len(event.token_ids)
                text += event.text
        rest = await mock.events(request("r.2", max_tokens=20, seed=seed, emitted_token_ids=tokens[:cut], **fields))
        assert tokens[:cut] + ids(rest) == tokens
        assert text + said(rest) == said(whole)
        assert rest[-1] == whole[-1] or said(rest[-1:]) != ""


async def test_wrong_emitted_tokens_are_told(start: Any) -> None:
    """A gateway that resumes with tokens that the request does not draw gets an error, not an answer."""
    mock = await start()
    with pytest.raises(Problem, match="never draws"):
        await mock.events(request(emitted_token_ids=[300, 301]))


async def test_a_stop_string_ends_the_answer_before_it(start: Any) -> None:
    """The text ends where the stop string begins, across tokens too."""
    mock = await start()
    whole = said(await mock.events(request(max_tokens=60)))
    stop = whole[37:42]
    events = await mock.events(request(max_tokens=60, stop=[stop]))
    end = events[-1]
    assert isinstance(end, protocol.Finished) and (end.reason, end.stop) == ("stop", stop)
    assert said(events) == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("kind", "code"),
    [("break", "engine_lost"), ("torn", "engine_lost"), ("end", "engine_lost"), ("garbage", "engine_protocol")],
)
async def test_a_fault_strikes_after_its_tokens_and_as_often_as_it_says(start: Any, kind: Any, code: str) -> None:
    """So many tokens arrive, then what the fault says, and the next attempt is whole."""
    mock = await start(faults=(Fault(kind=kind, after=3, times=1),), gap_s=0.001)
    seen: list[protocol.Event] = []
    with pytest.raises(Problem) as raised:
        async for batch in pulled(mock.upstream.generate, mock.socket, request(max_tokens=9)):
            seen += batch
    assert raised.value.code == code
    assert len(ids(seen)) == 3
    assert len(ids(await mock.events(request("r.2", max_tokens=9)))) == 9


async def test_silences_end_when_the_script_says(start: Any) -> None:
    """A stall holds the stream and nothing else, a slow read holds the request; both then go on as if nothing was."""
    faults = (Fault(kind="stall", after=2, seconds=0.15, times=1), Fault(kind="slow-read", seconds=0.15, times=2))
    mock = await start(faults=faults)
    begin = time.monotonic()
    stalled = asyncio.create_task(mock.events(request(max_tokens=6)))
    await asyncio.sleep(0)
    assert (await mock.load()).phase == "ready"
    assert ids(await stalled) == ids(await mock.events(request("b", max_tokens=6)))
    assert time.monotonic() - begin >= 0.3


async def test_failures_and_refusals_carry_their_code(start: Any) -> None:
    """``refuse`` answers with the code's status, ``fail`` ends the stream with it."""
    faults = (Fault(kind="refuse", code="overloaded", times=1), Fault(kind="fail", after=2, code="not_finite"))
    mock = await start(faults=faults)
    with pytest.raises(Problem) as raised:
        await mock.events(request())
    assert raised.value.code == "overloaded"
    events = await mock.events(request())
    assert events[-1] == protocol.Failed(code="not_finite", message="The script says so.") and len(ids(events)) == 2


async def test_the_faults_of_a_share_are_the_same_every_time(start: Any, tmp_path: Path) -> None:
    """Which attempts are struck follows from the seed and their ids."""
    script = MockScript(faults=(Fault(kind="break", share=0.3),), seed=5)
    struck = []
    for turn in range(2):
        (tmp_path / str(turn)).mkdir()
        async with running(tmp_path / str(turn), script) as mock:
            lost = set()
            for number in range(60):
                try:
                    await mock.events(request(str(number), max_tokens=2))
                except Problem:
                    lost.add(number)
            struck.append(lost)
    assert struck[0] == struck[1] and 5 < len(struck[0]) < 35


async def test_leaving_aborts_and_frees_the_slot(start: Any) -> None:
    """A caller that goes away is noticed; the load says so; who waited gets the slot."""
    mock = await start(slots=1, gap_s=0.01)
    leaving = pulled(mock.upstream.generate, mock.socket, request("a"))
    await anext(leaving)
    waiting = asyncio.create_task(mock.events(request("b", max_tokens=3)))
    await until(mock, lambda load: (load.running, load.waiting, load.queued_tokens) == (1, 1, 5))
    await leaving.aclose()
    assert len(ids(await waiting)) == 3
    await until(mock, lambda load: (load.running, load.waiting) == (0, 0))


async def test_abort_cancels_by_id(start: Any) -> None:
    """The abort verb ends what runs under an id with reason cancelled, and an unknown id is no error."""
    mock = await start(gap_s=0.01)
    running = asyncio.create_task(mock.events(request("a")))
    await until(mock, lambda load: load.running == 1)
    for id in ("a", "unknown"):
        await mock.upstream._call(mock.socket, protocol.ABORT, protocol.AbortRequest(id=id))
    end = (await running)[-1]
    assert isinstance(end, protocol.Finished) and end.reason == "cancelled"


async def test_it_says_how_far_its_requests_are(start: Any) -> None:
    """One that is answered has a growing count, one that waits has none, and one that is not here is left out."""
    mock = await start(gap_s=0.02, slots=1)
    running = [asyncio.create_task(mock.events(request(id, max_tokens=25))) for id in ("a", "b")]
    await until(mock, lambda load: (load.running, load.waiting) == (1, 1))
    asked = ProgressRequest(ids=["a", "b", "c"])
    seen = [await mock.upstream.progress(mock.socket, asked)]
    while (said := await mock.upstream.progress(mock.socket, asked)).steps < 10:
        seen.append(said)
        await asyncio.sleep(0.01)
    assert all(set(said.computed) == {"a", "b"} and said.computed["b"] is None for said in seen)
    assert seen[0].steps < said.steps == said.computed["a"] and said.step_limit_s > 0
    await asyncio.gather(*running)


async def test_a_draining_engine_finishes_what_runs(start: Any) -> None:
    """After drain, running streams end as they would, new ones are refused, and the load says draining."""
    mock = await start(gap_s=0.005)
    running = asyncio.create_task(mock.events(request("a", max_tokens=30)))
    await until(mock, lambda load: load.running == 1)
    await mock.upstream._call(mock.socket, protocol.DRAIN, protocol.AbortRequest(id=""))
    assert (await mock.load()).phase == "draining"
    with pytest.raises(Problem, match="no new requests"):
        await mock.events(request("b"))
    assert len(ids(await running)) == 30


async def test_times_are_the_script_s(start: Any) -> None:
    """First token after ttft and prefill, the rest gap by gap."""
    mock = await start(ttft_s=0.05, gap_s=0.01, prefill_tokens_per_s=100.0)
    begin = time.monotonic()
    await mock.events(request(max_tokens=5))
    assert 0.05 + 0.05 + 0.04 <= time.monotonic() - begin < 2.0


async def test_the_other_verbs_answer(start: Any) -> None:
    """Tokens of a text turn back into it, and vectors repeat and have the size that was asked for."""
    mock = await start()
    tokens = await mock.upstream.tokenize(mock.socket, TokenizeRequest(text="né"))
    assert tokens.token_ids == list("né".encode())
    asked = DetokenizeRequest(token_ids=tokens.token_ids)
    assert (await mock.upstream.detokenize(mock.socket, asked)).text == "né"
    wanted = EmbedRequest(id="e", texts=["a", "b", "a"], num_dimensions=3)
    accepted: list[protocol.Accepted] = []
    embedded = await mock.upstream.embed(mock.socket, wanted, accepted.append)
    assert accepted == [protocol.Accepted(prompt_tokens=embedded.prompt_tokens)]
    vectors = embedded.vectors
    assert vectors[0] == vectors[2] != vectors[1] and len(vectors[0]) == 16


async def test_a_mock_that_loads_says_so(start: Any) -> None:
    """While it pretends to load it refuses with not_ready, and then it is ready."""
    mock = await start(load_s=0.2)
    assert (await mock.load()).phase == "loading"
    with pytest.raises(Problem, match="loading"):
        await mock.events(request())
    await until(mock, lambda load: load.phase == "ready")


@pytest.mark.parametrize("body", [b"", b"{", b'{"id":1}', b"\xff", b"[" * 100_000])
async def test_what_is_no_request_is_answered_and_the_connection_goes_on(start: Any, body: bytes) -> None:
    """Any body gets an answer, and the same connection takes the next request."""
    mock = await start()
    reader, writer = await asyncio.open_unix_connection(mock.socket)
    head = f"POST {protocol.GENERATE} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    writer.write(head + body)
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400")
    await reader.readuntil(b"}}")
    writer.write(f"GET {protocol.LOAD} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_reader_that_stands_still_bounds_what_is_written(start: Any) -> None:
    """An endless stream to nobody who reads stops drawing tokens, and goes on when it is read."""
    mock = await start(output_tokens=2_000_000, context_tokens=4_000_000)
    reader, writer = await asyncio.open_unix_connection(mock.socket)
    body = protocol.encode(request())
    writer.write(f"POST {protocol.GENERATE} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    await reader.readuntil(b"accepted")
    drawn = -1
    while drawn != (now := reader._buffer.__len__()):  # type: ignore[attr-defined]
        drawn = now
        await asyncio.sleep(0.1)
    assert drawn < 1_000_000
    writer.close()


def test_a_fault_is_written_as_kind_and_fields() -> None:
    """What the command line says becomes a fault; what it cannot mean is refused with the kinds there are."""
    assert fault_of("break:after=5,share=0.25,times=2") == Fault(kind="break", after=5, share=0.25, times=2)
    for wrong in ("explode", "break:after=x", "break:afer=1"):
        with pytest.raises(Problem, match="kinds: refuse"):
            fault_of(wrong)


@pytest.mark.parametrize(
    "fields",
    [{"gap_s": -1.0}, {"output_tokens": 0}, {"jitter": 1.5}, {"ttft_s": float("nan")}, {"ttft_s": float("inf")}],
)
def test_a_script_that_cannot_be_meant_is_refused(fields: dict[str, Any]) -> None:
    """Counts, times and shares have their ranges."""
    with pytest.raises(Problem):
        checked(MockScript(**fields))
    assert msgspec.json.decode(msgspec.json.encode(MockScript()), type=MockScript) == MockScript()


async def until(mock: Mock, holds: Callable[[Load], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            with suppress(Problem):
                if holds(await mock.load()):
                    return
            await asyncio.sleep(0.005)


async def test_it_speaks_openai_s_chat_too(start: Any) -> None:
    """The same tokens in OpenAI's dialect, streamed or whole, for gateways that know no engine protocol."""
    mock = await start()
    key = words.key_of(request(text="user\nhi\n", seed=3), b"user\nhi\n")
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 3, "max_tokens": 9}
    connector = aiohttp.UnixConnector(path=mock.socket)
    async with aiohttp.ClientSession(connector=connector, base_url="http://mock") as session:
        async with session.post("/v1/chat/completions", json=asked) as answer:
            whole = await answer.json()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with session.post("/v1/chat/completions", json=asked | options) as answer:
            lines = [line[6:].strip() async for line in answer.content if line.startswith(b"data: ")]
    assert whole["choices"][0]["message"]["content"] == answer_of(key, 9)
    *chunks, done = lines
    events = [msgspec.json.decode(line) for line in chunks]
    assert done == b"[DONE]" and events[-1]["usage"] == whole["usage"]
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == answer_of(key, 9)


async def test_a_failure_in_openais_dialect_ends_the_body(start: Any) -> None:
    """The error is the last frame, and the connection is free for the next request."""
    mock = await start(faults=(Fault(kind="fail", after=2, code="overloaded", times=1),))
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
    connector = aiohttp.UnixConnector(path=mock.socket)
    async with (
        aiohttp.ClientSession(connector=connector, base_url="http://mock") as session,
        asyncio.timeout(5),
    ):
        async with session.post("/v1/chat/completions", json=asked) as answer:
            body = await answer.read()
        async with session.post("/v1/chat/completions", json=asked) as answer:
            assert (await answer.read()).endswith(b"[DONE]\n\n")
    assert b'"overloaded"' in body.split(b"\n\n")[-2] and b"[DONE]" not in body


async def test_it_counts_what_it_has_drawn(start: Any) -> None:
    """Per attempt that ended, whoever ended it: the other side of any ledger."""
    mock = await start(gap_s=0.001)
    await mock.events(request(max_tokens=20))
    async with aclosing(pulled(mock.upstream.generate, mock.socket, request("r2"))) as batches:
        async for _ in batches:
            break
    connector = aiohttp.UnixConnector(path=mock.socket)
    async with aiohttp.ClientSession(connector=connector, base_url="http://mock") as session, asyncio.timeout(5):
        counts: dict[str, float] = {}
        while counts.get("penstock_engine_sequences_total cancelled") != 1:
            async with session.get(protocol.METRICS) as answer:
                found = samples.decode(await answer.read())
            counts = {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in found}
    assert counts["penstock_engine_sequences_total length"] == 1
    assert counts["penstock_engine_sequence_tokens_total prompt"] == 10
    assert 20 <= counts["penstock_engine_sequence_tokens_total output"] <= 40
