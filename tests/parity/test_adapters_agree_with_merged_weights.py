"""An adapter beside the weights computes what transformers does with it merged into them: W + scale * B @ A."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import write_adapter
from random_checkpoints import CASES, CONTEXT_TOKENS, VOCAB, make_checkpoint
from torch import Tensor

from penstock.models.adapter import load_adapter
from penstock.models.attention import packed_causal, packed_positions
from penstock.models.load import load_decoder
from penstock.models.low_rank import adapting

pytest.importorskip("transformers")

BOUND = 1e-4
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "rank": 20, "alpha": 5},
    "patterns": {"rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 17}, "alpha_pattern": {"o_proj": 40.0}},
    "attention alone": {"targets": ("q_proj", "v_proj"), "dtype": torch.bfloat16},
}


def merged(model: Any, changes: dict[str, Tensor]) -> Any:
    """transformers' model with the changes in its weights, in float64 where it computes in that."""
    model = model if hasattr(model.config, "num_experts_per_tok") else model.double()
    with torch.no_grad():
        for name, change in changes.items():
            model.get_submodule(name).weight += change
    return model


def check(case: str, directory: Path, **kind: Any) -> None:
    model = make_checkpoint(case, directory / "base")
    changes = write_adapter(directory / "adapter", directory / "base", **kind)
    decoder = load_decoder(directory / "base", "float32", context_tokens=CONTEXT_TOKENS.get(case))
    adapter = load_adapter(directory / "adapter", decoder, max_rank=64)
    token_ids, other = torch.randint(0, VOCAB, (60,)), torch.randint(0, VOCAB, (30,))
    with torch.inference_mode():
        base = model(token_ids[None]).logits[0].log_softmax(-1)
        theirs = merged(model, changes)(token_ids[None]).logits[0].log_softmax(-1).float()
        adapt = adapting(decoder.ops, [(adapter, torch.arange(30, 90))])
        hidden = decoder(torch.cat((other, token_ids)), packed_positions([30, 60]), packed_causal([30, 60]), adapt)
        ours = decoder.logits(hidden).log_softmax(-1)
        alone = decoder.logits(decoder(other, packed_positions([30]), packed_causal([30]))).log_softmax(-1)
    assert (theirs - base).abs().max() > 100 * BOUND, "the adapter must change something"
    torch.testing.assert_close(ours[30:], theirs, rtol=0, atol=BOUND)
    torch.testing.assert_close(ours[:30], alone, rtol=0, atol=BOUND)


@pytest.mark.parametrize("case", CASES)
def test_every_family(case: str, tmp_path: Path) -> None:
    """In float32 every log-probability is within 1e-4 of the merged weights', and rows of nobody are the base's."""
    check(case, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_and_ranks(kind: str, tmp_path: Path) -> None:
    """alpha/r, alpha/sqrt(r), ranks and alphas by module, and an adapter of some modules are PEFT's."""
    check("qwen3", tmp_path, **KINDS[kind])
