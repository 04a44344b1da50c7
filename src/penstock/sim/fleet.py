"""Simulated engines behind the gateway's upstream port: mock engines on virtual time, which can be killed and stalled.

In: requests of the engine protocol; out: its events, or what a broken connection raises.  Production's counterpart is
``runtimes.upstream``; a request takes the same turns at an engine here and there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from penstock.config.mock import MockScript
from penstock.gateway.upstream import Accept, Push
from penstock.mock import words
from penstock.mock.engine import Attempt, MockEngine
from penstock.sim.loop import LoopClock
from penstock.wire import engine as protocol
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.errors import Problem
from penstock.wire.load import Load, Progress, ProgressRequest
from penstock.wire.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

_QUESTION_S = 5.0


class Life:
    """One incarnation of an engine, until it is killed.

    ``stalled_until``: nothing happens here before.  ``wedged``: it says how it is, as before, and computes no more.
    """

    def __init__(self, script: MockScript) -> None:
        self.mock = MockEngine("mock", script, LoopClock())
        self.alive = True
        self.stalled_until = 0.0
        self.wedged = False
        self._waiting: dict[asyncio.Future[None], None] = {}

    def kill(self) -> None:
        """Every connection breaks."""
        self.alive = False
        for waiting in list(self._waiting):
            if not waiting.done():
                waiting.set_exception(lost())

    async def sleep(self, seconds: float) -> None:
        """Let time pass here.  Raises ``engine_lost`` at once when it is killed meanwhile."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(max(seconds, self.stalled_until - loop.time()), _wake, waiting)
        await self._until(waiting)
        timer.cancel()
        if self.stalled_until > loop.time():
            await self.sleep(0)

    async def compute(self, seconds: float) -> None:
        """:meth:`sleep` until a token is there, which a wedged engine never comes to."""
        await self.sleep(seconds)
        if self.wedged:
            await self._until(asyncio.get_running_loop().create_future())

    async def slot(self, attempt: Attempt) -> None:
        """Wait for its turn."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        attempt.begin = lambda: _wake(waiting)
        self.mock.admit()
        await self._until(waiting)

    async def _until(self, waiting: asyncio.Future[None]) -> None:
        if not self.alive:
            raise lost()
        self._waiting[waiting] = None
        try:
            await waiting
        finally:
            del self._waiting[waiting]


class SimulatedFleet:
    """Implements ``gateway.upstream.Upstream``.  ``lives`` by socket; who is not in it does not listen."""

    def __init__(self, latency_s: float = 0.0005) -> None:
        self.lives: dict[str, Life] = {}
        self._latency_s = latency_s

    def start(self, socket: str, script: MockScript) -> Life:
        """A new process answers there."""
        life = self.lives[socket] = Life(script)
        return life

    def kill(self, socket: str) -> None:
        """The process is gone."""
        life = self.lives.pop(socket, None)
        if life is not None:
            life.kill()

    @property
    def num_open(self) -> int:
        """Sequences at all engines."""
        return sum(life.mock.num_open for life in self.lives.values())

    async def generate(self, socket: str, request: protocol.GenerateRequest, push: Push) -> None:
        life = await self._reach(socket)
        attempt = life.mock.open(request)
        answer = attempt.answer
        try:
            await _pushed(push([answer.accepted()]))
            await life.slot(attempt)
            await life.compute(life.mock.first_delay_s(attempt))
            while not answer.is_over:
                life.mock.num_tokens += 1
                await _pushed(push([answer.delta([answer.next_token()])]))
                await life.compute(life.mock.gap_s(attempt))
            await _pushed(push([answer.finished()]))
        finally:
            life.mock.close(attempt)

    async def embed(self, socket: str, request: EmbedRequest, accept: Accept) -> Embedded:
        life = await self._reach(socket)
        embedded = words.embedded(request)
        accept(protocol.Accepted(prompt_tokens=embedded.prompt_tokens))
        await life.sleep(life.mock.script.ttft_s)
        return embedded

    async def load(self, socket: str) -> Load:
        return (await self._reach_soon(socket)).mock.load()

    async def progress(self, socket: str, request: ProgressRequest) -> Progress:
        return (await self._reach_soon(socket)).mock.progress(request.ids)

    async def tokenize(self, socket: str, request: TokenizeRequest) -> Tokenized:
        ids = list(words.prompt_bytes(request))
        context = (await self._reach(socket)).mock.script.context_tokens
        return Tokenized(token_ids=ids, token_texts=[chr(i) for i in ids], context_tokens=context)

    async def detokenize(self, socket: str, request: DetokenizeRequest) -> Detokenized:
        await self._reach(socket)
        return Detokenized(text=words.text_of(request.token_ids))

    async def forget(self, socket: str) -> None:
        """There are no connections to close."""

    async def _reach_soon(self, socket: str) -> Life:
        """:meth:`_reach`, given up on as production gives up on a question about how an engine is."""
        try:
            async with asyncio.timeout(_QUESTION_S):
                return await self._reach(socket)
        except TimeoutError:
            raise lost() from None

    async def _reach(self, socket: str) -> Life:
        await asyncio.sleep(self._latency_s)
        life = self.lives.get(socket)
        if life is None:
            raise lost()
        await life.sleep(0)
        return life


def lost() -> Problem:
    """What a broken connection raises."""
    return Problem("engine_lost", "The engine cannot be reached or broke off the connection.")


async def _pushed(wait: Awaitable[None] | None) -> None:
    if wait is not None:
        await wait


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
