"""Whether a checkpoint fits together, and into what the machine and the settings leave it.

In: sizes from its headers, its config.json and its tokenizer; out: nothing or a number, or a ``Problem`` with both
sides of it.
"""

from __future__ import annotations

import math
from pathlib import Path

from penstock.config.settings import EngineSettings, Quantization
from penstock.cost.memory import megabytes, weights_bytes
from penstock.engine.adapters import AdapterRules
from penstock.text.tokenizer import Tokenizer
from penstock.wire.errors import Problem

_FLOATS = ("F32", "F16", "BF16")
# Bytes of a weight, its share of scales and zero points counted.
_QUANTISED_BYTES: dict[Quantization, float] = {"int8": 1.02, "int4": 0.6}


def check_weights_fit(directory: Path, settings: EngineSettings, own_dtype: str, free_bytes: int) -> None:
    """Raise ``insufficient_memory`` where the weights do not fit; ``own_dtype`` is the checkpoint's, for ``auto``.

    Linux grants memory it does not have and kills whoever uses it; a sentence beforehand is kinder.
    """
    from penstock.models.checkpoint import read_headers

    wide = settings.dtype == "float32" or (settings.dtype == "auto" and own_dtype == "float32")
    headers = read_headers(directory)
    plain = 4 if wide else 2
    in_layers = _QUANTISED_BYTES.get(settings.quantization, plain)
    needed = 0
    for name, tensor in headers.items():
        # What is quantised for certain: the matrices of layers.
        if tensor.dtype not in _FLOATS:
            needed += tensor.num_bytes
            continue
        each = in_layers if ".layers." in name and len(tensor.shape) > 1 else plain
        needed += weights_bytes(math.prod(tensor.shape), each)
    if needed > free_bytes:
        message = f"The weights of {directory} need {megabytes(needed)}, but only {megabytes(free_bytes)} are free."
        raise Problem("insufficient_memory", message)


def check_adapters_fit(room: AdapterRules, free_bytes: int) -> None:
    """Raise ``insufficient_memory`` where what is kept for adapters is more than there is."""
    if room.all_bytes > free_bytes:
        raise Problem(
            "insufficient_memory",
            f"{room.most} adapters of the largest rank need {megabytes(room.all_bytes)}, but only "
            f"{megabytes(free_bytes)} are free. Lower --max-loras or --max-lora-rank.",
            param="max_loras",
        )


def check_vocabulary(directory: Path, tokenizer: Tokenizer, num_rows: int) -> None:
    """Raise ``checkpoint_invalid`` where the tokenizer has ids that the embedding has no rows for.

    Special tokens that neither the chat template nor a setting uses do no harm (Gemma 3's stands for images); a
    request that spells one is refused then.
    """
    beyond = (token_id for token_id in range(num_rows, tokenizer.vocab_size) if tokenizer.knows(token_id))
    used = [tokenizer.token_text(token_id) for token_id in beyond if tokenizer.uses(token_id)]
    if used:
        raise Problem(
            "checkpoint_invalid",
            f"{directory / 'tokenizer.json'} has ids up to {tokenizer.vocab_size - 1}, but by vocab_size in "
            f"{directory / 'config.json'} the embedding has {num_rows} rows: none for {', '.join(used[:3])}"
            f"{' and others' if len(used) > 3 else ''}. One of the files is another model's, or tokens were added "
            "without new rows: take tokenizer and weights from one release.",
        )


def context_tokens(settings: EngineSettings, max_position: int, default: int) -> int:
    """The context to serve: what the settings say, up to ``max_position``, else ``default``."""
    if settings.max_model_len is None:
        return default
    if settings.max_model_len > max_position:
        message = f"--max-model-len {settings.max_model_len} exceeds the model's context of {max_position} tokens"
        raise Problem("invalid_setting", message, param="max_model_len")
    return settings.max_model_len
