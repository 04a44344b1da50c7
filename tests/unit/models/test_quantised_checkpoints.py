"""Checkpoints that others have quantised are read number by number; damaged ones are refused with file and tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_checkpoints import CONFIGS, change_config, change_tensors, quantise_checkpoint
from random_checkpoints import make_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from penstock.models.attention import packed_causal, packed_positions
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.fast import int8
from penstock.models.fast.int4 import Int4Weight
from penstock.models.fast.int8 import Int8Weight
from penstock.models.fast.pack import packing
from penstock.models.linear import Linear
from penstock.models.load import load_decoder
from penstock.wire.errors import Problem

pytestmark = pytest.mark.skipif(not int8.is_supported(), reason="needs a CPU with AVX2")
Q_PROJ = "model.layers.1.self_attn.q_proj"


def load(directory: Path) -> Decoder:
    return load_decoder(directory, pack=packing()).requires_grad_(False)


def log_probabilities(decoder: Decoder) -> Tensor:
    token_ids = torch.arange(40) * 7 % 320
    return decoder.logits(decoder(token_ids, packed_positions([40]), packed_causal([40]))).log_softmax(-1)


def stands_for(linear: Linear) -> Tensor:
    rows = []
    for weight in linear.packed:
        assert isinstance(weight, Int4Weight | Int8Weight)
        rows.append(weight.exact_rows(torch.arange(weight.num_rows)))
    return torch.cat(rows)


@pytest.mark.parametrize("layout", CONFIGS)
@pytest.mark.parametrize("case", ["llama-gqa", "qwen3"])
def test_every_number_is_read(layout: str, case: str, tmp_path: Path) -> None:
    """The fused weight of queries, keys and values, and one alone, are the very numbers that were written."""
    make_checkpoint(case, tmp_path)
    true = quantise_checkpoint(tmp_path, layout)
    layer: Any = load(tmp_path).layers[1]
    expected = torch.cat([true[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(stands_for(layer.qkv), expected)
    assert torch.equal(stands_for(layer.mlp.down), true["model.layers.1.mlp.down_proj.weight"])


@pytest.mark.parametrize("layout", CONFIGS)
def test_the_decoder_predicts_what_its_numbers_say(layout: str, tmp_path: Path) -> None:
    """Against a decoder in float32 whose weights are these numbers: what is left is the rounding of rows."""
    make_checkpoint("llama-gqa", tmp_path)
    true = quantise_checkpoint(tmp_path, layout)
    quantised = log_probabilities(load(tmp_path))
    save_file(true, tmp_path / "model.safetensors", {"format": "pt"})
    change_config(tmp_path, quantization_config=None)
    expected = log_probabilities(load_decoder(tmp_path, "float32").requires_grad_(False))
    assert (expected.exp() * (expected - quantised)).sum(-1).mean() < 0.005


def test_experts_are_read_one_by_one(tmp_path: Path) -> None:
    """Each into its own weight, beside a router in floating point."""
    make_checkpoint("mixtral", tmp_path)
    true = quantise_checkpoint(tmp_path, "gptq")
    layer: Any = load(tmp_path).layers[0]
    names = [f"model.layers.0.block_sparse_moe.experts.{n}.{w}.weight" for n in range(4) for w in ("w1", "w3")]
    assert torch.equal(stands_for(layer.mlp.expert_gate_up), torch.cat([true[name] for name in names]))
    assert layer.mlp.router.packed[0].kind == "bf16"


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


def not_finite(scales: Tensor) -> Tensor:
    return scales.index_fill(0, torch.tensor([0]), torch.nan)


@pytest.mark.parametrize(
    ("layout", "tensor", "change", "says"),
    [
        ("gptq", f"{Q_PROJ}.qzeros", None, "is missing"),
        ("awq", f"{Q_PROJ}.scales", None, "is missing"),
        ("w8a8", f"{Q_PROJ}.weight_scale", None, "is missing"),
        ("w4a16-asymmetric", f"{Q_PROJ}.weight_zero_point", None, "is missing"),
        ("gptq", f"{Q_PROJ}.qweight", lambda words: words[1:], "shape"),
        ("awq", f"{Q_PROJ}.qweight", lambda words: words.T, "shape"),
        ("gptq", f"{Q_PROJ}.scales", lambda scales: scales[:1], "shape"),
        ("w4a16", f"{Q_PROJ}.weight_packed", lambda words: words.long(), "I64"),
        ("w8a8", f"{Q_PROJ}.weight_scale", lambda scales: scales.int(), "I32"),
        ("awq", f"{Q_PROJ}.scales", not_finite, "NaN or infinite"),
        ("w8a8", f"{Q_PROJ}.weight_scale", not_finite, "NaN or infinite"),
        ("w4a16", f"{Q_PROJ}.weight_shape", lambda shape: shape.flip(0) * 2, "weight_shape"),
        ("gptq", f"{Q_PROJ}.g_idx", lambda groups: groups.flip(0), "desc_act"),
    ],
)
def test_a_damaged_one_is_refused(layout: str, tensor: str, change: Any, says: str, tmp_path: Path) -> None:
    """With the file, the tensor and what is wrong with it."""
    make_checkpoint("llama-gqa", tmp_path)
    quantise_checkpoint(tmp_path, layout)
    change_tensors(tmp_path, drop(tensor) if change is None else put(tensor, change))
    with pytest.raises(Problem) as caught:
        load(tmp_path)
    assert caught.value.code in ("checkpoint_invalid", "checkpoint_unsupported")
    assert tensor in caught.value.message and "model.safetensors" in caught.value.message
    assert says in caught.value.message


def test_parts_of_one_product_have_to_be_alike(tmp_path: Path) -> None:
    """Queries in floating point beside quantised keys are two products, which are not made."""
    make_checkpoint("llama-gqa", tmp_path)
    true = quantise_checkpoint(tmp_path, "awq")

    def change(tensors: dict[str, Tensor]) -> None:
        for part in ("qweight", "qzeros", "scales"):
            del tensors[f"{Q_PROJ}.{part}"]
        tensors[f"{Q_PROJ}.weight"] = true[f"{Q_PROJ}.weight"].bfloat16()

    change_tensors(tmp_path, change)
    with pytest.raises(Problem, match="not quantised alike"):
        load(tmp_path)


def test_a_linear_left_in_floating_point_is_packed_as_such(tmp_path: Path) -> None:
    """Whatever the tool was told to ignore is there as a plain tensor."""
    make_checkpoint("llama-gqa", tmp_path)
    true = quantise_checkpoint(tmp_path, "w8a8")

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.down_proj.weight_scale"]
        tensors["model.layers.1.mlp.down_proj.weight"] = true["model.layers.1.mlp.down_proj.weight"].bfloat16()

    change_tensors(tmp_path, change)
    decoder: Any = load(tmp_path)
    assert [layer.mlp.down.packed[0].kind for layer in decoder.layers] == ["int8", "bf16", "int8"]


def test_without_kernels_for_them_they_are_refused(tmp_path: Path) -> None:
    """Plain loading, as training does it, says what they are."""
    make_checkpoint("llama-gqa", tmp_path)
    quantise_checkpoint(tmp_path, "awq")
    with pytest.raises(Problem, match="quantised \\(int4\\)"):
        load_decoder(tmp_path)


def changed(settings: Any, **fields: Any) -> Any:
    """``settings`` with fields of the innermost object that has them changed."""
    if not isinstance(settings, dict):
        return settings
    inner = {key: changed(value, **fields) for key, value in settings.items()}
    return inner | {key: value for key, value in fields.items() if key in settings}


@pytest.mark.parametrize(
    ("layout", "fields", "names"),
    [
        ("gptq", {"bits": 8}, "bits"),
        ("gptq", {"group_size": 24}, "group_size"),
        ("gptq_v2", {"checkpoint_format": "marlin"}, "checkpoint_format"),
        ("awq", {"version": "gemv"}, "version"),
        ("awq", {"bits": 3}, "bits"),
        ("w4a16", {"format": "marlin-24"}, "format"),
        ("w4a16", {"num_bits": 8}, "num_bits"),
        ("w4a16", {"actorder": "group"}, "actorder"),
        ("w4a16", {"type": "float"}, "type"),
        ("w8a8", {"strategy": "tensor"}, "strategy"),
        ("w8a8", {"symmetric": False}, "symmetric"),
        ("w8a8", {"dynamic": False}, "dynamic"),
        ("w8a8", {"config_groups": {}}, "config_groups"),
        ("w8a8", {"quant_method": "bitsandbytes"}, "bitsandbytes"),
    ],
)
def test_what_is_not_read_is_refused_by_field(layout: str, fields: dict[str, Any], names: str, tmp_path: Path) -> None:
    """Another number of bits, another order, static scales: by config.json alone, before any tensor is looked at."""
    make_checkpoint("llama-gqa", tmp_path)
    change_config(tmp_path, quantization_config=changed(CONFIGS[layout], **fields))
    with pytest.raises(Problem) as caught:
        ModelConfig.from_directory(tmp_path)
    assert caught.value.code == "checkpoint_unsupported" and names in caught.value.message
