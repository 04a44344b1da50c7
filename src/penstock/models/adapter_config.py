"""What a PEFT folder says of a LoRA adapter before its tensors are read: ranks, scales, and where the tensors are.

In: a folder; out: a frozen value and a file.  What would compute something else than two small matrices beside a linear
is refused by name, never ignored.  Fields: https://huggingface.co/docs/peft/package_reference/lora.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from penstock.models.fields import Fields, read_object
from penstock.wire.errors import Problem

N = TypeVar("N", int, float)

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_MOST_RANK = 4096
_MOST_ALPHA = 1e6
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
"""Patterns are regular expressions in PEFT; all that people write are names, and those take no time to match."""

# Fields that change what is computed, and the values with which they do not.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": (None, "none"),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "use_qalora": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "use_bdlora": (None, False),
    # The others change the base weights when they begin, so that what was learnt is not beside the released ones.
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """``targets``: the last parts of the names of all changed modules; empty: whatever the tensors say."""

    file: Path
    rank: int
    alpha: float
    by_root: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...]

    @classmethod
    def from_directory(cls, directory: Path) -> AdapterConfig:
        """Raises ``checkpoint_invalid`` (file and field named) or ``checkpoint_unsupported``."""
        fields = read_object(directory / CONFIG_FILE)
        if fields.text("peft_type") != "LORA":
            raise fields.unsupported("peft_type", "Supported: LORA.")
        for name, neutral in _NEUTRAL.items():
            if not any(_same(fields.data.get(name), value) for value in neutral):
                allowed = " or ".join(json.dumps(value) for value in neutral)
                raise fields.unsupported(name, f"An adapter with it is not served; it has to be {allowed}.")
        ranks, alphas = _pattern(fields, "rank_pattern"), _pattern(fields, "alpha_pattern")
        return cls(
            file=fields.file,
            rank=fields.integer("r", 1, _MOST_RANK),
            alpha=fields.number("lora_alpha", 0.0, _MOST_ALPHA, default=8.0),
            by_root=fields.flag("use_rslora", False),
            ranks={key: ranks.integer(key, 1, _MOST_RANK) for key in ranks.data},
            alphas={key: alphas.number(key, 0.0, _MOST_ALPHA) for key in alphas.data},
            targets=_targets(fields),
        )

    def rank_of(self, module: str) -> int:
        """Of the module with this name in a checkpoint of the base model."""
        return _first(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """By how much the product of the two matrices is multiplied: alpha/r, or alpha/sqrt(r) (arXiv 2312.03732)."""
        rank = self.rank_of(module)
        return _first(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.by_root else rank)


def read_folder(directory: Path) -> tuple[AdapterConfig, Path]:
    """An adapter's configuration and the file of its tensors, which is there and not read.

    Raises ``source_not_found``, ``checkpoint_invalid``, ``checkpoint_unsupported`` or ``checkpoint_unsafe``.
    """
    if not directory.is_dir():
        raise Problem("source_not_found", f"{directory} is not a directory.")
    config = AdapterConfig.from_directory(directory)
    file = directory / WEIGHTS_FILE
    if file.is_file():
        return config, file
    pickle = directory / "adapter_model.bin"
    if pickle.exists():
        message = f"{pickle} is a pickle, which can run code when loaded. Save the adapter as safetensors."
        raise Problem("checkpoint_unsafe", message)
    raise Problem("checkpoint_invalid", f"{directory} holds no {WEIGHTS_FILE}.")


def _same(value: Any, neutral: Any) -> bool:
    return type(value) is type(neutral) and bool(value == neutral)


def _pattern(fields: Fields, name: str) -> Fields:
    pattern = fields.object(name) or Fields(fields.file, {})
    if not all(_PLAIN_NAME.fullmatch(key) for key in pattern.data):
        raise fields.unsupported(name, "Its keys have to be plain names of modules, not regular expressions.")
    return pattern


def _first(values: Mapping[str, N], module: str, otherwise: N) -> N:
    """As PEFT has it: the first key that is the module's name or its end after a dot."""
    return next((value for key, value in values.items() if f".{module}".endswith(f".{key}")), otherwise)


def _targets(fields: Fields) -> tuple[str, ...]:
    stated = fields.data.get("target_modules")
    if stated is None or isinstance(stated, str):  # an expression over names, of which the tensors are the outcome
        return ()
    if not isinstance(stated, list) or not all(isinstance(target, str) for target in stated):
        raise Problem(
            "checkpoint_invalid", f"{fields.file}: target_modules must be a list of names.", param="target_modules"
        )
    return tuple(stated)
