"""The third stage: which model is meant, whether the caller may have it, and which one is asked where that one cannot.

In: the name that was asked for, and how a model failed; out: the model's state.  ``policy.names`` and
``policy.fallback`` decide; which replica takes it is decided for each attempt, by ``policy.route`` in ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from penstock.config.tenants import Principal
from penstock.gateway.call import Call
from penstock.gateway.replica import ModelState
from penstock.gateway.replicas import Replicas, not_served
from penstock.policy.fallback import Candidate, decide
from penstock.policy.names import Caller, reachable, resolve
from penstock.ports import Clock
from penstock.wire.errors import Problem


class Offer(NamedTuple):
    """What a caller may ask for: a model, or a name and the first model behind it."""

    name: str
    state: ModelState


class Router:
    """Finds models by their served names, and by the names in front of them."""

    def __init__(self, replicas: Replicas, clock: Clock) -> None:
        self._replicas = replicas
        self._clock = clock

    def visible(self, principal: Principal) -> list[Offer]:
        """The models that a principal may use, and the names that lead it to one."""
        may_use = self._may_use(principal)
        offers = [Offer(state.model.name, state) for state in self._replicas.models if may_use(state.model.name)]
        for name in self._replicas.names:
            if reachable(name, self._replicas.names, may_use):
                who = Caller(tenant=principal.tenant, key_id=principal.key_id)
                chain = resolve(name, self._replicas.names, may_use, who).chain
                offers.append(Offer(name, self._replicas.find(chain[0])))
        return offers

    def find(self, call: Call, asked: str | None, user: str, beginning: Callable[[], bytes]) -> ModelState:
        """The model that is asked for; ``None``: the only one there is.  Splits by ``user`` or ``beginning``.

        Raises ``Problem`` ``model_not_found``, for one that the caller may not use as for one that does not exist.
        """
        may_use = self._may_use(call.principal)
        if asked is None:
            bases = [state.model.name for state in self._replicas.models if not state.model.parent]
            models = [name for name in bases if may_use(name)]
            if len(models) != 1:
                raise Problem("invalid_value", "model is required and missing.", param="model")
            asked = models[0]
        names = self._replicas.names
        if asked in names:
            who = call.principal
            caller = Caller(
                tenant=who.tenant, key_id=who.key_id, session=call.session, user=user, conversation=beginning
            )
            verdict = resolve(asked, names, may_use, caller)
            call.trail.append((self._clock.now(), verdict))
            call.chain, call.shadow = verdict.chain, verdict.shadow
        elif may_use(asked):
            call.chain = (asked,)
        if not call.chain:
            raise not_served(asked)
        call.model = call.chain[0]
        return self._replicas.find(call.model)

    def others_ready(self, call: Call) -> bool:
        """Whether a later model of the call's chain could take it at once."""
        return any(candidate.ready for candidate in self._rest(call))

    def fall_back(self, call: Call, problem: Problem) -> bool:
        """``call.model`` failed with this; whether there is another, which it then is."""
        here = self._replicas.get(call.model)
        context = here.context_tokens if here is not None else None
        verdict = decide(problem.code, call.model, context, self._rest(call))
        call.trail.append((self._clock.now(), verdict))
        if verdict.model is None:
            return False
        call.model = verdict.model
        return True

    def _rest(self, call: Call) -> list[Candidate]:
        found = []
        for model in call.chain[call.chain.index(call.model) + 1 :]:
            state = self._replicas.get(model)
            if state is not None:
                ready = sum(replica.routable for replica in state.replicas)
                found.append(Candidate(model=model, ready=ready, context_tokens=state.context_tokens))
        return found

    def _may_use(self, principal: Principal) -> Callable[[str], bool]:
        served, models = self._replicas, principal.models
        return lambda model: served.get(model) is not None and (models is None or model in models)
