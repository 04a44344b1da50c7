"""An encoder's configuration: what config.json of a BERT-like checkpoint says, checked and in our words.

In: a directory; out: a frozen value.  What the encoder does not implement is refused by name, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from penstock.models.dtypes import TORCH_DTYPES, DType, read_dtype
from penstock.models.fields import Fields, read_object, refuse_quantised

ENCODERS = {"BertModel": "bert", "RobertaModel": "roberta", "XLMRobertaModel": "xlm-roberta"}
"""The encoders that Penstock knows: the architecture that config.json names, and its model_type.

BERT is arXiv 1810.04805.  RoBERTa (arXiv 1907.11692) and XLM-R (arXiv 1911.02116) are the same network, whose
positions are counted from behind the padding token's id.
"""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder.  ``max_position`` is the context in tokens; token ``i`` has position ``first_position + i``.

    ``dtype`` is the one to compute in: config.json's, with float16 read as float32, and float32 where it is silent.
    """

    architecture: str
    num_layers: int
    num_heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_positions: int
    first_position: int
    num_token_types: int
    norm_eps: float
    dtype: DType

    @classmethod
    def from_directory(cls, directory: Path) -> EncoderConfig:
        """Read ``directory``/config.json of an architecture in :data:`ENCODERS`.

        Raises ``checkpoint_invalid`` (file and field named) or ``checkpoint_unsupported``.
        """
        fields = read_object(directory / "config.json")
        architecture = _architecture(fields)
        assert architecture is not None, "not an encoder"
        _refuse_unsupported(fields)
        hidden = fields.integer("hidden_size", 1, 1 << 17)
        num_heads = fields.integer("num_attention_heads", 1, 1 << 12)
        if hidden % num_heads:
            raise fields.wrong("num_attention_heads", f"must divide hidden_size ({hidden})")
        num_positions = fields.integer("max_position_embeddings", 1, 1 << 24)
        first_position = 0 if architecture == "BertModel" else 1 + fields.integer("pad_token_id", 0, 1 << 24, default=1)
        if first_position >= num_positions:
            raise fields.wrong("pad_token_id", f"must leave positions of the {num_positions} that there are")
        return cls(
            architecture=architecture,
            num_layers=fields.integer("num_hidden_layers", 1, 1 << 10),
            num_heads=num_heads,
            hidden_size=hidden,
            intermediate_size=fields.integer("intermediate_size", 1, 1 << 20),
            vocab_size=fields.integer("vocab_size", 1, 1 << 24),
            num_positions=num_positions,
            first_position=first_position,
            num_token_types=fields.integer("type_vocab_size", 1, 1 << 10, default=2),
            norm_eps=fields.number("layer_norm_eps", 0.0, 1.0, default=1e-12),
            # Encoders are small and their output is compared by its digits: float16 is widened, not cut to 8 bits.
            dtype=read_dtype(fields, half="float32"),
        )

    @property
    def max_position(self) -> int:
        return self.num_positions - self.first_position

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.dtype]


def is_encoder(directory: Path) -> bool:
    """Whether ``directory``/config.json names an encoder.  Raises ``checkpoint_invalid`` where it cannot be read."""
    return _architecture(read_object(directory / "config.json")) is not None


def _architecture(fields: Fields) -> str | None:
    names = fields.data.get("architectures")
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) and names[0] in ENCODERS:
        return names[0]
    return None


def _refuse_unsupported(fields: Fields) -> None:
    refuse_quantised(fields)
    if fields.text("hidden_act", "gelu") != "gelu":
        raise fields.unsupported("hidden_act", "Only gelu is supported in encoders.")
    if fields.text("position_embedding_type", "absolute") != "absolute":
        raise fields.unsupported("position_embedding_type", "Only absolute positions are supported in encoders.")
    for name in ("is_decoder", "add_cross_attention"):
        if fields.flag(name, False):
            raise fields.unsupported(name, "Only encoders, which see the whole text at once, have this architecture.")
