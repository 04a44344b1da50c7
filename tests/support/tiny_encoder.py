"""A tiny BERT checkpoint from a fixed seed, with a tokenizer of letters and the files of sentence-transformers.

In: a directory; out: a complete checkpoint in it.  It has learnt nothing, but other texts have other vectors.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLS, SEP = 2, 3
HIDDEN, CONTEXT = 32, 96
NUM_POSITIONS = 128
_LETTERS = [chr(code) for code in range(ord("!"), 127) if not chr(code).isupper()]
_VOCABULARY = [*SPECIAL, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
VOCAB_SIZE = len(_VOCABULARY)
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": NUM_POSITIONS,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": VOCAB_SIZE,
}


def write_tiny_encoder(directory: Path, rows: str = "mean", normalize: bool = True) -> None:
    """``rows`` is the pooling mode, by its name in sentence-transformers."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "config.json", CONFIG)
    safetensors.torch.save_file(_tensors(), directory / "model.safetensors")
    _tokenizer().save(str(directory / "tokenizer.json"))
    _write(directory / "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast", "model_max_length": CONTEXT})
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    entries = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(modules)
    ]
    _write(directory / "modules.json", entries)
    (directory / "1_Pooling").mkdir(exist_ok=True)
    _write(directory / "1_Pooling" / "config.json", {"embedding_dimension": HIDDEN, "pooling_mode": rows})
    _write(directory / "sentence_bert_config.json", {"max_seq_length": CONTEXT, "do_lower_case": False})


def letters(text: str) -> list[int]:
    """The token ids of one word in small letters, as the tokenizer gives them: its first letter, then ``##`` ones."""
    ids = [_VOCABULARY.index(letter if i == 0 else f"##{letter}") for i, letter in enumerate(text)]
    return [CLS, *ids, SEP]


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(20_261_125)
    tensors: dict[str, Tensor] = {}

    def add(name: str, *shape: int, centre: float = 0.0, scale: float = 0.3) -> None:
        tensors[name] = centre + torch.randn(shape, generator=generator) * scale

    def norm(name: str) -> None:
        add(f"{name}.weight", HIDDEN, centre=1.0, scale=0.1)
        add(f"{name}.bias", HIDDEN, scale=0.1)

    def linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs, scale=0.1)

    for table, size in (("word", VOCAB_SIZE), ("position", NUM_POSITIONS), ("token_type", 2)):
        add(f"embeddings.{table}_embeddings.weight", size, HIDDEN, scale=1.0)
    norm("embeddings.LayerNorm")
    for layer in range(2):
        prefix = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            linear(f"{prefix}attention.self.{part}", HIDDEN, HIDDEN)
        linear(f"{prefix}attention.output.dense", HIDDEN, HIDDEN)
        norm(f"{prefix}attention.output.LayerNorm")
        linear(f"{prefix}intermediate.dense", 48, HIDDEN)
        linear(f"{prefix}output.dense", HIDDEN, 48)
        norm(f"{prefix}output.LayerNorm")
    linear("pooler.dense", HIDDEN, HIDDEN)
    return tensors


def _tokenizer() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(_VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=10_000))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    # What real releases ask for, and what must not happen: a long text cut in silence.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return tokenizer


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
