"""``--quantization`` from the settings to what an engine says of itself."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from quantised_checkpoints import quantise_checkpoint
from random_checkpoints import make_checkpoint
from seeded import write_seeded_checkpoint
from tiny_encoder import write_tiny_encoder

from penstock.cli.boot import boot
from penstock.cli.evaluate import caches
from penstock.cli.numerics import numerics
from penstock.config.settings import EngineSettings
from penstock.engine.offline import run_offline
from penstock.events.list import Event, StartPartDone, WeightsLoaded
from penstock.models.config import ModelConfig
from penstock.models.dtypes import DType
from penstock.models.fast import bf16, int8
from penstock.wire.errors import Problem

needs_vnni = pytest.mark.skipif(not int8.is_supported(), reason="needs a CPU with AVX2")


def settings(directory: Path | str = "", **changes: Any) -> EngineSettings:
    return EngineSettings(
        replica="0", socket="", model_dir=str(directory), served_name="m", kv_memory_bytes=1 << 20, **changes
    )


def config(directory: Path, dtype: DType = "bfloat16") -> ModelConfig:
    write_seeded_checkpoint(directory)
    return replace(ModelConfig.from_directory(directory), dtype=dtype)


@needs_vnni
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_an_engine_says_what_its_weights_are_kept_in(quantization: Any, tmp_path: Path) -> None:
    """To the gateway, and to whoever reads the metrics."""
    write_seeded_checkpoint(tmp_path)
    make_checkpoint("qwen3", tmp_path)
    heard: list[Event] = []
    booted = boot(settings(tmp_path, dtype="bfloat16", quantization=quantization), lambda *_: None, heard.append)
    booted.grammars.close()
    assert booted.quantization == quantization
    parts = [event.part for event in heard if isinstance(event, StartPartDone)]
    assert parts == ["settings", "imports", "tokenizer", "weights", "memory"]
    loaded = [event for event in heard if isinstance(event, WeightsLoaded)]
    assert loaded == [WeightsLoaded(num_bytes=booted.weights_bytes, quantization=quantization)]


@pytest.mark.parametrize(
    ("changes", "dtype", "says"),
    [({"exact": True}, "bfloat16", "--exact"), ({}, "float32", "--dtype bfloat16")],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], dtype: Any, says: str, tmp_path: Path) -> None:
    """Before anything is compiled or loaded."""
    with pytest.raises(Problem) as caught:
        numerics(settings(quantization="int8", **changes), config(tmp_path, dtype))
    assert caught.value.code == "invalid_setting" and caught.value.param == "quantization"
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("changes", "dtype", "says"),
    [
        ({"kv_cache_dtype": "int8", "exact": True}, "bfloat16", "--exact"),
        ({"kv_cache_dtype": "int8"}, "float32", "--dtype bfloat16"),
        ({"kv_cache_dtype": "bfloat16"}, "float32", "--dtype bfloat16"),
    ],
)
def test_a_kv_cache_that_does_not_go_with_the_rest_is_refused(
    changes: dict[str, Any], dtype: Any, says: str, tmp_path: Path
) -> None:
    """Before anything is compiled or loaded."""
    with pytest.raises(Problem) as caught:
        numerics(settings(**changes), config(tmp_path, dtype))
    assert caught.value.code == "invalid_setting" and caught.value.param == "kv_cache_dtype"
    assert says in caught.value.message


@needs_vnni
def test_heads_of_an_odd_size_keep_no_bytes(tmp_path: Path) -> None:
    """Pages are packed sixteen numbers at a time, and sums of too many products would overflow."""
    made = config(tmp_path)
    for size in (24, 528):
        with pytest.raises(Problem, match=f"multiple of 16 numbers, 512 at most; this model's have {size}"):
            numerics(settings(kv_cache_dtype="int8"), replace(made, head_dim=size))


@needs_vnni
def test_a_kv_cache_in_bytes_holds_more_tokens(tmp_path: Path) -> None:
    """Of the same memory: a key or value has a byte a number and four bytes of scale."""
    write_seeded_checkpoint(tmp_path)
    make_checkpoint("qwen3", tmp_path)
    head_dim = ModelConfig.from_directory(tmp_path).head_dim
    kept = []
    for dtype in ("auto", "int8"):
        booted = boot(settings(tmp_path, dtype="bfloat16", kv_cache_dtype=dtype), lambda *_: None)
        booted.grammars.close()
        kept.append((booted.loop.scheduler.pool.num_blocks, booted.weights))
    (plain, weights), (packed, packed_weights) = kept
    assert packed == pytest.approx(plain * 2 * head_dim / (head_dim + 4), abs=1)
    assert weights != packed_weights, "a stream must not go on from one to the other as if they were the same"


@needs_vnni
def test_a_draft_model_keeps_its_keys_and_values_in_bytes_too(tmp_path: Path) -> None:
    """Both share the blocks' memory, and what a model drafts for itself is right: fewer steps for as many tokens."""
    write_seeded_checkpoint(tmp_path / "model")
    steps, kept = [], []
    for speculative in ("none", str(tmp_path / "model")):
        chosen = settings(tmp_path / "model", dtype="bfloat16", kv_cache_dtype="int8", speculative=speculative)
        booted = boot(chosen, lambda *_: None)
        booted.grammars.close()
        done = run_offline(booted.loop, booted.executor, [[1, 2, 3] * 4], [40], clock=itertools.count().__next__)
        steps.append(done.decode.steps)
        kept.append(booted.loop.scheduler.pool.num_blocks)
    drafter = booted.executor._drafter  # type: ignore[attr-defined]  # an executor is not known to have one
    assert drafter._forward.attention.pages.keys[0].dtype == torch.int8
    assert steps[1] < steps[0]
    assert kept[1] == pytest.approx(kept[0] / 2, abs=1)


