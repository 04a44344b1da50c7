"""Forwarding one sequence, and going on with it elsewhere when its engine is lost.

In: an engine request; out: its events as if nothing had happened, or one ``Problem``.
``policy.route`` and ``policy.retry`` decide; this carries out.  A sequence is resumed by sending the same request with
the token ids it has emitted: docs/decisions/001-engine-protocol.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from penstock.events.list import StreamResumed
from penstock.gateway.attempt import Attempt, Progress, TurnedAwayError
from penstock.gateway.budget import RetryBudget
from penstock.gateway.call import Trail
from penstock.gateway.leases import RETRY_AFTER_S, Leases
from penstock.gateway.replica import Lease
from penstock.gateway.replicas import Replicas
from penstock.gateway.stalls import Stalls
from penstock.gateway.upstream import Push, Upstream
from penstock.policy.budget import BudgetRules
from penstock.policy.resume import Origin
from penstock.policy.retry import RESUMABLE, FailedAttempt, RetryRules, decide, longer_pause
from penstock.ports import Chance, Clock, Emit
from penstock.wire.embedding import EmbedRequest
from penstock.wire.engine import Accepted, Event, GenerateRequest, Moved
from penstock.wire.errors import Problem

T = TypeVar("T")
R = TypeVar("R", GenerateRequest, EmbedRequest)

_EXPECTED_OUTPUT_TOKENS = 256
_DIGITS = 12
"""So much of an adapter's digest is in a fingerprint."""


