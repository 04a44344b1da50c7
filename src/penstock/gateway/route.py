"""The third stage: which model is meant, and whether the caller may see it.

In: the name that was asked for; out: the model's state.  Which replica takes it is decided for each attempt, by
``policy.route`` in ``forward``.
"""

from __future__ import annotations

from penstock.gateway.call import Call
from penstock.gateway.replicas import ModelState, Replicas
from penstock.wire.errors import Problem


class Router:
    """Finds models by their served names."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def find(self, call: Call, model: str | None) -> ModelState:
        """The model that is asked for; ``None``: the only one there is.  Raises ``Problem`` ``model_not_found``."""
        if model is None:
            models = self._replicas.models
            if len(models) != 1:
                raise Problem("invalid_value", "model is required and missing.", param="model")
            model = models[0].model.name
        state = self._replicas.find(model)
        call.model = model
        return state
