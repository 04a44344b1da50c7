"""The training loop: batches, loss, update, checkpoint, report.

In: a decoder, packed rows and a recipe; out: the decoder trained, and a report of every ``log_steps`` steps.
Everything a step needs follows from the recipe and the step's number, so a loop that was killed and resumed from its
checkpoint ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from penstock.config.recipe import TrainingRecipe
from penstock.models.decoder import Decoder
from penstock.train.checkpoint import Checkpoints
from penstock.train.loss import summed_loss
from penstock.train.optimizer import Optimizer
from penstock.train.order import rows_of_step
from penstock.train.packing import Batch, PackedRows
from penstock.train.schedule import learning_rate
from penstock.wire.errors import Problem


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """The ``log_steps`` steps that end with update number ``step``.

    ``loss`` is in nats per counted token, ``tokens_per_s`` counts every place of the rows, ``left_s`` is an estimate.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    tokens_per_s: float
    left_s: float


Report = Callable[[StepReport], None]


def train(
    decoder: Decoder,
    rows: PackedRows,
    recipe: TrainingRecipe,
    seed: int,
    checkpoints: Checkpoints,
    *,
    report: Report,
    resumed: Callable[[int], None],
    clock: Callable[[], float],
) -> None:
    """Train ``decoder`` in place, from the latest checkpoint on; the last step is always a checkpoint.

    ``resumed`` hears the step begun from before the first report.  ``clock`` gives seconds.
    Raises ``training_diverged`` at the first loss or gradient that is not finite, ``invalid_value`` where there is
    nothing to learn, ``artefact_invalid``, ``insufficient_disk``.
    """
    if not len(rows):
        raise Problem("invalid_value", "There is no token to predict: the token set is empty or wholly masked.")
    optimizer = Optimizer(decoder, recipe)
    first = checkpoints.restore(decoder, optimizer)
    resumed(first)
    pace = _Pace(recipe, first, clock)
    for step in range(first, recipe.steps):
        numbers = rows_of_step(seed, step, num_rows=len(rows), rows_per_step=recipe.rows_per_step)
        loss = _accumulate(decoder, rows, numbers, recipe)
        rate = learning_rate(step, recipe)
        norm = optimizer.step(rate)
        _check_finite(step + 1, loss, norm, rate)
        done = step + 1
        last = done == recipe.steps
        pace.add(loss)
        if done % recipe.log_steps == 0 or last:
            report(pace.report(done, rate, norm))
        # Behind the report: a run that is killed between the two computes the step, and reports it, again.
        if done % recipe.checkpoint_steps == 0 or last:
            checkpoints.save(done, decoder, optimizer)


def _accumulate(decoder: Decoder, rows: PackedRows, numbers: NDArray[np.int64], recipe: TrainingRecipe) -> float:
    """Gradients of the mean loss over every token that counts in the step, however many passes it takes."""
    per_pass = recipe.rows_per_pass or recipe.rows_per_step
    batches = [rows.batch(numbers[at : at + per_pass]) for at in range(0, len(numbers), per_pass)]
    counted = sum(float(batch.weights.sum()) for batch in batches)
    return sum(_backward(decoder, batch, counted) for batch in batches)


def _backward(decoder: Decoder, batch: Batch, counted: float) -> float:
    loss = summed_loss(decoder, batch) / counted
    torch.autograd.backward(loss)
    return float(loss.detach())


def _check_finite(step: int, loss: float, norm: float, rate: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        message = f"Step {step} has loss {loss:g} and gradient norm {norm:g} at learning rate {rate:g}."
        raise Problem("training_diverged", message)


class _Pace:
    """What happened since the last report, and how fast."""

    def __init__(self, recipe: TrainingRecipe, first: int, clock: Callable[[], float]) -> None:
        self._recipe = recipe
        self._clock = clock
        self._begin_step, self._begin_s = first, clock()
        self._losses: list[float] = []
        self._then_s = self._begin_s

    def add(self, loss: float) -> None:
        self._losses.append(loss)

    def report(self, step: int, rate: float, norm: float) -> StepReport:
        now = self._clock()
        recipe, tokens_per_step = self._recipe, self._recipe.rows_per_step * self._recipe.row_tokens
        losses, self._losses = self._losses, []
        seconds, self._then_s = now - self._then_s, now
        mean_step_s = (now - self._begin_s) / max(1, step - self._begin_step)
        return StepReport(
            step=step,
            steps=recipe.steps,
            loss=sum(losses) / len(losses),
            learning_rate=rate,
            gradient_norm=norm,
            tokens=step * tokens_per_step,
            tokens_per_s=len(losses) * tokens_per_step / seconds if seconds > 0 else 0.0,
            left_s=(recipe.steps - step) * mean_step_s,
        )
