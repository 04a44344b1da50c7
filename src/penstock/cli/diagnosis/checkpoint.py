"""How much memory a model takes, from the sizes of its files and its config.json.

In: what a user would write after ``penstock serve``; out: :class:`Model`.  Fetches and writes nothing, opens no
weights and loads no torch, so it also answers where no engine runs; whether this release implements the architecture
is the engine's word.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from penstock.cli.diagnosis.facts import Model
from penstock.config.settings import EngineSettings
from penstock.cost.memory import LOGITS_ROWS, kv_bytes_per_token, workspace_bytes
from penstock.store.sources import resolve, snapshot
from penstock.wire.errors import Problem

_READ = ("awq", "compressed-tensors", "gptq")


def find(source: str | None) -> Model:
    """The model that ``source`` names, or the bundled one; without a directory if it is not on this machine."""
    try:
        return inspect(resolve(source, fetch=partial(snapshot, cached_only=True)).directory)
    except Problem as problem:
        if problem.code in ("hub_offline", "checkpoint_unsafe"):  # not fetched, or not its weights
            return Model(name=str(source))
        return Model(name=str(source), problem=problem.message)


def inspect(directory: Path) -> Model:
    """Weights, KV cache per token and context of the checkpoint; ``problem`` names the file and field at fault."""
    name, path = directory.resolve().name, str(directory)
    config_path = directory / "config.json"
    try:
        config = msgspec.json.decode(config_path.read_bytes(), type=dict[str, Any])
        model = _model(name, path, config)
        weights = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    except OSError as error:
        return Model(name=name, directory=path, problem=f"{error.filename}: {error.strerror}")
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        return Model(name=name, directory=path, problem=f"{config_path}: {error}")
    if not weights:
        return Model(name=name, directory=path, problem=f"{directory} holds no *.safetensors file")
    return msgspec.structs.replace(model, weights_bytes=weights)


def _model(name: str, directory: str, config: dict[str, Any]) -> Model:
    stated = config.get("quantization_config")
    if stated is not None and not (isinstance(stated, dict) and stated.get("quant_method") in _READ):
        raise ValueError(
            f"quantization_config: weights are read when quantised by {', '.join(_READ)}, and not by others"
        )
    if isinstance(config.get("text_config"), dict):
        # A larger model, of which the decoder is read; its section leaves out what only the engine knows.
        return Model(name=name, directory=directory)
    if "type_vocab_size" in config:
        # An encoder, which has no KV cache.
        return Model(name=name, directory=directory)
    heads, hidden, context = (
        _count(config, field) for field in ("num_attention_heads", "hidden_size", "max_position_embeddings")
    )
    wide = (config.get("dtype") or config.get("torch_dtype")) in ("float32", None)
    step_tokens, block_tokens = (int(_ENGINE_DEFAULTS[field]) for field in ("max_step_tokens", "block_tokens"))
    return Model(
        name=name,
        directory=directory,
        kv_bytes_per_token=kv_bytes_per_token(
            num_layers=_count(config, "num_hidden_layers"),
            num_kv_heads=_count(config, "num_key_value_heads", heads),
            vector_bytes=_count(config, "head_dim", hidden // heads) * (4 if wide else 2),
        ),
        context_tokens=context,
        workspace_bytes=workspace_bytes(
            step_tokens=step_tokens,
            hidden_size=hidden,
            intermediate_size=_count(config, "intermediate_size"),
            context_tokens=context,
            vocab_size=_count(config, "vocab_size"),
            logits_rows=LOGITS_ROWS,
        ),
        block_tokens=block_tokens,
    )


_ENGINE_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(EngineSettings)}


def _count(config: dict[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{field} is {msgspec.json.encode(value).decode()}, not a positive integer")
    return value
