"""What config.json may say, and what it gets when it says something else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from penstock.models.config import ModelConfig
from penstock.models.rope import Llama3Scaling, RopeConfig
from penstock.models.traits import LayerSpec
from penstock.wire.errors import Problem

QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "sliding_window": 4096,
    "use_sliding_window": False,
}
LLAMA = {key: value for key, value in QWEN3.items() if "sliding" not in key} | {"architectures": ["LlamaForCausalLM"]}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(directory: Path, content: Any) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(content))
    return ModelConfig.from_directory(directory)


def refusal(directory: Path, content: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        read(directory, content)
    assert str(directory / "config.json") in caught.value.message
    return caught.value


def test_qwen3_is_read(tmp_path: Path) -> None:
    """Qwen3's fields arrive, and a sliding window that its switch turns off is no obstacle."""
    config = read(tmp_path, QWEN3)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (2, 4, 2, 16)
    assert config.qk_norm == "per_head" and config.tie_embeddings and config.dtype == "bfloat16"
    assert config.layers == (LayerSpec(RopeConfig(1e6)),) * 2


def test_llama_head_size_follows_from_its_width(tmp_path: Path) -> None:
    """Llama without head_dim divides its width by its heads, and without key heads has one per query head."""
    config = read(tmp_path, LLAMA | {"head_dim": None, "num_key_value_heads": None})
    assert (config.head_dim, config.num_kv_heads, config.qk_norm) == (16, 4, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": None, "rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
    ],
)
def test_rope_is_read_in_both_spellings(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The theta and Llama 3 scaling of older and of newer transformers mean the same."""
    assert read(tmp_path, LLAMA | fields).layers[0].rope == RopeConfig(5e5, Llama3Scaling(32.0, 1.0, 4.0, 8192))


@pytest.mark.parametrize(
    ("stated", "computed"),
    [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float32", "float32"), (None, "float32")],
)
def test_dtype_follows_the_checkpoint(tmp_path: Path, stated: str | None, computed: str) -> None:
    """The dtype to compute in is the stated one, float16 as bfloat16, and float32 where nothing is stated."""
    assert read(tmp_path, QWEN3 | {"torch_dtype": stated}).dtype == computed
    assert read(tmp_path, QWEN3 | {"torch_dtype": None, "dtype": stated}).dtype == computed


@pytest.mark.parametrize("content", [QWEN3, LLAMA | {"rope_scaling": LLAMA3, "attention_bias": True, "mlp_bias": True}])
def test_configuration_survives_writing_and_reading(tmp_path: Path, content: dict[str, Any]) -> None:
    """What we write for transformers we read back as the same configuration."""
    config = read(tmp_path, content)
    assert read(tmp_path, config.to_huggingface()) == config


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma2ForCausalLM"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_the_activation_survives_writing_and_reading(tmp_path: Path, architecture: str, activation: str) -> None:
    """Whichever of its two names a family's default has, the activation that was stated comes back."""
    names = {"hidden_act": activation, "hidden_activation": activation}
    config = read(tmp_path, LLAMA | names | {"architectures": [architecture]})
    assert config.activation == {"gelu_pytorch_tanh": "gelu_tanh"}.get(activation, activation)
    assert read(tmp_path, config.to_huggingface()) == config


def test_missing_directory_is_a_missing_source(tmp_path: Path) -> None:
    """A path that is no directory is named as such."""
    with pytest.raises(Problem, match="nowhere is not a directory") as caught:
        ModelConfig.from_directory(tmp_path / "nowhere")
    assert caught.value.code == "source_not_found"


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A directory without config.json says so."""
    with pytest.raises(Problem, match=r"config\.json is missing") as caught:
        ModelConfig.from_directory(tmp_path)
    assert caught.value.code == "checkpoint_invalid"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff{}", b"[]", b"null", b"[" * 100_000])
def test_file_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    """A config.json that is not a JSON object is refused with its name."""
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(Problem, match=r"config\.json") as caught:
        ModelConfig.from_directory(tmp_path)
    assert caught.value.code == "checkpoint_invalid"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", None),
        ("architectures", []),
        ("architectures", "Qwen3ForCausalLM"),
        ("architectures", ["Qwen3ForCausalLM", "LlamaForCausalLM"]),
        ("hidden_size", None),
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", "64"),
        ("hidden_size", 64.5),
        ("hidden_size", True),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("head_dim", 15),
        ("vocab_size", 10**12),
        ("vocab_size", None),
        ("intermediate_size", []),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", "tiny"),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", float("inf")),
        ("rope_theta", 0),
        ("rope_scaling", "llama3"),
        ("partial_rotary_factor", 0.03),
        ("tie_word_embeddings", 1),
        ("torch_dtype", 16),
    ],
)
def test_missing_or_absurd_field_is_named(tmp_path: Path, field: str, value: Any) -> None:
    """A field that is missing, mistyped or out of range is refused by name."""
    problem = refusal(tmp_path, QWEN3 | {field: value})
    assert problem.code == "checkpoint_invalid"
    assert problem.param == field and field in problem.message


def test_width_that_the_heads_do_not_divide_is_refused(tmp_path: Path) -> None:
    """Llama's derived head size must come out whole."""
    problem = refusal(tmp_path, LLAMA | {"head_dim": None, "num_attention_heads": 3, "num_key_value_heads": 3})
    assert problem.code == "checkpoint_invalid" and "64" in problem.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "bits": 4}),
        ("hidden_act", "relu2"),
        ("layer_types", ["full_attention", "chunked_attention"]),
        ("layer_types", "sliding_attention"),
        ("torch_dtype", "float8_e4m3fn"),
    ],
)
def test_what_is_not_implemented_is_unsupported(tmp_path: Path, field: str, value: Any) -> None:
    """A field that asks for something that the decoder does not do is refused, never ignored."""
    problem = refusal(tmp_path, QWEN3 | {field: value})
    assert problem.code == "checkpoint_unsupported" and problem.param == field


