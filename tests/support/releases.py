"""Facts about real releases: what their config.json and generation_config.json say, and how many parameters they have.

Written down by us, most of them without the files at hand.  The published parameter counts (``num_parameters``) check
sizes, biases and ties; nothing here checks thetas, windows and generation settings.  Fields that no reader of ours
looks at are left out, and LongRoPE's factors are shown by their number alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Release:
    """``windows`` and ``experts``: how many layers have them.  ``stops``: the ids that end a generation."""

    config: dict[str, Any]
    num_parameters: int
    context: int
    windows: int = 0
    experts: int = 0
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def stops(self) -> set[int]:
        ids = self.generation.get("eos_token_id", [])
        return set(ids) if isinstance(ids, list) else {ids}


_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def _llama3(factor: float) -> dict[str, Any]:
    return {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


def _config(architecture: str, sizes: tuple[int, int, int, int, int, int], **fields: Any) -> dict[str, Any]:
    """``sizes``: hidden, intermediate, layers, heads, KV heads, vocabulary."""
    return {
        "architectures": [architecture],
        "torch_dtype": "bfloat16",
        **dict(zip(_SIZES, sizes, strict=True)),
        **fields,
    }


_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [32.0] * 48}
_LLAMA3_STOPS = {"eos_token_id": [128001, 128008, 128009], "temperature": 0.6, "top_p": 0.9}
_QWEN_STOPS = {"eos_token_id": [151645, 151643], "top_k": 20}
_GEMMA2 = {
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
}
_GRANITE = {
    "attention_bias": False,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}
_PHI = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attention_bias": False}

RELEASES: dict[str, Release] = {
    "meta-llama/Llama-2-7b-chat-hf": Release(
        _config(
            "LlamaForCausalLM",
            (4096, 11008, 32, 32, 32, 32000),
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            rope_scaling=None,
            tie_word_embeddings=False,
            torch_dtype="float16",
        ),
        6_738_415_616,
        4096,
        generation={"eos_token_id": 2, "temperature": 0.6, "top_p": 0.9},
    ),
    "meta-llama/Llama-3.1-8B-Instruct": Release(
        _config(
            "LlamaForCausalLM",
            (4096, 14336, 32, 32, 8, 128256),
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=_llama3(8.0),
            tie_word_embeddings=False,
        ),
        8_030_261_248,
        131072,
        generation=_LLAMA3_STOPS,
    ),
    "meta-llama/Llama-3.2-1B-Instruct": Release(
        _config(
            "LlamaForCausalLM",
            (2048, 8192, 16, 32, 8, 128256),
            head_dim=64,
            max_position_embeddings=131072,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=_llama3(32.0),
            tie_word_embeddings=True,
        ),
        1_235_814_400,
        131072,
        generation=_LLAMA3_STOPS,
    ),
    "mistralai/Mistral-7B-v0.1": Release(
        _config(
            "MistralForCausalLM",
            (4096, 14336, 32, 32, 8, 32000),
            max_position_embeddings=32768,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            sliding_window=4096,
            tie_word_embeddings=False,
        ),
        7_241_732_096,
        32768,
        windows=32,
        generation={"eos_token_id": 2},
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": Release(
        _config(
            "MistralForCausalLM",
            (4096, 14336, 32, 32, 8, 32768),
            max_position_embeddings=32768,
            rms_norm_eps=1e-5,
            rope_theta=1000000.0,
            sliding_window=None,
            tie_word_embeddings=False,
        ),
        7_248_023_552,
        32768,
        generation={"eos_token_id": 2},
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": Release(
        _config(
            "MixtralForCausalLM",
            (4096, 14336, 32, 32, 8, 32000),
            max_position_embeddings=32768,
            num_experts_per_tok=2,
            num_local_experts=8,
            rms_norm_eps=1e-5,
            rope_theta=1000000.0,
            sliding_window=None,
            tie_word_embeddings=False,
        ),
        46_702_792_704,
        32768,
        experts=32,
        generation={"eos_token_id": 2},
    ),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": Release(
        _config(
            "MixtralForCausalLM",
            (6144, 16384, 56, 48, 8, 32768),
            max_position_embeddings=65536,
            num_experts_per_tok=2,
            num_local_experts=8,
            rms_norm_eps=1e-5,
            rope_theta=1000000.0,
            sliding_window=None,
            tie_word_embeddings=False,
        ),
        140_630_071_296,
        65536,
        experts=56,
        generation={"eos_token_id": 2},
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": Release(
        _config(
            "Qwen2ForCausalLM",
            (896, 4864, 24, 14, 2, 151936),
            max_position_embeddings=32768,
            max_window_layers=21,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            sliding_window=32768,
            tie_word_embeddings=True,
            use_sliding_window=False,
        ),
        494_032_768,
        32768,
        generation={**_QWEN_STOPS, "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8},
    ),
    "Qwen/Qwen2.5-7B-Instruct, with YaRN as its card shows": Release(
        _config(
            "Qwen2ForCausalLM",
            (3584, 18944, 28, 28, 4, 152064),
            max_position_embeddings=32768,
            max_window_layers=28,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
            sliding_window=131072,
            tie_word_embeddings=False,
            use_sliding_window=False,
        ),
        7_615_616_512,
        131072,
        generation={**_QWEN_STOPS, "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8},
    ),
    "Qwen/Qwen3-0.6B": Release(
        _config(
            "Qwen3ForCausalLM",
            (1024, 3072, 28, 16, 8, 151936),
            attention_bias=False,
            head_dim=128,
            max_position_embeddings=40960,
            max_window_layers=28,
            rms_norm_eps=1e-6,
            rope_scaling=None,
            rope_theta=1000000,
            sliding_window=None,
            tie_word_embeddings=True,
            use_sliding_window=False,
        ),
        596_049_920,
        40960,
        generation={**_QWEN_STOPS, "temperature": 0.6, "top_p": 0.95},
    ),
    "Qwen/Qwen3-8B": Release(
        _config(
            "Qwen3ForCausalLM",
            (4096, 12288, 36, 32, 8, 151936),
            attention_bias=False,
            head_dim=128,
            max_position_embeddings=40960,
            max_window_layers=36,
            rms_norm_eps=1e-6,
            rope_theta=1000000,
            sliding_window=None,
            tie_word_embeddings=False,
            use_sliding_window=False,
        ),
        8_190_735_360,
        40960,
        generation={**_QWEN_STOPS, "temperature": 0.6, "top_p": 0.95},
    ),
    "Qwen/Qwen3-30B-A3B": Release(
        _config(
            "Qwen3MoeForCausalLM",
            (2048, 6144, 48, 32, 4, 151936),
            attention_bias=False,
            decoder_sparse_step=1,
            head_dim=128,
            max_position_embeddings=40960,
            max_window_layers=48,
            mlp_only_layers=[],
            moe_intermediate_size=768,
            norm_topk_prob=True,
            num_experts=128,
            num_experts_per_tok=8,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            sliding_window=None,
            tie_word_embeddings=False,
            use_sliding_window=False,
        ),
        30_532_122_624,
        40960,
        experts=48,
        generation={**_QWEN_STOPS, "temperature": 0.6, "top_p": 0.95},
    ),
    "Qwen/Qwen3-235B-A22B": Release(
        _config(
            "Qwen3MoeForCausalLM",
            (4096, 12288, 94, 64, 4, 151936),
            attention_bias=False,
            decoder_sparse_step=1,
            head_dim=128,
            max_position_embeddings=40960,
            max_window_layers=94,
            mlp_only_layers=[],
            moe_intermediate_size=1536,
            norm_topk_prob=True,
            num_experts=128,
            num_experts_per_tok=8,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            sliding_window=None,
            tie_word_embeddings=False,
            use_sliding_window=False,
        ),
        235_093_634_560,
        40960,
        experts=94,
        generation={**_QWEN_STOPS, "temperature": 0.6, "top_p": 0.95},
    ),
    "google/gemma-2-2b-it": Release(
        _config("Gemma2ForCausalLM", (2304, 9216, 26, 8, 4, 256000), **_GEMMA2),
        2_614_341_888,
        8192,
        windows=13,
        generation={"eos_token_id": [1, 107]},
    ),
    "google/gemma-2-9b-it": Release(
        _config("Gemma2ForCausalLM", (3584, 14336, 42, 16, 8, 256000), **_GEMMA2),
        9_241_705_984,
        8192,
        windows=21,
        generation={"eos_token_id": 1},
    ),
    "google/gemma-3-1b-it": Release(
        _config(
            "Gemma3ForCausalLM",
            (1152, 6912, 26, 4, 1, 262144),
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            head_dim=256,
            hidden_activation="gelu_pytorch_tanh",
            max_position_embeddings=32768,
            query_pre_attn_scalar=256,
            rms_norm_eps=1e-6,
            rope_local_base_freq=10000,
            rope_scaling=None,
            rope_theta=1000000,
            sliding_window=512,
            sliding_window_pattern=6,
        ),
        999_885_952,
        32768,
        windows=22,
        generation={"eos_token_id": [1, 106], "top_k": 64, "top_p": 0.95},
    ),
    "google/gemma-3-12b-it": Release(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "eos_token_id": [1, 106],
            "torch_dtype": "bfloat16",
            "text_config": {
                "hidden_size": 3840,
                "intermediate_size": 15360,
                "model_type": "gemma3_text",
                "num_attention_heads": 16,
                "num_hidden_layers": 48,
                "num_key_value_heads": 8,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
                "vocab_size": 262208,
            },
            "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27},
        },
        # 12,187,325,040 with the parts that see.
        11_766_034_176,
        131072,
        windows=40,
        generation={"eos_token_id": [1, 106], "top_k": 64, "top_p": 0.95},
    ),
    "ibm-granite/granite-3.1-2b-instruct": Release(
        _config(
            "GraniteForCausalLM",
            (2048, 8192, 40, 32, 8, 49155),
            **_GRANITE,
            attention_multiplier=0.015625,
            logits_scaling=8.0,
            rope_theta=5000000.0,
        ),
        2_533_531_648,
        131072,
        generation={"eos_token_id": 0},
    ),
    "ibm-granite/granite-3.3-8b-instruct": Release(
        _config(
            "GraniteForCausalLM",
            (4096, 12800, 40, 32, 8, 49159),
            **_GRANITE,
            attention_multiplier=0.0078125,
            logits_scaling=16.0,
            rope_theta=10000000.0,
        ),
        8_170_864_640,
        131072,
        generation={"eos_token_id": 0},
    ),
    "allenai/OLMo-2-0425-1B-Instruct": Release(
        _config(
            "Olmo2ForCausalLM",
            (2048, 8192, 16, 16, 16, 100352),
            attention_bias=False,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            rope_scaling=None,
            rope_theta=500000,
            tie_word_embeddings=False,
        ),
        1_484_916_736,
        4096,
        generation={"eos_token_id": 100257},
    ),
    "allenai/OLMo-2-1124-7B-Instruct": Release(
        _config(
            "Olmo2ForCausalLM",
            (4096, 11008, 32, 32, 32, 100352),
            attention_bias=False,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            rope_scaling=None,
            rope_theta=500000,
            tie_word_embeddings=False,
        ),
        7_298_617_344,
        4096,
        generation={"eos_token_id": 100257},
    ),
    "microsoft/Phi-3-mini-4k-instruct": Release(
        _config(
            "Phi3ForCausalLM",
            (3072, 8192, 32, 32, 32, 32064),
            **_PHI,
            max_position_embeddings=4096,
            original_max_position_embeddings=4096,
            rope_scaling=None,
            sliding_window=2047,
            tie_word_embeddings=False,
        ),
        3_821_079_552,
        4096,
        windows=32,
        generation={"eos_token_id": [32000, 32001, 32007]},
    ),
    "microsoft/Phi-3-mini-128k-instruct": Release(
        _config(
            "Phi3ForCausalLM",
            (3072, 8192, 32, 32, 32, 32064),
            **_PHI,
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            rope_scaling=_LONGROPE,
            sliding_window=262144,
            tie_word_embeddings=False,
        ),
        3_821_079_552,
        131072,
        windows=32,
        generation={"eos_token_id": [32000, 32001, 32007]},
    ),
    "microsoft/Phi-4-mini-instruct": Release(
        _config(
            "Phi3ForCausalLM",
            (3072, 8192, 32, 24, 8, 200064),
            **_PHI,
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            partial_rotary_factor=0.75,
            rope_scaling=_LONGROPE,
            sliding_window=262144,
            tie_word_embeddings=True,
        ),
        3_836_021_760,
        131072,
        windows=32,
        generation={"eos_token_id": [200020, 199999]},
    ),
}
