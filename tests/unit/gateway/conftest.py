"""Scripted engines on real Unix sockets, and a real gateway in front of them on a real TCP socket."""

from __future__ import annotations

import asyncio
import base64
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from penstock.cli.wiring.clock import Monotonic
from penstock.config.desired import Acknowledgement, DesiredState, Model, Replica
from penstock.config.settings import GatewaySettings
from penstock.config.tenants import TOP, Access, Rights, Tenant
from penstock.events.list import Event as HouseEvent
from penstock.events.list import RequestEnded
from penstock.gateway.http.serve import serve_gateway
from penstock.gateway.identify import Identify
from penstock.wire import engine as protocol
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.errors import Problem
from penstock.wire.load import Load, Phase
from penstock.wire.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest


@dataclass(frozen=True)
class Behaviour:
    """How one attempt is answered.  ``*_after`` counts tokens of this attempt."""

    cut_after: int | None = None
    cut_inside_line: bool = False
    clean_end: bool = False
    fail_after: int | None = None
    fail_code: str = "internal_error"
    refuse: str | None = None
    gap_s: float = 0.0
    first_s: float = 0.0


def token_of(seed: int, position: int) -> int:
    """What the scripted engine draws: a function of seed and position, as the protocol demands."""
    return random.Random(f"{seed}/{position}").randrange(1000)


def word(token_id: int) -> str:
    return f"w{token_id}é "


def undisturbed(seed: int, num_tokens: int) -> str:
    return "".join(word(token_of(seed, position)) for position in range(num_tokens))


