"""Checkpoints as other people's tools quantise them, written from the formats' layouts, number by number.

In: a checkpoint in floating point and a layout; out: the same directory with quantised linears, and their true values.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
IN_ORDER = tuple(range(8))

CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    "gptq-one-group": {"quant_method": "gptq", "bits": 4, "group_size": -1},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
    "w4a16": {},
    "w4a16-asymmetric": {},
    "w8a8": {},
}


def _compressed(layout: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int"} | weights, "input_activations": activations}
    groups = {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    return {"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed"} | groups


_FOUR = {"num_bits": 4, "strategy": "group", "group_size": GROUP, "actorder": None}
CONFIGS["w4a16"] = _compressed("pack-quantized", _FOUR | {"symmetric": True}, None)
CONFIGS["w4a16-asymmetric"] = _compressed("pack-quantized", _FOUR | {"symmetric": False}, None)
CONFIGS["w8a8"] = _compressed(
    "int-quantized",
    {"num_bits": 8, "strategy": "channel", "symmetric": True},
    {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True, "type": "int"},
)


def quantise_checkpoint(directory: Path, layout: str) -> dict[str, Tensor]:
    """Quantise every linear of a layer in ``directory``; the true values of all tensors, by their former names."""
    file = directory / "model.safetensors"
    stored, true = load_file(file), {}
    written: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        true[name] = tensor.float()
        # Routers are left as they are, as tools do: four rows would not fill a word.
        if ".layers." in name and tensor.ndim == 2 and len(tensor) % 8 == 0:
            parts, true[name] = _quantise(tensor.float(), layout)
            written |= {name.removesuffix("weight") + part: values.contiguous() for part, values in parts.items()}
        else:
            written[name] = tensor.bfloat16()
            true[name] = tensor.bfloat16().float()
    save_file(written, file, {"format": "pt"})
    change_config(directory, quantization_config=CONFIGS[layout], dtype="bfloat16")
    return true


def change_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def _quantise(weight: Tensor, layout: str) -> tuple[dict[str, Tensor], Tensor]:
    """The parts that are stored, and what they stand for."""
    rows, inputs = weight.shape
    if layout == "w8a8":
        scales = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
        values = (weight / scales.float()).round().clamp(-127, 127).to(torch.int8)
        return {"weight": values, "weight_scale": scales}, values.float() * scales.float()
    group = inputs if layout == "gptq-one-group" else GROUP
    grouped = weight.unflatten(1, (-1, group))  # type: ignore[no-untyped-call]
    symmetric = layout == "w4a16"
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales = (torch.maximum(-low, high) / 7 if symmetric else (high - low) / 15).half()
    # GPTQ's first format cannot say that zero is 0.
    zeros = torch.full(low.shape, 8.0) if symmetric else (-low / scales.float()).round().clamp(1, 15)
    values = (grouped / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    true = ((values - zeros[..., None]) * scales.float()[..., None]).flatten(1)
    values, numbers = values.flatten(1).long(), zeros.long()
    if layout.startswith("w4a16"):
        parts = {"weight_packed": _words(values), "weight_scale": scales, "weight_shape": torch.tensor([rows, inputs])}
        if not symmetric:
            parts["weight_zero_point"] = _words(numbers.T).T
        return parts, true
    if layout == "awq":
        packed = {"qweight": _words(values.T, AWQ_ORDER), "qzeros": _words(numbers.T, AWQ_ORDER)}
        return packed | {"scales": scales.T}, true
    stored = numbers if layout == "gptq_v2" else numbers - 1
    packed = {"qweight": _words(values).T, "qzeros": _words(stored.T), "scales": scales.T}
    return packed | {"g_idx": (torch.arange(inputs) // group).int()}, true


def _words(numbers: Tensor, order: tuple[int, ...] = IN_ORDER) -> Tensor:
    """int64 [R, 8 * W] -> int32 [R, W]; the lowest bits of a word are of number ``order[0]`` of its eight."""
    eight = numbers.reshape(len(numbers), -1, 8)
    words = sum(eight[:, :, place] << 4 * nth for nth, place in enumerate(order))
    assert isinstance(words, Tensor)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()
