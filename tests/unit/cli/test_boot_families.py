"""What the engine process makes of a checkpoint of another family than the default model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from random_checkpoints import make_checkpoint
from seeded import write_seeded_checkpoint

from penstock.cli.boot import boot
from penstock.config.settings import EngineSettings
from penstock.engine.cpu.executor import CpuExecutor
from penstock.engine.server.booted import Booted
from penstock.models.rope import LongRopeScaling


def booted_from(case: str, directory: Path, max_model_len: int | None = None) -> Booted:
    """The case's weights and configuration beside the seeded checkpoint's tokenizer."""
    write_seeded_checkpoint(directory)
    make_checkpoint(case, directory)
    settings = EngineSettings(
        replica="0",
        socket="",
        model_dir=str(directory),
        served_name="m",
        kv_memory_bytes=1 << 20,
        max_model_len=max_model_len,
    )
    booted = boot(settings, lambda fraction, words: None)
    booted.grammars.close()
    return booted


@pytest.mark.parametrize("case", ["gemma2", "gemma3", "qwen3-moe-mixed", "mixtral-window"])
def test_a_family_boots(case: str, tmp_path: Path) -> None:
    """Windows, caps and experts are no obstacle to sizing memory and building an executor."""
    booted = booted_from(case, tmp_path / "model")
    assert booted.context_tokens == 512 and booted.vocab_size == 320
    assert booted.kv_bytes <= 1 << 20


def test_the_served_context_chooses_longrope_factors(tmp_path: Path) -> None:
    """With --max-model-len within the original context the short factors hold, else the long ones."""
    for name, max_model_len in (("all", None), ("short", 400)):
        executor = booted_from("phi3-longrope-short", tmp_path / name, max_model_len).executor
        assert isinstance(executor, CpuExecutor)
        decoder = executor._decoder
        rope, turn = decoder.config.layers[0].rope, decoder._turn(0, torch.tensor([3]))
        assert rope is not None and isinstance(rope.scaling, LongRopeScaling) and turn is not None
        factor = (rope.scaling.long if max_model_len is None else rope.scaling.short)[1]
        angle = torch.tensor(3 / (factor * rope.theta ** (1 / 8)))
        assert float(turn[0][0, 1]) == pytest.approx(float(angle.cos()) * rope.amplitude, abs=1e-5)
