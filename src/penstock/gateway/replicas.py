"""Which replicas there are, how they are, and what this gateway has outstanding at each.

In: desired states, observed loads, losses, leases; out: routing decisions and readiness.
No I/O: watching is ``watch``'s, speaking is the upstream's.  Waiters are woken by every change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from penstock.config.desired import DesiredState
from penstock.config.names import Name
from penstock.gateway.prefixes import NO_CHAIN, Chain
from penstock.gateway.replica import Lease, ModelState, ReplicaState
from penstock.policy.eject import ejected, on_trial
from penstock.policy.route import Asked, choose
from penstock.wire.errors import Problem
from penstock.wire.load import Load


class Replicas:
    """The gateway's view.  Version 0 until the first desired state is adopted."""

    def __init__(self) -> None:
        self.version = 0
        self.admitting = False
        self.names: Mapping[str, Name] = {}
        self._models: dict[str, ModelState] = {}
        self._changed = asyncio.Event()
        self._routed = 0
        self._full: set[str] = set()

    @property
    def models(self) -> list[ModelState]:
        return list(self._models.values())

    @property
    def ready(self) -> bool:
        """New requests are admitted and every model has a replica that takes them, its adapters aside."""
        states = [state for state in self._models.values() if not state.model.parent]
        return self.admitting and bool(states) and all(any(r.routable for r in s.replicas) for s in states)

    def adopt(self, desired: DesiredState) -> None:
        """Route by this state from now on.  What is known of a replica stays while its id and socket stay."""
        known = {(s.id, s.replica.socket): s for model in self._models.values() for s in model.replicas}
        models: dict[str, ModelState] = {}
        for model in desired.models:  # parents come before their adapters, which are at the same replicas
            states = []
            for replica in model.replicas:
                state = known.setdefault((replica.id, replica.socket), ReplicaState(replica))
                state.replica = replica
                states.append(state)
            before = self._models.get(model.name) or models.get(model.parent)
            models[model.name] = ModelState(model, states, was_ready=before is not None and before.was_ready)
        self._models = models
        self.names = desired.names
        self.version, self.admitting = desired.version, desired.admitting
        self.wake()

    def find(self, name: str) -> ModelState:
        """Raises ``Problem`` ``model_not_found``."""
        state = self._models.get(name)
        if state is None:
            raise not_served(name)
        return state

    def get(self, name: str) -> ModelState | None:
        return self._models.get(name)

    def base(self, name: str) -> str:
        """The model whose engines compute this one: itself, or what it is an adapter of."""
        state = self._models.get(name)
        return name if state is None else state.model.parent or name

    def is_exact(self, name: str) -> bool:
        """Whether a resumed sequence of this model gets the tokens of an undisturbed run."""
        state = self._models.get(name)
        return state is not None and state.exact

    def observe(self, state: ReplicaState, load: Load | None, losses: int) -> None:
        """Take an observation that was begun when ``state.losses`` was ``losses``; ``None``: nobody answered."""
        if losses != state.losses:
            return
        if load is not None and load.kv_blocks_total:
            state.prefixes.fit(load.kv_blocks_total * load.kv_block_tokens)
            state.outstanding_then = state.outstanding_tokens
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
        state.prefixes.clear()
        self.wake()

    def lease(
        self,
        model: ModelState,
        size: tuple[int, int],
        now: float,
        *,
        avoid: frozenset[str] = frozenset(),
        chain: Chain = NO_CHAIN,
        among: Sequence[ReplicaState] | None = None,
    ) -> Lease | None:
        """Pick a replica by ``policy.route`` and count the sequence against it; ``None``: none is routable now.

        ``size``: estimated tokens of the prompt and of the output.  ``chain``: the prompt, where it is balanced by.
        ``among``: those that may take it, where not all of the model's may.
        """
        states = {state.id: state for state in model.replicas}
        prompt_tokens, output_tokens = size
        asked = Asked(*size, chain.prefix, lambda id: states[id].prefixes.overlap_tokens(chain))
        ailing = any(state.health.incidents for state in model.replicas)
        if ailing:
            probed = frozenset(state.id for state in model.replicas if state.probe is not None)
            avoid |= ejected({state.id: state.health for state in model.replicas}, now, probed)
        verdict = choose(self._with_room(model, among), avoid, model.model.balance, asked)
        if verdict.replica is None:
            return None
        state = states[verdict.replica]
        self._routed += 1
        state.last_routed = self._routed
        state.outstanding_requests += 1
        state.outstanding_tokens += prompt_tokens + output_tokens
        prefill = max(prompt_tokens - asked.overlap(state.id), 0)
        state.outstanding_prefill += prefill
        state.prefixes.note(chain)
        lease = Lease(state, verdict, prompt_tokens + output_tokens, prefill, state.outstanding_prefill, now)
        if ailing and on_trial(state.health, now):
            state.probe = state.probe or lease
        return lease

    def freed(self, state: ReplicaState) -> None:
        """A lease there has ended: whoever waits for room looks again."""
        if state.id in self._full:
            self._full.discard(state.id)
            self.wake()

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

    def _with_room(self, model: ModelState, among: Sequence[ReplicaState] | None) -> Sequence[ReplicaState]:
        """Where another sequence may go, ``among`` these; of a model whose ready replicas are all full, nowhere."""
        candidates = model.replicas if among is None else among
        most = model.model.max_concurrent
        if not most:
            return candidates
        full = [state for state in candidates if state.outstanding_requests >= most]
        self._full.update(state.id for state in full)
        return [state for state in candidates if state.outstanding_requests < most]

    def _note_ready(self, state: ReplicaState) -> None:
        for model in self._models.values():
            if state in model.replicas and state.ready:
                model.was_ready = True


def not_served(model: str) -> Problem:
    """One text for every model that a caller cannot have, so that it does not tell which of them exist."""
    return Problem("model_not_found", f"The model {model[:200]!r} is not served here.", param="model")