def test_a_window_is_refused_where_the_family_knows_none(tmp_path: Path) -> None:
    """A window that Llama's config.json states, either way, is refused: nobody trained with it."""
    assert refusal(tmp_path, LLAMA | {"sliding_window": 4096}).param == "sliding_window"
    kinds = ["full_attention", "sliding_attention"]
    problem = refusal(tmp_path, LLAMA | {"layer_types": kinds})
    assert (problem.code, problem.param) == ("checkpoint_unsupported", "layer_types")


def test_windows_are_where_config_json_puts_them(tmp_path: Path) -> None:
    """Qwen's switch turns windows on from a layer on, or where layer_types says."""
    on = QWEN3 | {"use_sliding_window": True, "max_window_layers": 1}
    assert [layer.window for layer in read(tmp_path, on).layers] == [None, 4096]
    kinds = ["sliding_attention", "full_attention"]
    assert [layer.window for layer in read(tmp_path, on | {"layer_types": kinds}).layers] == [4096, None]
    assert [layer.window for layer in read(tmp_path, QWEN3 | {"max_window_layers": 1}).layers] == [None, None]


@pytest.mark.parametrize(
    "kinds", [["sliding_attention"], ["sliding_attention"] * 3, ["sliding_attention", "full_attention"]]
)
def test_kinds_of_layers_that_do_not_fit_are_named(tmp_path: Path, kinds: list[str]) -> None:
    """layer_types with another number of entries than layers, or with windows of no size, is refused by name."""
    problem = refusal(tmp_path, QWEN3 | {"layer_types": kinds})
    assert problem.code == "checkpoint_invalid" and problem.param == "layer_types"


@pytest.mark.parametrize("kind", ["dynamic", "ntk", "proportional"])
def test_other_rope_scaling_is_unsupported(tmp_path: Path, kind: str) -> None:
    """A kind of rope scaling that is not implemented is refused by name, under either key."""
    for key in ("rope_type", "type"):
        problem = refusal(tmp_path, QWEN3 | {"rope_scaling": {key: kind, "factor": 4.0}})
        assert problem.code == "checkpoint_unsupported" and kind in problem.message and "llama3" in problem.message


@pytest.mark.parametrize("change", [{"factor": None}, {"factor": 0.0}, {"high_freq_factor": 1.0}])
def test_broken_llama3_scaling_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    """A missing or senseless number of the scaling is named with its path."""
    problem = refusal(tmp_path, LLAMA | {"rope_scaling": LLAMA3 | change})
    assert problem.code == "checkpoint_invalid" and problem.param == f"rope_scaling.{next(iter(change))}"