@needs_vnni
def test_a_draft_model_that_cannot_is_named(tmp_path: Path) -> None:
    """It is the draft's heads, not the model's, that cannot be kept in eight bits."""
    write_seeded_checkpoint(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "draft")
    fields = msgspec.json.decode((tmp_path / "draft" / "config.json").read_bytes())
    (tmp_path / "draft" / "config.json").write_bytes(msgspec.json.encode(fields | {"head_dim": 24}))
    chosen = settings(tmp_path / "model", dtype="bfloat16", kv_cache_dtype="int8", speculative=str(tmp_path / "draft"))
    with pytest.raises(Problem, match=r"--speculative: \S+draft: --kv-cache-dtype int8 needs heads .* have 24"):
        boot(chosen, lambda *_: None)


def test_a_draft_in_float32_counts_as_what_it_is(tmp_path: Path) -> None:
    """Beside a model in bfloat16: of itself each keeps keys and values in its own numbers."""
    write_seeded_checkpoint(tmp_path)
    own = ModelConfig.from_directory(tmp_path)
    chosen = numerics(settings(), replace(own, dtype="bfloat16"))
    assert chosen.kv_dtype_of(replace(own, dtype="float32")) == torch.float32


def test_an_encoder_keeps_no_keys(tmp_path: Path) -> None:
    """So there is nothing to keep in eight bits."""
    write_tiny_encoder(tmp_path)
    with pytest.raises(Problem, match="this is an encoder") as caught:
        boot(settings(tmp_path, kv_cache_dtype="int8"), lambda *_: None)
    assert caught.value.param == "kv_cache_dtype"


@needs_vnni
def test_only_caches_that_a_model_can_have_are_evaluated(tmp_path: Path) -> None:
    """Not eight bits for heads of 24 numbers."""
    assert caches(replace(config(tmp_path), head_dim=24)) == ["auto"]
    assert caches(config(tmp_path)) == ["auto", "int8"]


def test_a_cpu_without_the_instructions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it lacks; weights as released are served all the same, unpacked."""
    for module in (bf16, int8):
        monkeypatch.setattr(module, "is_supported", lambda: False)
    assert numerics(settings(), config(tmp_path)).pack is None
    with pytest.raises(Problem, match="AVX2"):
        numerics(settings(quantization="int4"), config(tmp_path))


@needs_vnni
def test_a_checkpoint_that_is_quantised_already_is_served_as_it_is(tmp_path: Path) -> None:
    """The engine says so; neither a flag nor exact mode quantises it again."""
    write_seeded_checkpoint(tmp_path)
    make_checkpoint("qwen3", tmp_path)
    quantise_checkpoint(tmp_path, "awq")
    booted = boot(settings(tmp_path), lambda *_: None)
    booted.grammars.close()
    assert booted.quantization == "int4"
    for changes, code in (({"quantization": "int8"}, "invalid_setting"), ({"exact": True}, "checkpoint_unsupported")):
        with pytest.raises(Problem) as caught:
            boot(settings(tmp_path, **changes), lambda *_: None)
        assert caught.value.code == code and "awq" in caught.value.message


@needs_vnni
def test_evaluate_measures_every_kind(tmp_path: Path) -> None:
    """``penstock evaluate`` of a small model: eight bits change less than four; the text is read from a file."""
    write_seeded_checkpoint(tmp_path / "model")
    text = tmp_path / "text"
    text.write_text("To be, or not to be, that is the question. " * 20)
    command = [sys.executable, "-m", "penstock", "evaluate", str(text), "--model", str(tmp_path / "model")]
    command += ["--window", "64", "--tokens", "200", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {(row["quantization"], row["kv_cache_dtype"]): row["divergence"] for row in msgspec.json.decode(done.stdout)}
    assert list(rows) == [(weights, kept) for weights in ("none", "int8", "int4") for kept in ("auto", "int8")]
    plain = [rows[weights, "auto"]["kl"] for weights in ("none", "int8", "int4")]
    assert rows["none", "auto"]["num_tokens"] == 196
    assert plain == sorted(plain)
    assert plain[0] < rows["none", "int8"]["kl"] < plain[2]


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), (b"\xff\xfe", "not UTF-8"), (b"", "two tokens")]
)
def test_evaluate_needs_a_text(content: bytes | None, says: str, tmp_path: Path) -> None:
    """A file that is not there, is no text, or is empty."""
    write_seeded_checkpoint(tmp_path / "model")
    text = tmp_path / "text"
    if content is not None:
        text.write_bytes(content)
    command = [sys.executable, "-m", "penstock", "evaluate", str(text), "--model", str(tmp_path / "model")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and says in done.stderr
