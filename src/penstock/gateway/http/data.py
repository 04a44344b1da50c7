"""The data routes: decode, hand to the pipeline, write what comes back.

In: a body that was read and its exchange; out: one response.  The dialect is ``wire.openai``'s.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from penstock.asgi.respond import JSON, Header
from penstock.gateway.call import Call, ClientGone
from penstock.gateway.http.pipe import Pipe
from penstock.gateway.http.presence import Presence
from penstock.gateway.http.rate_limit import rate_limit_headers
from penstock.gateway.http.stream import EventStream
from penstock.gateway.http.streamed import Streamed, StreamRenderer
from penstock.gateway.pipeline import Gateway
from penstock.wire import sse
from penstock.wire.engine import Event, GenerateRequest
from penstock.wire.errors import Problem
from penstock.wire.openai import chat, completions, listing
from penstock.wire.openai.chat_answer import ChatBody, ChatStream
from penstock.wire.openai.completions_answer import CompletionBody, CompletionStream

_STREAM_HEADERS: list[Header] = [
    (b"content-type", sse.CONTENT_TYPE),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class HttpRules(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one HTTP exchange.  Bytes and seconds."""

    max_body_bytes: int = 8 * 1024 * 1024
    max_copied_bytes: int = 64 * 1024 * 1024
    """``n`` times the body: every choice carries its prompt to an engine."""
    body_timeout_s: float = 30.0
    keep_alive_s: float = 15.0


class BodyRenderer(Protocol):
    def push(self, index: int, events: list[Event]) -> None: ...
    def body(self) -> bytes: ...


@dataclass(slots=True, eq=False)
class Exchange:
    """One data request's HTTP side.  ``stream`` is set once the answer is to be streamed."""

    gateway: Gateway
    call: Call
    rules: HttpRules
    pipe: Pipe
    headers: list[Header]
    stream: EventStream | None = None
    presence: Presence | None = None

    def watch(self, presence: Presence) -> None:
        """From now on a client that goes away cancels the running task."""
        task = asyncio.current_task()
        assert task is not None
        self.presence = presence
        presence.watch(lambda: _cancel(task, self.call))

    def unwatch(self) -> None:
        """Before the last message: a client that has all of it may leave."""
        if self.presence is not None:
            self.presence.unwatch()

    def find(self, model: str | None, user: str | None = None, beginning: Callable[[], bytes] = bytes) -> None:
        """Which model is meant.  ``user`` and ``beginning`` (of a conversation) keep to one side of a split name."""
        self.gateway.find(self.call, model, user or "", beginning)

    def limits(self) -> list[Header]:
        """How the caller's limits stand."""
        return [header for standing in self.call.standings for header in rate_limit_headers(standing)]

    def _answered(self) -> list[Header]:
        """Who answers, and how the limits stand."""
        return [(b"x-penstock-model", self.call.model.encode("latin-1", "replace")), *self.limits()]

    def _guarantee(self) -> Header:
        """What a caller may expect where an engine is lost on the way."""
        exact = self.gateway.replicas.is_exact(self.call.model)
        return b"x-penstock-resume", b"exact" if exact else b"prefix-preserved"

    async def answer(self, body: bytes, *headers: Header) -> None:
        self.unwatch()
        await self.pipe.answer([JSON, *self.headers, *headers, *self._answered()], body)

    async def write_stream(
        self, choices: list[GenerateRequest], renderer_of: Callable[[str], StreamRenderer], body_bytes: int
    ) -> None:
        """Stream every choice.  ``renderer_of`` is told the model that answers, which the first event settles."""
        head = [*_STREAM_HEADERS, *self.headers]
        stream = self.stream = EventStream(self.pipe, head, self.rules.keep_alive_s)
        answer = Streamed(stream, lambda: renderer_of(self.call.model), lambda: self._begin(head), len(choices))
        await self.gateway.generate(self.call, choices, body_bytes, answer.give)
        self.unwatch()
        await answer.end()

    async def write_body(
        self, choices: list[GenerateRequest], renderer_of: Callable[[str], BodyRenderer], body_bytes: int
    ) -> None:
        """Collect every choice and answer at once.  ``renderer_of`` as of :meth:`write_stream`."""
        renderer: BodyRenderer | None = None

        def give(index: int, events: list[Event]) -> None:
            nonlocal renderer
            if renderer is None:
                renderer = renderer_of(self.call.model)
            renderer.push(index, events)

        await self.gateway.generate(self.call, choices, body_bytes, give)
        assert renderer is not None, "the choices ended without being finished"
        await self.answer(renderer.body(), self._guarantee())

    def _begin(self, head: list[Header]) -> None:
        """The answer begins now: what its head says of the model that gives it."""
        self.call.response_started = True
        head += (self._guarantee(), *self._answered())


