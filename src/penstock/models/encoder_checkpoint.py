"""An encoder's checkpoint: its tensor names, and what of it is not served.

In: a directory in Hugging Face layout; out: an encoder, loaded by the same checks as a decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from penstock.models.encoder import Encoder
from penstock.models.encoder_config import EncoderConfig
from penstock.models.fill import Progress
from penstock.models.load import Blueprint, load_model
from penstock.models.ops import REFERENCE, Ops

_LAYER = "encoder.layer.*."

# The names that transformers gives the tensors of BERT, RoBERTa and XLM-R.
TENSORS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("embeddings.word_embeddings.weight",),
    "positions": ("embeddings.position_embeddings.weight",),
    "token_types": ("embeddings.token_type_embeddings.weight",),
    **{f"embedding_norm.{part}": (f"embeddings.LayerNorm.{part}",) for part in ("weight", "bias")},
    **{
        f"layers.*.qkv.{part}": tuple(f"{_LAYER}attention.self.{name}.{part}" for name in ("query", "key", "value"))
        for part in ("weight", "bias")
    },
    **{
        f"layers.*.{ours}.{part}": (f"{_LAYER}{theirs}.{part}",)
        for ours, theirs in (
            ("output", "attention.output.dense"),
            ("attention_norm", "attention.output.LayerNorm"),
            ("up", "intermediate.dense"),
            ("down", "output.dense"),
            ("mlp_norm", "output.LayerNorm"),
        )
        for part in ("weight", "bias")
    },
}
# Numbers of the positions, which old exporters stored, and the head for next-sentence prediction, which is no pooling
# of hidden states and has no use in an embedding.
_SPARE = ("embeddings.position_ids", "embeddings.token_type_ids", "pooler.dense.weight", "pooler.dense.bias")


def load_encoder(
    directory: Path,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    progress: Progress | None = None,
    ops: Ops = REFERENCE,
) -> Encoder:
    """The encoder in ``directory``, in ``dtype`` (``auto``: as its configuration reads it), over the table ``ops``.

    Loads and raises as :func:`~penstock.models.load.load_model` does.
    """
    config = EncoderConfig.from_directory(directory)
    if dtype != "auto":
        config = dataclasses.replace(config, dtype=dtype)
    blueprint = Blueprint(
        architecture=config.architecture,
        dtype=config.torch_dtype,
        build=lambda: Encoder(config, ops),
        tensors=TENSORS,
        is_spare=_SPARE.__contains__,
    )
    return load_model(directory, blueprint, progress)
