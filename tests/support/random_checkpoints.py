"""Small random checkpoints of every family, written by transformers, as parity is measured against it.

In: a case's name and a directory; out: the reference model, its checkpoint saved there.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 320
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}
_YARN_BY_HAND = _YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 0.9}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.05 * pair for pair in range(8)],
    "long_factor": [1.0 + 0.8 * pair for pair in range(8)],
}
_LONGROPE_SHORT = {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 400}
_LONGROPE_LONG = {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 16}
_GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_GRANITE_SCALES = {
    "attention_multiplier": 0.0625,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
}
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# What a decoder is told to be served with, where it matters: below it transformers uses the short factors.
CONTEXT_TOKENS = {"phi3-longrope-short": 400}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama-gqa": ("Llama", {"tie_word_embeddings": False}),
    "llama-llama3-rope": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-linear-rope": ("Llama", {"rope_parameters": _LINEAR, "head_dim": 24}),
    "llama-biases": ("Llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 7, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": _YARN}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-untied": ("Qwen3", {"num_key_value_heads": 4, "head_dim": 16, "tie_word_embeddings": False}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 32, "rope_parameters": _YARN_BY_HAND}),
    "qwen3-moe": ("Qwen3Moe", {**_EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
    "qwen3-moe-mixed": ("Qwen3Moe", {**_EXPERTS, "head_dim": 16, "mlp_only_layers": [1], "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 6}),
    "gemma2": ("Gemma2", {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 8}),
    "gemma2-uncapped": ("Gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 16}),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 32,
            "sliding_window": 5,
            "rope_parameters": _GEMMA3_ROPES,
            "layer_types": [_SLIDING, _SLIDING, _FULL],
        },
    ),
    "gemma3-pattern": ("Gemma3", {"head_dim": 16, "sliding_window": 11, "num_hidden_layers": 7}),
    "granite": ("Granite", {"tie_word_embeddings": True, **_GRANITE_SCALES}),
    "granite-biases": ("Granite", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "olmo2": ("Olmo2", {"tie_word_embeddings": True}),
    "olmo2-biases": ("Olmo2", {"attention_bias": True, "num_key_value_heads": 4, "head_dim": 24}),
    "phi3": ("Phi3", {"sliding_window": 13, "head_dim": 24}),
    "phi3-longrope-short": ("Phi3", _LONGROPE_SHORT),
    "phi3-longrope-long": ("Phi3", _LONGROPE_LONG | {"tie_word_embeddings": True}),
    "phi3-partial-rotary": ("Phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.75}}),
}


def make_checkpoint(case: str, directory: Path) -> Any:
    """The random transformers model of ``case``, with no parameter left at a neutral value, saved in ``directory``.

    Its weights are exact in bf16, so that runs in bf16 differ by their own rounding alone.
    """
    family, options = copy.deepcopy(CASES[case])  # transformers writes into what it is given
    # Capped scores need an implementation of attention that knows them; the others are compared with the default.
    extra = {"attn_implementation": "eager"} if family == "Gemma2" else {}
    text = "Text" if family == "Gemma3" else ""
    config = getattr(transformers, f"{family}{text}Config")(**{**_SIZES, **options}, **extra)
    torch.manual_seed(len(case))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(0.2 * torch.randn_like(parameter))
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(directory)
    return model
