"""The visible pipeline: the stages that every data request passes, in order.

    identify -> limit -> route -> forward -> meter

In: credentials and decoded requests; out: engine events per choice, given as they come, or a ``Problem``.
Knows no HTTP and no dialect.
``Gateway.open`` is the one admission function: no data route reaches an engine without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple, TypeVar

from penstock.gateway.call import Call
from penstock.gateway.delivery import CutError, Delivery, Give
from penstock.gateway.forward import Forwarder, expected_tokens
from penstock.gateway.identify import Credentials, Identify
from penstock.gateway.limit import Limit
from penstock.gateway.meter import Meter
from penstock.gateway.replica import ModelState
from penstock.gateway.replicas import Replicas
from penstock.gateway.route import Offer, Router
from penstock.gateway.shadow import Shadows
from penstock.gateway.together import together
from penstock.gateway.upstream import Upstream
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.engine import Accepted, GenerateRequest
from penstock.wire.errors import Problem

T = TypeVar("T")

_BYTES_PER_TOKEN = 4


class Stages(NamedTuple):
    """The pipeline itself.  Each stage sees the call after those before it; ``Gateway`` says when it acts."""

    identify: Identify
    limit: Limit
    route: Router
    forward: Forwarder
    meter: Meter


class Gateway:
    """Takes every data request through the stages.  ``shadows`` gets the copies; ``None``: there are none."""

    def __init__(self, replicas: Replicas, upstream: Upstream, stages: Stages, shadows: Shadows | None = None) -> None:
        self.shadows = shadows
        self.replicas = replicas
        self.upstream = upstream
        self.stages = stages

    @property
    def in_flight(self) -> int:
        """Open calls, exactly."""
        return self.stages.meter.in_flight

    @property
    def draining(self) -> bool:
        """The desired state admits no new requests."""
        return self.stages.limit.draining

    @property
    def ready(self) -> bool:
        """New requests are taken and would be served."""
        return self.replicas.ready and self.stages.identify.informed

    @contextmanager
    def open(self, route: str, credentials: Credentials) -> Iterator[Call]:
        """One data request: admitted or refused, counted, and ended by exactly one ``RequestEnded``."""
        call = self.stages.meter.begin(route)
        error: BaseException | None = None
        try:
            call.principal = self.stages.identify.arrive(credentials)
            self.stages.limit.arrive(call)
            self.stages.limit.prioritise(call, None)
            yield call
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.stages.limit.end(call, self.stages.meter.end(call, error))

    def visible(self, credentials: Credentials) -> list[Offer]:
        """The models and names that the caller may see, for the listings: identified as ever, and not counted."""
        return self.stages.route.visible(self.stages.identify.arrive(credentials))

    def find(self, call: Call, model: str | None, user: str = "", beginning: Callable[[], bytes] = bytes) -> ModelState:
        """The model that is asked for; ``None``: the only one there is.  Raises ``Problem`` ``model_not_found``.

        ``user``, or the ``beginning`` of the conversation, keeps to one side of a name that is split.
        """
        return self.stages.route.find(call, model, user, beginning)

    def prioritise(self, call: Call, asked: int | None) -> None:
        """How urgent the call is, as its body asks.  Raises ``Problem`` ``permission_denied``."""
        self.stages.limit.prioritise(call, asked)

    async def generate(self, call: Call, choices: list[GenerateRequest], body_bytes: int, give: Give) -> None:
        """Give the events of all choices as they come, metered; return when every choice has finished.

        Raises ``Problem``; before anything was given where the caller's limits do not allow it.
        """
        call.num_choices = len(choices)
        await self.stages.limit.reserve(call, body_bytes, choices)
        first: Problem | None = None
        while True:
            try:
                await self._generate(call, choices, body_bytes, give)
                return
            except Problem as problem:
                # By the first model of the chain whose engine takes a choice up.  Where none does, the first one's
                # problem stands.
                if call.accepted or len(call.chain) < 2:
                    raise
                first = first or problem
                if not await self._next_model(call, problem, choices, body_bytes):
                    call.model = call.chain[0]
                    raise first from None

    async def _next_model(self, call: Call, problem: Problem, choices: list[GenerateRequest], body_bytes: int) -> bool:
        """Move the call to the next model of its chain, with what it holds of its limits."""
        while self.stages.route.fall_back(call, problem):
            self.stages.limit.withdraw(call)
            try:
                await self.stages.limit.reserve(call, body_bytes, choices)
                return True
            except Problem:
                continue  # that model has limits of its own, and how they stand is not what is told
        return False

    async def _generate(self, call: Call, choices: list[GenerateRequest], body_bytes: int, give: Give) -> None:
        stages = self.stages
        choices = [stages.identify.owned(call.principal, choice, call.priority) for choice in choices]
        prompt_tokens = body_bytes // _BYTES_PER_TOKEN // max(len(choices) // call.choices_per_prompt, 1)
        await stages.limit.enter(call, sum(expected_tokens(choice, prompt_tokens) for choice in choices))
        if call.shadow is not None and self.shadows is not None:
            self.shadows.copy(call, choices, prompt_tokens)
        patient = len(call.chain) < 2 or not stages.route.others_ready(call)
        delivery = Delivery(call, stages.limit, stages.meter, give)

        async def one(index: int, choice: GenerateRequest) -> None:
            push = partial(delivery.push, index)
            with suppress(CutError):
                await stages.forward.stream(call.model, choice, prompt_tokens, call.trail, push, patient=patient)

        await together([one(index, choice) for index, choice in enumerate(choices)])

    async def exchange(self, call: Call, send: Callable[[str], Awaitable[T]]) -> T:
        """One question and one answer; ``send`` is given a replica's socket."""
        await self.stages.limit.reserve(call, 0)
        return await self.stages.forward.call(call.model, send, call.trail)

    async def embed(self, call: Call, request: EmbedRequest, body_bytes: int) -> Embedded:
        """The vectors of all inputs, metered."""
        await self.stages.limit.reserve(call, body_bytes)
        await self.stages.limit.enter(call, body_bytes // _BYTES_PER_TOKEN)
        request = self.stages.forward.adapted(call.model, request)
        owned = self.stages.identify.owned(call.principal, request, call.priority)

        def accept(accepted: Accepted) -> None:
            # From here on an engine works for it: who leaves, or is killed with this gateway, has used so much.
            self.stages.meter.note(call, 0, [accepted])

        try:
            embedded = await self.stages.forward.call(
                call.model,
                lambda socket: self.upstream.embed(socket, owned, accept),
                call.trail,
                body_bytes // _BYTES_PER_TOKEN,
                request.id,
                request.adapter,
            )
        except asyncio.CancelledError:
            # Who leaves before it is known how much that is has made an engine read: a request it was.
            call.accepted = bool(call.served_by)
            raise
        # First: an engine has worked for it, also where that turns out to be more than its limits allow.
        self.stages.meter.note_embedded(call, embedded)
        await self.stages.limit.cover_embedded(call, embedded)
        return embedded