@dataclass
class ScriptedEngine:
    """Speaks the engine protocol.  Its text runs one token behind, so that resuming has something to restore."""

    socket: str
    behave: Callable[[protocol.GenerateRequest], Behaviour] = lambda request: Behaviour()
    behave_embed: Callable[[EmbedRequest], Behaviour] = lambda request: Behaviour()
    phase: Phase = "ready"
    exact: bool = False
    context_tokens: int = 4096
    waiting: int = 0
    requests: list[protocol.GenerateRequest] = field(default_factory=list)
    embedded: list[EmbedRequest] = field(default_factory=list)
    sent_tokens: int = 0
    running: int = 0
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post(protocol.GENERATE, self._generate)
        app.router.add_post(protocol.EMBED, self._embed)
        app.router.add_get(protocol.LOAD, self._load)
        app.router.add_post(protocol.TOKENIZE, self._tokenize)
        app.router.add_post(protocol.DETOKENIZE, self._detokenize)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.UnixSite(self._runner, self.socket, backlog=4096).start()

    async def kill(self) -> None:
        """Every connection breaks, and nobody listens any more."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        assert runner.server is not None
        for connection in list(runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
        Path(self.socket).unlink(missing_ok=True)

    async def _load(self, request: web.Request) -> web.Response:
        load = Load(
            phase=self.phase, model="m", context_tokens=self.context_tokens, exact=self.exact, waiting=self.waiting
        )
        return web.Response(body=protocol.encode(load))

    async def _tokenize(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=TokenizeRequest)
        texts = list(asked.text or "".join(str(message["content"]) for message in asked.messages or []))
        ids = [ord(text) for text in texts]
        return web.Response(body=protocol.encode(Tokenized(token_ids=ids, token_texts=texts, context_tokens=4096)))

    async def _detokenize(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=DetokenizeRequest)
        return web.Response(body=protocol.encode(Detokenized(text="".join(map(chr, asked.token_ids)))))

    async def _embed(self, http: web.Request) -> web.StreamResponse:
        """One number per input, the text's length, after ``first_s``; ``cut_after`` breaks the connection instead."""
        request = msgspec.json.decode(await http.read(), type=EmbedRequest)
        self.embedded.append(request)
        how = self.behave_embed(request)
        if how.refuse:
            problem = Problem(how.refuse, "scripted")
            return web.Response(status=problem.spec.status, body=msgspec.json.encode(problem.body()))
        inputs = request.texts or request.token_ids or []
        num_tokens = sum(map(len, inputs))
        response = web.StreamResponse()
        await response.prepare(http)
        await response.write(protocol.encode_line(protocol.Accepted(prompt_tokens=num_tokens)))
        self.running += 1
        try:
            await asyncio.sleep(how.first_s)
        finally:
            self.running -= 1
        if how.cut_after is not None:
            assert http.transport is not None
            http.transport.abort()
        vectors = [base64.b64encode(struct.pack("<f", len(item))).decode() for item in inputs]
        embedded = Embedded(vectors=vectors, prompt_tokens=num_tokens, cached_tokens=1)
        await response.write(protocol.encode_line(embedded))
        return response

    async def _generate(self, http: web.Request) -> web.StreamResponse:
        request = msgspec.json.decode(await http.read(), type=protocol.GenerateRequest)
        self.requests.append(request)
        behaviour = self.behave(request)
        if behaviour.refuse:
            problem = Problem(behaviour.refuse, "scripted")
            return web.Response(status=problem.spec.status, body=msgspec.json.encode(problem.body()))
        response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await response.prepare(http)
        self.running += 1
        try:
            await self._stream(http, response, request, behaviour)
        finally:
            self.running -= 1
        return response

    async def _stream(
        self, http: web.Request, response: web.StreamResponse, request: protocol.GenerateRequest, how: Behaviour
    ) -> None:
        async def line(event: protocol.Event) -> None:
            await response.write(protocol.encode_line(event))

        prompt = request.text or "".join(str(message["content"]) for message in request.messages or [])
        num_prompt = len(prompt.split()) or len(request.token_ids or [])
        await line(self._accepted(request, prompt, num_prompt))
        await asyncio.sleep(how.first_s)
        ids = [*request.emitted_token_ids]
        max_tokens = 16 if request.max_tokens is None else request.max_tokens
        num_new = 0
        while len(ids) < max_tokens:
            if num_new == how.cut_after:
                await self._cut(http, response, how)
                return
            if num_new == how.fail_after:
                await line(protocol.Failed(code=how.fail_code, message="scripted"))
                return
            ids.append(token_of(request.sampling.seed, len(ids)))
            text = word(ids[-2]) if len(ids) > 1 else ""
            entry = self._entry(ids[-1], request.logprobs or 0)
            logprobs = None if request.logprobs is None else [entry]
            await line(protocol.Delta(token_ids=[ids[-1]], text=text, logprobs=logprobs))
            num_new += 1
            self.sent_tokens += 1
            await asyncio.sleep(how.gap_s)
        if num_new == how.cut_after:
            await self._cut(http, response, how)
            return
        usage = protocol.Usage(prompt=num_prompt, cached=1, output=len(ids))
        await line(protocol.Finished(reason="length", usage=usage, text=word(ids[-1]) if ids else ""))

    async def _cut(self, http: web.Request, response: web.StreamResponse, how: Behaviour) -> None:
        assert http.transport is not None
        if how.cut_inside_line:
            await response.write(b'{"type":"delta","token_ids":[1],"te')
        if not how.clean_end:
            # Half-written bytes go out before the connection breaks.
            await asyncio.sleep(0)
            http.transport.close()

    def _accepted(self, request: protocol.GenerateRequest, prompt: str, num_prompt: int) -> protocol.Accepted:
        if not request.echo:
            return protocol.Accepted(prompt_tokens=num_prompt)
        scores = None
        if request.logprobs is not None:
            first = protocol.TokenLogprob(1, prompt, None, list(prompt.encode()), [])
            scores = [first]
        return protocol.Accepted(prompt_tokens=num_prompt, prompt_text=prompt, prompt_logprobs=scores)

    def _entry(self, token_id: int, num_top: int) -> protocol.TokenLogprob:
        text = word(token_id)
        top = [protocol.TopLogprob(i, f"a{i}", -0.5 - i, [97]) for i in range(num_top)]
        return protocol.TokenLogprob(token_id, text, -0.25, list(text.encode()), top)


SERVER_SECRET = b"s" * 32
NOBODY = Access(version=1, tenants=(Tenant(name=TOP, rights=Rights(role="admin")),))


