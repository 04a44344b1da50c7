"""LoRA adapters with random values, written as PEFT writes them, and the weights that they amount to.

In: a checkpoint and an adapter's sizes; out: a folder, and for every module what is added to its weight, in float64.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")


def modules_of(checkpoint: Path, targets: Collection[str] = ALL) -> dict[str, tuple[int, int]]:
    """The linears of a checkpoint with these last names, but for experts, and the shapes of their weights."""
    found = {}
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                module = name.removesuffix(".weight")
                if module.rpartition(".")[2] in targets and ".experts." not in name and module != name:
                    rows, inputs = tensors.get_slice(name).get_shape()
                    found[module] = rows, inputs
    return found


def write_adapter(
    directory: Path,
    checkpoint: Path,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    seed: int = 1,
    targets: Collection[str] = ALL,
    dtype: torch.dtype = torch.float32,
    strength: float = 0.1,
    **fields: Any,
) -> dict[str, Tensor]:
    """The adapter; gives scale * B @ A by module.  ``fields`` go into adapter_config.json."""
    source = torch.Generator().manual_seed(seed)
    modules = modules_of(checkpoint, targets)
    ranks, alphas = fields.get("rank_pattern", {}), fields.get("alpha_pattern", {})
    tensors, changes = {}, {}
    for module, (rows, inputs) in modules.items():
        own = next((ranks[key] for key in ranks if module.endswith(key)), rank)
        scale = next((alphas[key] for key in alphas if module.endswith(key)), alpha)
        scale /= own**0.5 if fields.get("use_rslora") else own
        down = (torch.randn(own, inputs, generator=source) * strength).to(dtype)
        up = (torch.randn(rows, own, generator=source) * strength).to(dtype)
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
        changes[module] = scale * (up.double() @ down.double())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint),
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "bias": "none",
        **fields,
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return changes


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory: Path, changes: dict[str, Tensor | None]) -> None:
    """Put these tensors in place; ``None`` removes one.  Names without PEFT's prefix."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[f"base_model.model.{name}"]
        else:
            tensors[f"base_model.model.{name}"] = tensor
    save_file(tensors, path)
