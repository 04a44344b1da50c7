"""A training recipe: what ``penstock train`` makes, from which text, with which sizes, steps and seed.

In: values somebody chose; out: a frozen :class:`Recipe`.  The file is read, and what one key asks of another is
checked, by train/recipe_file.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Rate = Annotated[float, Meta(gt=0.0, le=1.0)]
# Room for a decay below one, which Adam needs: 1 - beta is a divisor.
Decay = Annotated[float, Meta(ge=0.0, lt=1.0)]

NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every section is frozen and refuses keys that it does not know."""


class CorpusRecipe(_Section, frozen=True, kw_only=True):
    """``prepare``: which text.  ``python_version`` and ``digest`` record what the shipped weights were made from."""

    kind: Literal["python-documentation"] = "python-documentation"
    held_out_share: Share = 0.02
    """Which part of the documents is never trained on, and measures bits per byte."""
    python_version: str | None = None
    digest: str | None = None


class QuestionsRecipe(_Section, frozen=True, kw_only=True):
    """What fine-tuning asks."""

    per_entry: Count = 24
    """In how many phrasings, drawn from some seventy, each callable and module is asked about."""
    declined: Count = 12_000
    """Questions whose right answer is that it does not know."""
    about_itself_each: Count = 20
    """How often each greeting, and each question about the model itself, is asked."""


class TokenizerRecipe(_Section, frozen=True, kw_only=True):
    """``tokenizer``: byte-level BPE.  256 bytes and three special tokens are part of ``vocab_size``."""

    vocab_size: Annotated[int, Meta(ge=259, le=65_536)]


class ModelRecipe(_Section, frozen=True, kw_only=True):
    """The decoder.  ``init_std``: standard deviation of the first weights."""

    architecture: Literal["LlamaForCausalLM", "Qwen3ForCausalLM"]
    num_layers: Annotated[int, Meta(ge=1, le=1024)]
    num_heads: Annotated[int, Meta(ge=1, le=4096)]
    num_kv_heads: Annotated[int, Meta(ge=1, le=4096)]
    head_dim: Annotated[int, Meta(ge=2, le=4096, multiple_of=2)]
    hidden_size: Size
    intermediate_size: Size
    max_position: Size
    rope_theta: Annotated[float, Meta(ge=1.0, le=1e12)] = 10_000.0
    norm_eps: Annotated[float, Meta(gt=0.0, le=1.0)] = 1e-6
    tie_embeddings: bool = True
    init_std: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.02


class TrainingRecipe(_Section, frozen=True, kw_only=True):
    """One loop, ``pretrain`` or ``sft``: ``steps`` updates of ``rows_per_step`` rows of ``row_tokens`` tokens each.

    ``rows_per_pass`` rows go through the model at once; it must divide ``rows_per_step`` (``None``: all of them).
    """

    steps: Count
    row_tokens: Annotated[int, Meta(ge=2, le=1 << 20)]
    rows_per_step: Count
    rows_per_pass: Count | None = None
    learning_rate: Rate
    final_learning_rate_share: Share = 0.05
    warmup_steps: Annotated[int, Meta(ge=0)] = 100
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    weight_decay: Share = 0.1
    clip_norm: Annotated[float, Meta(gt=0.0)] = 1.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """What the model computes in; the weights that are updated, and the optimiser's state, are always float32."""
    checkpoint_steps: Count = 200
    log_steps: Count = 10


class EvaluateRecipe(_Section, frozen=True, kw_only=True):
    """``evaluate``: greedy answers of at most ``max_answer_tokens``; ``max_callables`` shortens it for a trial."""

    max_answer_tokens: Count = 96
    max_callables: Count | None = None


class ExportRecipe(_Section, frozen=True, kw_only=True):
    """``export``: the checkpoint in Hugging Face layout."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_bytes: Count = 15_000_000
    """The weights may not be larger than this."""


class Recipe(_Section, frozen=True, kw_only=True):
    """Six stages: prepare (``corpus``), tokenizer (with ``questions``), pretrain, sft, evaluate, export."""

    name: Annotated[str, Meta(pattern=NAME)]
    seed: Annotated[int, Meta(ge=0, lt=1 << 31)]
    corpus: CorpusRecipe
    questions: QuestionsRecipe
    tokenizer: TokenizerRecipe
    model: ModelRecipe
    pretrain: TrainingRecipe
    sft: TrainingRecipe
    evaluate: EvaluateRecipe
    export: ExportRecipe