def test_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    """An unknown architecture is named beside those that are supported."""
    problem = refusal(tmp_path, QWEN3 | {"architectures": ["MambaForCausalLM"]})
    assert problem.code == "checkpoint_unsupported"
    for name in ("MambaForCausalLM", "LlamaForCausalLM", "Qwen3ForCausalLM"):
        assert name in problem.message


def test_code_from_the_checkpoint_matters_only_for_an_unknown_architecture(tmp_path: Path) -> None:
    """auto_map is ignored where the architecture is ours, and explained where it is not."""
    remote = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    assert read(tmp_path, QWEN3 | remote).num_layers == 2
    assert "auto_map" in refusal(tmp_path, QWEN3 | remote | {"architectures": ["CustomLM"]}).message


@pytest.mark.parametrize(
    ("stated", "method"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "bits": 4}}, "bitsandbytes"),
        ({"quantization_config": {"quant_algo": "FP8"}}, "FP8"),
        ({"quantization_config": True}, "unnamed"),
        ({"compression_config": {"quant_method": "fbgemm_fp8"}}, "fbgemm_fp8"),
    ],
)
def test_quantised_weights_are_refused_with_the_way_out(tmp_path: Path, stated: dict[str, Any], method: str) -> None:
    """The method is named, and what to take instead."""
    problem = refusal(tmp_path, QWEN3 | stated)
    assert problem.code == "checkpoint_unsupported"
    assert f"(method: {method})" in problem.message and "bfloat16" in problem.message


def test_the_text_part_of_a_larger_model_is_read(tmp_path: Path) -> None:
    """Gemma 3 with eyes states its decoder in text_config, sparsely; without that section it is refused by name."""
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "dtype": "bfloat16"}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "head_dim": 16}
    config = read(tmp_path, whole | {"text_config": sizes})
    assert config.architecture == "Gemma3ForCausalLM" and config.tie_embeddings and config.dtype == "bfloat16"
    assert [layer.window for layer in config.layers] == [4096] * 5 + [None]
    assert refusal(tmp_path, whole).param == "text_config"
    assert refusal(tmp_path, whole | {"text_config": sizes | {"hidden_size": 0}}).param == "text_config.hidden_size"


def test_a_number_that_no_float_holds_is_refused(tmp_path: Path) -> None:
    """A whole number of 400 digits is out of range like any other."""
    assert refusal(tmp_path, QWEN3 | {"rms_norm_eps": 10**400}).code == "checkpoint_invalid"


@pytest.mark.parametrize("kind", ["pipe", "directory", "loop"])
def test_a_config_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    """A pipe is not waited for; a directory and a link to itself are no crash."""
    path = tmp_path / "config.json"
    make = {"pipe": lambda: os.mkfifo(path), "directory": path.mkdir, "loop": lambda: path.symlink_to(path)}
    make[kind]()
    with pytest.raises(Problem) as caught:
        ModelConfig.from_directory(tmp_path)
    assert caught.value.code == "checkpoint_invalid" and str(path) in caught.value.message


def test_an_escape_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A lone surrogate, which JSON can spell and no message can carry, is refused before it is quoted."""
    assert refusal(tmp_path, QWEN3 | {"quantization_config": {"quant_method": "\ud800"}}).code == "checkpoint_invalid"


@pytest.mark.parametrize(
    ("rope", "field"),
    [
        ({"type": "yarn", "rope_theta": 1.0, "factor": 4.0}, "rope_theta"),
        (
            {
                "type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [1.0] * 8,
                "original_max_position_embeddings": 1,
            },
            "original_max_position_embeddings",
        ),
    ],
)
def test_a_rope_whose_logarithm_is_zero_is_refused(tmp_path: Path, rope: dict[str, Any], field: str) -> None:
    """YaRN divides by the base's logarithm and LongRoPE by the original context's: 1 is refused, not divided by."""
    problem = refusal(tmp_path, QWEN3 | {"rope_scaling": rope})
    assert problem.code == "checkpoint_invalid" and field in str(problem.param)
