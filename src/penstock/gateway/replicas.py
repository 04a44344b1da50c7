"""Which replicas there are, how they are, and what this gateway has outstanding at each.

In: desired states, observed loads, losses, leases; out: routing decisions and readiness.
No I/O: watching is ``watch``'s, speaking is the upstream's.  Waiters are woken by every change.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from penstock.config.desired import DesiredState, Model, Replica
from penstock.policy import route
from penstock.wire.engine import Load
from penstock.wire.errors import Problem


@dataclass(slots=True, eq=False)
class ReplicaState:
    """One replica as this gateway sees it.  ``losses`` counts broken attempts: an older observation is void."""

    replica: Replica
    load: Load | None = None
    ready: bool = False
    losses: int = 0
    outstanding_requests: int = 0
    outstanding_tokens: int = 0
    last_routed: int = 0

    @property
    def id(self) -> str:
        return self.replica.id

    @property
    def routable(self) -> bool:
        return self.ready and not self.replica.draining


@dataclass(slots=True, eq=False)
class ModelState:
    """One served model.  ``was_ready``: a replica was ready once, so its absence is an interruption."""

    model: Model
    replicas: list[ReplicaState]
    was_ready: bool = False

    @property
    def context_tokens(self) -> int | None:
        return next((state.load.context_tokens for state in self.replicas if state.load is not None), None) or None

    @property
    def exact(self) -> bool:
        """Whatever replica resumes a sequence gives it the tokens of an undisturbed run."""
        loads = [state.load for state in self.replicas if state.load is not None]
        return bool(loads) and all(load.exact for load in loads)


@dataclass(slots=True, eq=False)
class Lease:
    """One sequence at one replica.  Ends exactly once."""

    state: ReplicaState
    tokens: int

    def end(self) -> None:
        self.state.outstanding_requests -= 1
        self.state.outstanding_tokens -= self.tokens


class Replicas:
    """The gateway's view.  Version 0 until the first desired state is adopted."""

    def __init__(self) -> None:
        self.version = 0
        self.admitting = False
        self._models: dict[str, ModelState] = {}
        self._changed = asyncio.Event()
        self._routed = 0

    @property
    def models(self) -> list[ModelState]:
        return list(self._models.values())

    @property
    def ready(self) -> bool:
        """New requests are admitted and every model has a replica that takes them."""
        states = self._models.values()
        return self.admitting and bool(states) and all(any(r.routable for r in s.replicas) for s in states)

    def adopt(self, desired: DesiredState) -> None:
        """Route by this state from now on.  What is known of a replica stays while its id and socket stay."""
        known = {(s.id, s.replica.socket): s for model in self._models.values() for s in model.replicas}
        models = {}
        for model in desired.models:
            states = []
            for replica in model.replicas:
                state = known.get((replica.id, replica.socket)) or ReplicaState(replica)
                state.replica = replica
                states.append(state)
            before = self._models.get(model.name)
            models[model.name] = ModelState(model, states, was_ready=before is not None and before.was_ready)
        self._models = models
        self.version, self.admitting = desired.version, desired.admitting
        self.wake()

    def find(self, name: str) -> ModelState:
        """Raises ``Problem`` ``model_not_found``."""
        state = self._models.get(name)
        if state is None:
            raise not_served(name)
        return state

    def observe(self, state: ReplicaState, load: Load | None, losses: int) -> None:
        """Take an observation that was begun when ``state.losses`` was ``losses``; ``None``: nobody answered."""
        if losses != state.losses:
            return
        was = state.ready
        state.load = load or state.load
        state.ready = load is not None and load.phase == "ready"
        if state.ready != was:
            self._note_ready(state)
            self.wake()

    def lost(self, state: ReplicaState) -> None:
        """An attempt broke there: route nothing to it until a later observation says that it is ready."""
        state.losses += 1
        state.ready = False
        self.wake()

    def lease(self, model: ModelState, tokens: int, avoid: frozenset[str] = frozenset()) -> Lease | None:
        """Pick a replica by ``policy.route`` and count ``tokens`` against it; ``None``: none is routable now."""
        verdict = route.choose(model.replicas, avoid)
        if verdict.replica is None:
            return None
        state = next(state for state in model.replicas if state.id == verdict.replica)
        self._routed += 1
        state.last_routed = self._routed
        state.outstanding_requests += 1
        state.outstanding_tokens += tokens
        return Lease(state, tokens)

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, timeout_s: float) -> None:
        """Return at the next change, or when ``timeout_s`` is over."""
        event = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return

    def _note_ready(self, state: ReplicaState) -> None:
        for model in self._models.values():
            if state in model.replicas and state.ready:
                model.was_ready = True


def not_served(model: str) -> Problem:
    """One text for every model that a caller cannot have, so that it does not tell which of them exist."""
    return Problem("model_not_found", f"The model {model[:200]!r} is not served here.", param="model")
