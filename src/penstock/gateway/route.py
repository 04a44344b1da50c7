"""The third stage: which model is meant, and whether the caller may see it.

In: the name that was asked for; out: the model's state.  Which replica takes it is decided for each attempt, by
``policy.route`` in ``forward``.
"""

from __future__ import annotations

from penstock.config.tenants import Principal
from penstock.gateway.call import Call
from penstock.gateway.replicas import ModelState, Replicas, not_served
from penstock.wire.errors import Problem


class Router:
    """Finds models by their served names."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def visible(self, principal: Principal) -> list[ModelState]:
        """The models that a principal may use."""
        return [state for state in self._replicas.models if _may_use(principal, state.model.name)]

    def find(self, call: Call, model: str | None) -> ModelState:
        """The model that is asked for; ``None``: the only one there is.

        Raises ``Problem`` ``model_not_found``, for one that the caller may not use as for one that does not exist.
        """
        if model is None:
            models = self.visible(call.principal)
            if len(models) != 1:
                raise Problem("invalid_value", "model is required and missing.", param="model")
            model = models[0].model.name
        if not _may_use(call.principal, model):
            raise not_served(model)
        state = self._replicas.find(model)
        call.model = model
        return state


def _may_use(principal: Principal, model: str) -> bool:
    return principal.models is None or model in principal.models
