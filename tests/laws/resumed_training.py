"""A training process to be killed: trains a small float32 model in the folder that is its argument.

Prints "resumed N" at its start and "step N" after each step; leaves the final weights as a decoder's checkpoint.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import torch

from penstock.config.recipe import ModelRecipe, TrainingRecipe
from penstock.models.save import save_decoder
from penstock.store.runs import Run
from penstock.train.checkpoint import Checkpoints
from penstock.train.initial import initial_decoder
from penstock.train.loop import StepReport, train
from penstock.train.packing import PackedRows
from penstock.train.precision import ops_for

MODEL = ModelRecipe(
    architecture="LlamaForCausalLM",
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    hidden_size=32,
    intermediate_size=64,
    max_position=64,
)
RECIPE = TrainingRecipe(
    steps=60,
    row_tokens=48,
    rows_per_step=8,
    rows_per_pass=4,
    learning_rate=3e-3,
    warmup_steps=10,
    precision="float32",
    checkpoint_steps=3,
    log_steps=1,
)


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    generator = np.random.default_rng(5)
    lengths = generator.integers(3, 70, 150)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = generator.integers(0, 96, offsets[-1]).astype(np.uint16)
    mask = generator.random(offsets[-1]) < 0.7
    mask[offsets[:-1]] = False
    rows = PackedRows(tokens, mask, offsets, row_tokens=RECIPE.row_tokens, seed=5)
    decoder = initial_decoder(MODEL, 96, 5, ops_for(RECIPE.precision))
    run = Run(directory)

    def resumed(step: int) -> None:
        run.rewind("train", step)
        print(f"resumed {step}", flush=True)

    def report(step: StepReport) -> None:
        run.append({"stage": "train", **msgspec.to_builtins(step)})
        print(f"step {step.step}", flush=True)

    with run.locked():
        checkpoints = Checkpoints(directory / "checkpoints", "law")
        train(decoder, rows, RECIPE, 5, checkpoints, report=report, resumed=resumed, clock=time.monotonic)
        save_decoder(decoder, directory / "final")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
