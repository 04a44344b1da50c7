"""The visible pipeline: what every data request passes, in order.

    open (admit, count) -> find the model -> forward (route, resume, merge) -> meter -> one RequestEnded

In: decoded requests; out: engine events per choice, or a ``Problem``.  Knows neither HTTP nor a dialect.
``Gateway.open`` is the one admission function: no data route reaches an engine without it.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeVar

from penstock.events.list import RequestReceived
from penstock.gateway.call import Call
from penstock.gateway.forward import Forwarder
from penstock.gateway.merge import merge
from penstock.gateway.replicas import ModelState, Replicas
from penstock.gateway.upstream import Upstream
from penstock.policy.retry import RetryRules
from penstock.ports import Clock, Emit
from penstock.wire.engine import Embedded, EmbedRequest, Event, GenerateRequest
from penstock.wire.errors import Problem

T = TypeVar("T")

_BYTES_PER_TOKEN = 4


class Gateway:
    """The pipeline and what it counts.  ``in_flight`` is the number of open calls, exactly."""

    def __init__(self, replicas: Replicas, upstream: Upstream, rules: RetryRules, clock: Clock, emit: Emit) -> None:
        self.replicas = replicas
        self.upstream = upstream
        self.in_flight = 0
        self._forwarder = Forwarder(replicas, upstream, rules, clock, emit)
        self._clock = clock
        self._emit = emit

    @property
    def draining(self) -> bool:
        """The desired state admits no new requests."""
        return self.replicas.version > 0 and not self.replicas.admitting

    @contextmanager
    def open(self, route: str) -> Iterator[Call]:
        """One data request: admitted or refused, counted, and ended by exactly one ``RequestEnded``."""
        call = Call(id=uuid.uuid4().hex, route=route, started=self._clock.now())
        self._emit(RequestReceived(route=route))
        self.in_flight += 1
        error: BaseException | None = None
        try:
            self._admit()
            yield call
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.in_flight -= 1
            self._emit(call.ended(error, self._clock.now()))

    def find(self, call: Call, model: str | None) -> ModelState:
        """The model that is asked for; ``None``: the only one there is.  Raises ``Problem`` ``model_not_found``."""
        if model is None:
            models = self.replicas.models
            if len(models) != 1:
                raise Problem("invalid_value", "model is required and missing.", param="model")
            model = models[0].model.name
        state = self.replicas.find(model)
        call.model = model
        return state

    async def generate(
        self, call: Call, choices: list[GenerateRequest], body_bytes: int
    ) -> AsyncGenerator[tuple[int, list[Event]], None]:
        """Events of all choices as they come, metered; ends when every choice has finished."""
        prompt_tokens = body_bytes // _BYTES_PER_TOKEN // max(len(choices) // call.choices_per_prompt, 1)
        sources = [self._forwarder.stream(call.model, choice, prompt_tokens) for choice in choices]
        async with aclosing(merge(sources)) as merged:
            async for index, events in merged:
                call.note(index, events, self._clock.now())
                yield index, events

    async def exchange(self, call: Call, send: Callable[[str], Awaitable[T]]) -> T:
        """One question and one answer; ``send`` is given a replica's socket."""
        return await self._forwarder.call(call.model, send)

    async def embed(self, call: Call, request: EmbedRequest, body_bytes: int) -> Embedded:
        """The vectors of all inputs, metered."""
        embedded = await self._forwarder.call(
            call.model, lambda socket: self.upstream.embed(socket, request), body_bytes // _BYTES_PER_TOKEN
        )
        call.note_embedded(embedded)
        return embedded

    def _admit(self) -> None:
        if self.draining:
            raise Problem("draining", "This server is shutting down and takes no new requests.", retry_after_s=1.0)