@dataclass
class World:
    """A gateway, its engines and what it said."""

    port: int
    control_socket: str
    engines: list[ScriptedEngine]
    events: list[HouseEvent]
    acknowledged: list[Acknowledgement]
    states: asyncio.Queue[DesiredState]
    stop: asyncio.Event
    serving: asyncio.Task[None]
    news: asyncio.Queue[Access | Problem]
    denials: list[tuple[str, str]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ended(self) -> list[RequestEnded]:
        return [event for event in self.events if isinstance(event, RequestEnded)]

    def desired(self, version: int, **changes: Any) -> DesiredState:
        replicas = [Replica(id=f"r{index}", socket=engine.socket) for index, engine in enumerate(self.engines)]
        models = [Model(name="org/m", replicas=replicas, created=7)]
        fields: dict[str, Any] = {"version": version, "models": models}
        return DesiredState(**(fields | changes))

    async def in_flight(self) -> int:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=self.control_socket)) as session,
            session.get("http://gateway/gateway/load") as response,
        ):
            return int((await response.json())["in_flight"])

    async def exchange(self, raw: bytes, *, until: bytes | None = None) -> bytes:
        """Send bytes on a fresh connection; what comes back until ``until`` or the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(raw)
            if until is not None:
                return await reader.readuntil(until)
            return await reader.read()
        finally:
            writer.close()


async def eventually(condition: Callable[[], Awaitable[bool] | bool], within_s: float = 5.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(within_s):
        while True:
            holds = condition()
            if holds is True or (not isinstance(holds, bool) and await holds):
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running_world(
    directory: Path,
    num_engines: int,
    *,
    access: Access = NOBODY,
    open_without_keys: bool = True,
    ready: bool = True,
    **settings: Any,
) -> AsyncIterator[World]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    engines = [ScriptedEngine(str(directory / f"e{index}.sock")) for index in range(num_engines)]
    states: asyncio.Queue[DesiredState] = asyncio.Queue()
    events: list[HouseEvent] = []
    acknowledged: list[Acknowledgement] = []
    stop = asyncio.Event()

    async def watch() -> AsyncIterator[DesiredState]:
        while True:
            yield await states.get()

    chosen = GatewaySettings(
        **{
            "gateway": "g",
            "control_socket": str(directory / "g.sock"),
            "store_path": "",
            "home": "",
            "access_url": "",
            "listen_fd": listener.fileno(),
            "resume_timeout_s": 5.0,
            **settings,
        }
    )
    denials: list[tuple[str, str]] = []
    identify = Identify(
        SERVER_SECRET, time.time, lambda *denial: denials.append(denial), open_without_keys=open_without_keys
    )
    news: asyncio.Queue[Access | Problem] = asyncio.Queue()
    news.put_nowait(access)

    async def watch_access() -> AsyncIterator[Access | Problem]:
        while True:
            yield await news.get()

    for engine in engines:
        await engine.start()
    serving = asyncio.create_task(
        serve_gateway(
            chosen,
            clock=Monotonic(),
            states=watch(),
            identify=identify,
            access=watch_access(),
            acknowledge=acknowledged.append,
            emit=events.append,
            samples=lambda: [{"name": "x"}],
            recall=lambda limits: asyncio.sleep(0),
            stop=stop,
        )
    )
    world = World(
        listener.getsockname()[1],
        chosen.control_socket,
        engines,
        events,
        acknowledged,
        states,
        stop,
        serving,
        news,
        denials,
    )
    if engines:
        states.put_nowait(world.desired(1))
        if ready:
            await eventually(lambda: is_ready(world))
    try:
        yield world
    finally:
        for engine in engines:
            await engine.kill()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()


async def is_ready(world: World) -> bool:
    head = await world.exchange(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n", until=b"\r\n")
    return b" 200 " in head


@pytest.fixture
async def start_world(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[World]]]:
    """``await start_world(num_engines, **gateway settings)``."""
    async with AsyncExitStack() as stack:

        async def start(num_engines: int = 1, **settings: Any) -> World:
            return await stack.enter_async_context(running_world(tmp_path, num_engines, **settings))

        yield start


@pytest.fixture
def make_behaviour() -> type[Behaviour]:
    return Behaviour


@pytest.fixture
def script() -> Any:
    """The scripted engine's functions, for tests to compute what is right."""

    class Script:
        text = staticmethod(undisturbed)
        token = staticmethod(token_of)
        until = staticmethod(eventually)
        ready = staticmethod(is_ready)

    return Script