Handler = Callable[[Exchange, bytes], Awaitable[None]]


def _cancel(task: asyncio.Task[Any], call: Call) -> None:
    call.client_gone = True
    task.cancel()


async def while_connected(exchange: Exchange, presence: Presence, handle: Handler, body: bytes) -> None:
    """Run a handler.  Raises ``ClientGone`` in its place, and cancels it, when the client goes away."""
    exchange.watch(presence)
    try:
        await handle(exchange, body)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if exchange.call.client_gone and task is not None and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        exchange.unwatch()


async def chat_completions(exchange: Exchange, body: bytes) -> None:
    """POST /v1/chat/completions"""
    call, request = exchange.call, chat.decode(body)
    _check_copies(exchange.rules, request.choices_per_prompt, body)
    call.streamed, call.choices_per_prompt = bool(request.stream), request.choices_per_prompt
    exchange.find(request.model, request.user, request.beginning)
    exchange.gateway.prioritise(call, request.priority)
    choices = chat.engine_requests(request, call.id, _draw_seed())
    id, created, count = f"chatcmpl-{call.id}", int(time.time()), request.num_choices
    if request.stream:
        usage = request.include_usage
        await exchange.write_stream(
            choices, lambda model: ChatStream(id, model, created, count, include_usage=usage), len(body)
        )
    else:
        await exchange.write_body(choices, lambda model: ChatBody(id, model, created, count), len(body))


async def text_completions(exchange: Exchange, body: bytes) -> None:
    """POST /v1/completions"""
    call, request = exchange.call, completions.decode(body)
    _check_copies(exchange.rules, request.choices_per_prompt, body)
    call.streamed, call.choices_per_prompt = bool(request.stream), request.choices_per_prompt
    exchange.find(request.model, request.user, request.beginning)
    exchange.gateway.prioritise(call, request.priority)
    choices = completions.engine_requests(request, call.id, _draw_seed())
    id, created, counts = f"cmpl-{call.id}", int(time.time()), (request.num_choices, request.choices_per_prompt)
    if request.stream:
        usage = request.include_usage
        await exchange.write_stream(
            choices, lambda model: CompletionStream(id, model, created, *counts, include_usage=usage), len(body)
        )
    else:
        await exchange.write_body(choices, lambda model: CompletionBody(id, model, created, *counts), len(body))


async def tokenize(exchange: Exchange, body: bytes) -> None:
    """POST /tokenize"""
    request = listing.decode_tokenize(body)
    exchange.find(request.model)
    question = listing.tokenize_request(request)
    upstream = exchange.gateway.upstream
    tokens = await exchange.gateway.exchange(exchange.call, lambda socket: upstream.tokenize(socket, question))
    await exchange.answer(listing.tokenize_answer(request, tokens))


async def detokenize(exchange: Exchange, body: bytes) -> None:
    """POST /detokenize"""
    request = listing.decode_detokenize(body)
    exchange.find(request.model)
    question = listing.detokenize_request(request)
    upstream = exchange.gateway.upstream
    text = await exchange.gateway.exchange(exchange.call, lambda socket: upstream.detokenize(socket, question))
    await exchange.answer(listing.detokenize_answer(text))


def _check_copies(rules: HttpRules, choices_per_prompt: int, body: bytes) -> None:
    if choices_per_prompt * len(body) > rules.max_copied_bytes:
        message = f"n is {choices_per_prompt}; for a body of {len(body)} bytes at most "
        raise Problem("invalid_value", f"{message}{rules.max_copied_bytes // len(body)} are allowed.", param="n")


def _draw_seed() -> int:
    """A seed for a request that brings none, so that its resumption draws the same tokens."""
    return int.from_bytes(os.urandom(8)) >> 1
