"""A replica for each attempt, waited for within bounds.

In: a model, and what a sequence has behind it; out: a lease, or one ``Problem`` that says why there was none in time.
Which replica it is ``replicas`` says; here is how long who waits for one, and for which.
"""

from __future__ import annotations

from penstock.gateway.attempt import Progress
from penstock.gateway.prefixes import NO_CHAIN, chain_of
from penstock.gateway.replica import Lease, ModelState
from penstock.gateway.replicas import Replicas
from penstock.policy.resume import eligible, may_come
from penstock.policy.retry import RetryRules
from penstock.ports import Clock
from penstock.wire.engine import GenerateRequest
from penstock.wire.errors import Problem

RETRY_AFTER_S = 2.0
"""What a client is told where nobody knows better."""


class Leases:
    """Shared by all requests of a gateway; keeps nothing of any."""

    def __init__(self, replicas: Replicas, rules: RetryRules, clock: Clock) -> None:
        self._replicas = replicas
        self._rules = rules
        self._clock = clock

    async def lease(
        self,
        model: str,
        size: tuple[int, int],
        progress: Progress,
        request: GenerateRequest | None = None,
        adapter: str = "",
    ) -> Lease:
        """A lease at a replica of ``model`` that may have the sequence, waited for within the bounds.

        ``size``: prompt and output tokens, both estimates; ``request``: what its prefixes are told from, if anything;
        ``adapter``: the digest that the replica has to have.  Raises ``Problem`` when there is none in time.
        """
        deadline = progress.verdict.deadline if progress.verdict else None
        avoid = progress.verdict.avoid if progress.verdict else frozenset()
        gone_since: float | None = None
        while True:
            state = self.state(model, progress)
            if request is not None and progress.chain is None and state.model.balance != "least-tokens":
                progress.chain = chain_of(request)
            now = self._clock.now()
            origin = progress.origin
            having = [replica for replica in state.replicas if replica.has(adapter)] if adapter else state.replicas
            among = having if origin is None else eligible(origin, having)
            lease = self._replicas.lease(state, size, now, avoid=avoid, chain=progress.chain or NO_CHAIN, among=among)
            if lease is not None:
                return lease
            if not progress.patient and not progress.accepted:
                deadline = now
            elif deadline is None:
                # A new request waits for an engine that is being restarted, not for one that never was ready.
                deadline = now + (self._rules.first_wait_s if state.was_ready else 0.0)
            # A replica that is listed lives, and may be loading; where none is, nobody may ever come.
            coming = bool(state.replicas) if origin is None else may_come(origin, state.replicas)
            if adapter and state.model.adapter != adapter:  # nobody is given it any more
                coming = bool(among)
            gone_since = None if coming else gone_since or now
            until = deadline if gone_since is None else min(deadline, gone_since + self._rules.absent_s)
            if now >= until:
                raise self._none_in_time(state, progress, now, adapter)
            await self._replicas.changed(until - now)

    def state(self, model: str, progress: Progress) -> ModelState:
        """The model as it is served now.  Raises what lost the last attempt, if it is served no more."""
        try:
            return self._replicas.find(model)
        except Problem:
            if progress.problem is not None:
                raise progress.problem from None
            raise

    def _none_in_time(self, state: ModelState, progress: Progress, now: float, adapter: str) -> Problem:
        model, origin = state.model.name, progress.origin
        if adapter and state.model.adapter != adapter:
            message = f"{model!r} is another adapter now than the one that this answer was begun with."
            return Problem("weights_changed", message, retry_after_s=RETRY_AFTER_S)
        if origin is not None and not may_come(origin, state.replicas) and state.replicas:
            message = f"{model!r} is served by other weights than those that this answer was begun on."
            return Problem("weights_changed", message, retry_after_s=RETRY_AFTER_S)
        if any(replica.routable and replica.has(adapter) for replica in state.replicas):
            message = (
                f"Every ready replica of {model!r} has the {state.model.max_concurrent} requests that it may have."
            )
            return Problem("overloaded", message, param="model", retry_after_s=RETRY_AFTER_S)
        if progress.problem is not None and not progress.patient and not progress.accepted:
            return progress.problem
        if progress.problem is None:
            message = f"No replica of {model!r} is ready."
            return Problem("not_ready", message, param="model", retry_after_s=RETRY_AFTER_S)
        waited_s = now - progress.memory.since
        message = f"The engine was lost and no replica of {model!r} was ready again in {waited_s:.0f} s."
        return Problem("engine_lost", message, retry_after_s=RETRY_AFTER_S)
