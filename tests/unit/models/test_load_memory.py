"""Loading needs the memory of the weights and little more, whatever is converted and fused on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from seeded import write_seeded_checkpoint

from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.dtypes import DType
from penstock.models.fast import int8
from penstock.models.rope import RopeConfig
from penstock.models.save import save_decoder
from penstock.models.traits import ExpertSpec, LayerSpec

LOAD = """
import sys
from pathlib import Path
from penstock.models.load import load_decoder

def resident(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

load_decoder(Path(sys.argv[3]), "bfloat16")  # whatever torch loads of itself when it is first used
before = resident("VmRSS")
decoder = load_decoder(Path(sys.argv[1]), sys.argv[2])
weights = sum(parameter.nbytes for parameter in decoder.parameters())
print(weights, (resident("VmHWM") - before) / weights)
"""


def config_of(architecture: str, dtype: DType) -> ModelConfig:
    """Some 60 million parameters, most of them in the embedding, in experts, or in fused matrices."""
    experts = ExpertSpec(num=8, per_token=2, intermediate_size=1024, renormalise=True)
    with_experts = architecture == "Qwen3MoeForCausalLM"
    return ModelConfig(
        architecture=architecture,
        layers=(LayerSpec(RopeConfig(1e4), experts=experts if with_experts else None),) * 3,
        num_heads=8,
        num_kv_heads=2,
        head_dim=96,
        hidden_size=768,
        intermediate_size=2048,
        vocab_size=50_000 if architecture == "LlamaForCausalLM" else 1_000,
        max_position=512,
        norm_eps=1e-6,
        tie_embeddings=True,
        qk_norm="per_head" if with_experts else None,
        dtype=dtype,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("architecture", "stored", "dtype"),
    [
        ("LlamaForCausalLM", "float32", "bfloat16"),
        ("Qwen3MoeForCausalLM", "bfloat16", "float32"),
        ("Phi3ForCausalLM", "float32", "float32"),
    ],
)
def test_loading_peaks_at_the_weights_and_a_tenth(architecture: str, stored: DType, dtype: str, tmp_path: Path) -> None:
    """Resident memory while loading grows by at most 1.1 times the weights, in a process of its own."""
    decoder = Decoder(config_of(architecture, stored))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.fill_(0.5)
    save_decoder(decoder, tmp_path / "model")
    write_seeded_checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model"), dtype, str(tmp_path / "tiny")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights, share = done.stdout.split()
    assert int(weights) > 70_000_000
    assert float(share) < 1.1, share


LOAD_PACKED = """
import sys
from pathlib import Path
from penstock.models.fast.pack import packing
from penstock.models.load import load_decoder
from penstock.models.packed import num_weight_bytes

def resident(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024

pack = packing(sys.argv[2])
load_decoder(Path(sys.argv[3]), "bfloat16", pack=pack)
before = resident("VmRSS")
decoder = load_decoder(Path(sys.argv[1]), "bfloat16", pack=pack)
print(num_weight_bytes(decoder), resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or not int8.is_supported(), reason="reads /proc, needs AVX2")
@pytest.mark.parametrize(("quantization", "share"), [("none", 1.02), ("int8", 0.52), ("int4", 0.45)])
def test_packing_peaks_at_the_packed_weights_and_little_more(quantization: str, share: float, tmp_path: Path) -> None:
    """At most 60 MB above them, which are at most ``share`` of the plain 110: a plain copy never exists."""
    decoder = Decoder(config_of("LlamaForCausalLM", "bfloat16"))
    plain = sum(parameter.nbytes for parameter in decoder.parameters())
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.fill_(0.5)
    save_decoder(decoder, tmp_path / "model")
    write_seeded_checkpoint(tmp_path / "tiny")
    command = [sys.executable, "-c", LOAD_PACKED, str(tmp_path / "model"), quantization, str(tmp_path / "tiny")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    packed, grown = map(int, done.stdout.split())
    assert packed < share * plain
    assert grown < packed + 60_000_000, (grown, packed)
