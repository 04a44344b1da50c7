"""Copies of requests at other models, whose answers are discarded.

In: calls whose name has a shadow; out: one ``ShadowEnded`` per copy, and nothing else: no limit, no row of the ledger,
no time of the caller's.  ``policy.shadow`` decides; a copy is cancelled as soon as somebody has to wait.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

import msgspec

from penstock.config.tenants import LEAST_URGENT
from penstock.events.list import Outcome, ShadowEnded
from penstock.gateway.call import Call
from penstock.gateway.forward import Forwarder
from penstock.gateway.limit import Limit
from penstock.gateway.replicas import Replicas
from penstock.gateway.together import together
from penstock.policy.shadow import ShadowView, decide
from penstock.ports import Clock, Emit
from penstock.wire.engine import Event, GenerateRequest
from penstock.wire.errors import Problem

_log = logging.getLogger(__name__)


class _GivenUpError(Exception):
    """The copy is in somebody's way."""


class Shadows:
    """All copies of a gateway.  ``forward`` is one that never tries again."""

    def __init__(self, forward: Forwarder, replicas: Replicas, limit: Limit, clock: Clock, emit: Emit) -> None:
        self._forward = forward
        self._replicas = replicas
        self._limit = limit
        self._clock = clock
        self._emit = emit
        self._running: dict[asyncio.Task[None], tuple[str, int]] = {}  # at which model, and how many choices
        limit.when_one_waits(self.cancel)

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def copy(self, call: Call, choices: list[GenerateRequest], prompt_tokens: int) -> None:
        """Send a copy, if there is to be one; once per call.  Returns at once."""
        rule, call.shadow = call.shadow, None
        if rule is None:
            return
        view = ShadowView(
            choices=len(choices),
            in_flight=sum(number for model, number in self._running.values() if model == rule.model),
            ready=self._ready(rule.model),
            waiting=self._waiting(rule.model),
        )
        verdict = decide(call.id, rule, view)
        call.trail.append((self._clock.now(), verdict))
        if not verdict.copied:
            return
        # Its prefixes stay its tenant's; its place does not: there somebody may be served who asked.
        copies = [
            msgspec.structs.replace(choice, id=f"{choice.id}.shadow", tenant="", weight=1.0, priority=LEAST_URGENT)
            for choice in choices
        ]
        task = asyncio.create_task(self._run(rule.model, copies, prompt_tokens))
        self._running[task] = (rule.model, len(choices))
        task.add_done_callback(lambda done: self._running.pop(done))

    def cancel(self) -> None:
        """End them all: somebody who asks has to wait."""
        for task in self._running:
            task.cancel()

    async def close(self) -> None:
        running = list(self._running)
        self.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, model: str, choices: list[GenerateRequest], prompt_tokens: int) -> None:
        account = Call(id=choices[0].id, route="shadow", started=self._clock.now(), model=model)
        outcome: Outcome = "cancelled"
        code = ""
        try:
            await together(
                [
                    self._forward.stream(
                        model,
                        choice,
                        prompt_tokens,
                        account.trail,
                        partial(self._take, account, index),
                        patient=False,
                    )
                    for index, choice in enumerate(choices)
                ]
            )
            outcome = "finished"
        except _GivenUpError:
            pass
        except Problem as problem:
            outcome, code = "failed", problem.code
        except Exception:
            _log.exception("the copy %s ended by a bug", account.id)
            outcome, code = "failed", "internal_error"
        finally:
            self._emit(self._ended(account, outcome, code))

    def _take(self, account: Call, index: int, events: list[Event]) -> None:
        account.note(index, events, self._clock.now())
        if self._limit.draining or self._waiting(account.model):
            raise _GivenUpError

    def _ended(self, account: Call, outcome: Outcome, code: str) -> ShadowEnded:
        first = account.first_token_at
        return ShadowEnded(
            model=account.model,
            outcome=outcome,
            code=code,
            ttft_s=None if first is None else first - account.started,
            prompt_tokens=sum(account.num_prompt_tokens.values()),
            cached_tokens=sum(account.num_cached_tokens.values()),
            output_tokens=sum(account.num_tokens.values()),
        )

    def _ready(self, model: str) -> int:
        state = self._replicas.get(model)
        return 0 if state is None else sum(replica.routable for replica in state.replicas)

    def _waiting(self, model: str) -> int:
        """Requests that wait in this gateway, or at the engines that the copy would be a burden to."""
        state = self._replicas.get(model)
        replicas = [] if state is None else state.replicas
        return self._limit.num_waiting + sum(replica.load.waiting for replica in replicas if replica.load is not None)
