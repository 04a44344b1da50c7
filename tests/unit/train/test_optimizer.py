"""train.optimizer and train.schedule: what one update does, and at which rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from penstock.config.recipe import TrainingRecipe
from penstock.models.decoder import Decoder
from penstock.train.loss import summed_loss
from penstock.train.optimizer import Optimizer
from penstock.train.packing import PackedRows
from penstock.train.schedule import learning_rate
from penstock.wire.errors import Problem

MakeDecoder = Callable[..., Decoder]


def test_the_rate_rises_to_its_peak_and_falls_to_its_share(training_recipe: TrainingRecipe) -> None:
    """Warm-up is linear from above zero, the peak follows it, and the last step is close to the final share."""
    rates = [learning_rate(step, training_recipe) for step in range(training_recipe.steps)]
    peak = training_recipe.learning_rate
    assert rates[:5] == pytest.approx([peak * part / 5 for part in (1, 2, 3, 4, 5)])
    assert rates[5] == peak and rates[5:] == sorted(rates[5:], reverse=True)
    assert peak * 0.05 <= rates[-1] < peak * 0.06


def test_a_recipe_that_is_all_warm_up_has_a_rate_for_each_step(training_recipe: TrainingRecipe) -> None:
    """warmup_steps = steps leaves no cosine to divide by."""
    recipe = msgspec.structs.replace(training_recipe, warmup_steps=training_recipe.steps)
    assert learning_rate(recipe.steps - 1, recipe) == recipe.learning_rate
    assert learning_rate(recipe.steps, recipe) == recipe.learning_rate


def updated(decoder: Decoder, recipe: TrainingRecipe, rows: PackedRows, rate: float) -> Optimizer:
    optimizer = Optimizer(decoder, recipe)
    torch.autograd.backward(summed_loss(decoder, rows.batch(np.arange(4))))
    optimizer.step(rate)
    return optimizer


def test_an_update_too_small_for_bfloat16_is_kept(
    make_decoder: MakeDecoder, training_recipe: TrainingRecipe, rows: PackedRows
) -> None:
    """Computing in bf16 leaves float32 masters: a rate of 1e-6 moves weights that bf16 could not tell apart."""
    decoder, before = make_decoder("bfloat16"), make_decoder("bfloat16")
    updated(decoder, training_recipe, rows, 1e-6)
    old, new = (dict(model.named_parameters())["layers.0.qkv.weight"] for model in (before, decoder))
    moved, alike = torch.ne(new, old), torch.eq(new.bfloat16(), old.bfloat16())
    assert moved.float().mean() > 0.9
    assert alike[moved].float().mean() > 0.9


def test_only_matrices_decay(make_decoder: MakeDecoder, training_recipe: TrainingRecipe, rows: PackedRows) -> None:
    """With no gradient to speak of, a weight matrix shrinks by rate times decay and a norm stays."""
    recipe = msgspec.structs.replace(training_recipe, weight_decay=0.5)
    decoder, before = make_decoder(), make_decoder()
    optimizer = Optimizer(decoder, recipe)
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    old, new = dict(before.named_parameters()), dict(decoder.named_parameters())
    torch.testing.assert_close(new["layers.0.mlp.down.weight"], old["layers.0.mlp.down.weight"] * 0.95)
    assert torch.equal(new["norm.weight"], old["norm.weight"])


def test_a_gradient_that_is_not_finite_changes_nothing(
    make_decoder: MakeDecoder, training_recipe: TrainingRecipe
) -> None:
    """The weights survive the step that diverged, and the norm tells."""
    decoder, before = make_decoder(), make_decoder()
    optimizer = Optimizer(decoder, training_recipe)
    for parameter in decoder.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    assert not math.isfinite(optimizer.step(0.1))
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), before.parameters(), strict=True))


def test_the_moments_of_another_model_are_refused(
    make_decoder: MakeDecoder, training_recipe: TrainingRecipe, rows: PackedRows
) -> None:
    """Restoring needs a moment for each parameter, no more and no fewer."""
    optimizer = updated(make_decoder(), training_recipe, rows, 1e-3)
    tensors = optimizer.tensors()
    del tensors["exp_avg:embedding"]
    with pytest.raises(Problem, match="another model"):
        Optimizer(make_decoder(), training_recipe).restore(tensors, 1)
