"""AdamW over a decoder's float32 weights, and its state as named tensors.

In: a decoder and the recipe's rates; out: updates, and tensors named after the parameters they belong to, so that a
checkpoint does not depend on the order of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from penstock.config.recipe import TrainingRecipe
from penstock.models.decoder import Decoder
from penstock.wire.errors import Problem

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW (arXiv 1711.05101) with clipping by the global norm.  Matrices decay, norms and biases do not."""

    def __init__(self, decoder: Decoder, recipe: TrainingRecipe) -> None:
        self._named = dict(decoder.named_parameters())
        self._clip_norm = recipe.clip_norm
        parameters = list(self._named.values())
        self._adam = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
                {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=(recipe.beta1, recipe.beta2),
            fused=True,
        )

    def step(self, learning_rate: float) -> float:
        """One update from the gradients, which are then cleared; returns their norm before clipping.

        A norm that is not finite leaves the weights as they are: the caller decides.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._named.values(), self._clip_norm)
        if torch.isfinite(norm):
            for group in self._adam.param_groups:
                group["lr"] = learning_rate
            self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        return float(norm)

    def tensors(self) -> dict[str, Tensor]:
        """The moments as ``exp_avg:<parameter>`` and ``exp_avg_sq:<parameter>``; empty before the first update."""
        state = self._adam.state
        return {f"{m}:{name}": state[p][m] for name, p in self._named.items() if p in state for m in _MOMENTS}

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take up the state after ``steps`` updates.  Raises ``artefact_invalid`` for tensors of another model."""
        if {f"{m}:{name}" for name in self._named for m in _MOMENTS} != tensors.keys():
            raise Problem("artefact_invalid", "The optimiser's state belongs to another model.")
        for name, parameter in self._named.items():
            moments = {m: tensors[f"{m}:{name}"] for m in _MOMENTS}
            self._adam.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