class Forwarder:
    """Sends sequences to replicas.  Shared by all requests of a gateway; keeps nothing of any but their number."""

    def __init__(
        self,
        replicas: Replicas,
        upstream: Upstream,
        rules: RetryRules,
        clock: Clock,
        emit: Emit,
        chance: Chance = lambda: 1.0,
        budget: BudgetRules = BudgetRules(),  # noqa: B008 - frozen
    ) -> None:
        self._chance = chance
        self._budget_rules = budget
        self._budgets: dict[str, RetryBudget] = {}
        self._replicas = replicas
        self._leases = Leases(replicas, rules, clock)
        self._upstream = upstream
        self._rules = rules
        self._clock = clock
        self._emit = emit
        self.stalls = Stalls(upstream, clock)

    async def stream(
        self,
        model: str,
        request: GenerateRequest,
        prompt_tokens: int,
        trail: Trail,
        push: Push,
        *,
        patient: bool = True,
    ) -> None:
        """Push one sequence: an ``Accepted``, deltas, a ``Finished``.  Raises ``Problem``, also midway.

        ``prompt_tokens`` is an estimate, for routing; ``trail`` is told every verdict.
        ``patient``: it waits for a replica where none is ready, also before anybody has taken it up.
        The request is computed with the adapter that the model is, to its end, whatever that name means meanwhile.
        Being cancelled, or ended by ``push``, aborts the sequence at its engine.
        """
        progress = Progress(patient=patient)
        request = self.adapted(model, request)
        size = (prompt_tokens, expected_output_tokens(request))
        self._budget(model).note_request()
        while True:
            lease = await self._leases.lease(model, size, progress, request, request.adapter)
            trail.append((lease.sent_at, lease.verdict))
            begun_at = len(progress.emitted)
            try:
                await self._attempt(lease, request, progress, model, push)
                lease.succeeded()
                return
            except Problem as problem:
                self._note_failure(model, lease, problem, progress, trail)
            except TurnedAwayError as turned_away:
                raise turned_away.problem from None
            finally:
                self._end(lease, len(progress.emitted) - begun_at)
            await self._pause(progress)
            await self._afford(model, progress, trail)

    def adapted(self, model: str, request: R) -> R:
        """The request as the model's.  Raises ``Problem`` ``model_not_found``."""
        adapter = self._replicas.find(model).model.adapter
        return msgspec.structs.replace(request, adapter=adapter) if adapter else request

    async def call(
        self,
        model: str,
        send: Callable[[str], Awaitable[T]],
        trail: Trail,
        prompt_tokens: int = 0,
        id: str = "",
        adapter: str = "",
    ) -> T:
        """One exchange without a stream, ``send`` being given a replica's socket; repeated elsewhere if it is lost.

        ``prompt_tokens`` is an estimate, for routing; ``trail`` is told every verdict; ``id`` and ``adapter``: as in
        the request.
        """
        progress = Progress()
        self._budget(model).note_request()
        while True:
            lease = await self._leases.lease(model, (prompt_tokens, 0), progress, adapter=adapter)
            trail.append((lease.sent_at, lease.verdict))
            try:
                with self.stalls.watching(id, lease.state.replica.socket):
                    answer = await send(lease.state.replica.socket)
                lease.succeeded()
                return answer
            except Problem as problem:
                self._note_failure(model, lease, problem, progress, trail)
            finally:
                self._end(lease)
            await self._pause(progress)
            await self._afford(model, progress, trail)

    async def _attempt(
        self, lease: Lease, request: GenerateRequest, progress: Progress, model: str, push: Push
    ) -> None:
        """One attempt at one replica, from the emitted tokens on.  Raises ``Problem`` where it does not end well."""
        progress.attempts += 1
        if progress.attempts > 1:
            # Another id: at a replica that is alive the broken attempt may not have been aborted yet.
            request = msgspec.structs.replace(
                request, id=f"{request.id}.{progress.attempts}", emitted_token_ids=[*progress.emitted]
            )
        socket = lease.state.replica.socket
        with self.stalls.watching(request.id, socket, progress.emitted) as watched:
            attempt = Attempt(
                lease,
                progress,
                watched,
                self._clock,
                push,
                lambda accepted: self._taken_up(accepted, lease, request, progress, model),
            )
            await self._upstream.generate(socket, request, attempt.take)
            if attempt.failure is not None:
                raise attempt.failure

    def _taken_up(
        self, accepted: Accepted, lease: Lease, request: GenerateRequest, progress: Progress, model: str
    ) -> Event | None:
        """An engine has the sequence; what that is to the client: a later attempt is news only on other weights."""
        self._note_taken_up(lease, request, progress, model)
        known, progress.accepted = progress.accepted, True
        state, origin = lease.state, progress.origin
        if origin is None or origin.weights != state.weights:
            exact = self._leases.state(model, progress).exact if origin is None else origin.exact
            progress.origin = Origin(weights=state.weights, vocabulary=state.vocabulary, exact=exact)
        weights = f"{state.weights}-{request.adapter[:_DIGITS]}" if request.adapter else state.weights
        if not known:
            return msgspec.structs.replace(accepted, weights=weights)
        return Moved(weights=weights) if progress.origin is not origin else None

    def _note_failure(self, model: str, lease: Lease, problem: Problem, progress: Progress, trail: Trail) -> None:
        """Ask the policy; raise the problem if it gives up, else leave its verdict in ``progress``."""
        now = self._clock.now()
        progress.fruitful = lease.fruitful
        lease.failed(problem.code, now)
        if problem.code in RESUMABLE:
            self._replicas.lost(lease.state)
        progress.problem = problem
        failed = {lease.state.id} | progress.memory.avoid
        replicas = self._leases.state(model, progress).replicas
        view = FailedAttempt(
            code=problem.code,
            replica=lease.state.id,
            emitted_tokens=len(progress.emitted),
            accepted=progress.accepted,
            chance=self._chance(),
            others=sum(state.routable and state.id not in failed for state in replicas),
        )
        progress.verdict, progress.memory = decide(view, self._rules, progress.memory, now)
        trail.append((now, progress.verdict))
        if progress.lost_at is None:
            progress.lost_at = now
        if not progress.verdict.resume:
            if problem.spec.retryable and problem.retry_after_s is None:
                problem.retry_after_s = RETRY_AFTER_S
            raise problem

    def _note_taken_up(self, lease: Lease, request: GenerateRequest, progress: Progress, model: str) -> None:
        if progress.lost_at is None:
            return
        if progress.accepted:
            self._emit(
                StreamResumed(
                    id=request.id,
                    model=model,
                    replica=lease.state.id,
                    emitted_tokens=len(progress.emitted),
                    gap_s=self._clock.now() - progress.lost_at,
                )
            )
        progress.lost_at = None

    async def _afford(self, model: str, progress: Progress, trail: Trail) -> None:
        """Wait for room in the model's retry budget.  What a replica that was at work has lost needs none.

        Raises the attempt's problem: at once where another model would have the sequence, for others in the time that
        they would wait for a replica.
        """
        assert progress.verdict is not None
        if progress.fruitful:
            return
        patience_s = self._rules.first_wait_s if progress.patient else 0.0
        deadline = progress.verdict.deadline if progress.accepted else progress.memory.since + patience_s
        pause_s = 0.0
        while True:
            verdict = self._budget(model).ask()
            if verdict.granted or not pause_s:
                trail.append((self._clock.now(), verdict))
            if verdict.granted:
                return
            pause_s = longer_pause(pause_s, self._chance())
            if self._clock.now() + pause_s > deadline:
                assert progress.problem is not None
                progress.problem.retry_after_s = progress.problem.retry_after_s or RETRY_AFTER_S
                raise progress.problem
            await asyncio.sleep(pause_s)

    def _budget(self, model: str) -> RetryBudget:
        budget = self._budgets.get(model)
        if budget is None:
            budget = self._budgets[model] = RetryBudget(self._budget_rules, self._clock)
        return budget

    def _end(self, lease: Lease, num_tokens: int = 0) -> None:
        lease.end(self._clock.now(), num_tokens)
        self._replicas.freed(lease.state)

    async def _pause(self, progress: Progress) -> None:
        if progress.verdict is not None and progress.verdict.pause_s > 0:
            await asyncio.sleep(progress.verdict.pause_s)


def expected_tokens(request: GenerateRequest, prompt_tokens: int) -> int:
    """About how many tokens a sequence will hold, from its prompt's estimate."""
    return prompt_tokens + expected_output_tokens(request)


def expected_output_tokens(request: GenerateRequest) -> int:
    """About how many tokens its answer will have."""
    return min(request.max_tokens or _EXPECTED_OUTPUT_TOKENS, _EXPECTED_OUTPUT_TOKENS)
