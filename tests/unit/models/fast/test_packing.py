"""Which weights of a decoder are packed as what, and that it then computes nearly the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoints import make_checkpoint

from penstock.models import machine_code
from penstock.models.attention import packed_causal, packed_positions
from penstock.models.decoder import Decoder
from penstock.models.fast import activations, int8, products
from penstock.models.fast.compile import kernels
from penstock.models.fast.pack import packing
from penstock.models.load import load_decoder
from penstock.models.packed import Packed, num_weight_bytes

pytestmark = pytest.mark.skipif(not int8.is_supported(), reason="needs a CPU with AVX2")


def kinds(decoder: Decoder) -> Counter[str]:
    found: list[Packed] = [weight for module in decoder.modules() for weight in getattr(module, "packed", ())]
    return Counter(weight.kind for weight in found)


@pytest.mark.parametrize(
    ("case", "quantization", "expected"),
    [
        ("llama", "none", {"bf16": 13}),
        ("llama", "int8", {"int8": 13}),
        ("llama", "int4", {"int4": 12, "int8": 1}),
        ("qwen3-moe", "int4", {"int4": 3 * (2 + 6 * 2), "bf16": 3, "int8": 1}),
    ],
)
def test_what_is_packed(case: str, quantization: Any, expected: dict[str, int], tmp_path: Path) -> None:
    """Linears as asked; routers stay in bf16, and the head has eight bits at least."""
    make_checkpoint(case, tmp_path)
    decoder = load_decoder(tmp_path, "bfloat16", pack=packing(quantization))
    assert kinds(decoder) == expected
    names = [name for name, parameter in decoder.named_parameters() if parameter.ndim > 1]
    assert names == ([] if case == "llama" else ["embedding"])


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_the_first_step_compiles_nothing(quantization: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kernels were compiled ahead of it, those of routers and of the head, too."""
    make_checkpoint("qwen3-moe", tmp_path)
    for job in (activations.quantise_job, products.multiply_bf16, products.multiply_int8, products.multiply_int4):
        vars(job).pop("address", None)
    for job in kernels(torch.bfloat16, quantization):
        job.compile()
    monkeypatch.setattr(machine_code, "cfunc", None)
    decoder = load_decoder(tmp_path, "bfloat16", pack=packing(quantization))
    with torch.inference_mode():
        assert decoder.logits(decoder(torch.arange(8), packed_positions([8]), packed_causal([8]))).isfinite().all()


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("case", ["llama", "llama-biases", "qwen3-moe", "gemma2", "phi3-longrope-long"])
def test_a_quantised_decoder_predicts_nearly_the_same(case: str, quantization: Any, tmp_path: Path) -> None:
    """Of random weights of every kind; the divergence from bf16 in nats per token."""
    make_checkpoint(case, tmp_path)
    token_ids = torch.arange(40) * 7 % 320
    plain, quantised = (
        load_decoder(tmp_path, "bfloat16", context_tokens=64, pack=pack).requires_grad_(False)
        for pack in (None, packing(quantization))
    )
    rows = [
        decoder.logits(decoder(token_ids, packed_positions([40]), packed_causal([40]))).log_softmax(-1)
        for decoder in (plain, quantised)
    ]
    divergence = (rows[0].exp() * (rows[0] - rows[1])).sum(-1).mean()
    assert 0 < divergence < (0.005 if quantization == "int8" else 0.15)


def test_memory_shrinks_as_told(tmp_path: Path) -> None:
    """``num_weight_bytes`` counts packed weights, and parameters that stay."""
    make_checkpoint("llama", tmp_path)
    sizes = [
        num_weight_bytes(load_decoder(tmp_path, "bfloat16", pack=packing(kind))) for kind in ("none", "int8", "int4")
    ]
    assert sizes[0] > sizes[1] > sizes[2]
