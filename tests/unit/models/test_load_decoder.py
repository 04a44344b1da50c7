"""Loading: every parameter from the files, in the right place, or a clear refusal."""

from __future__ import annotations

import dataclasses
import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import safetensors.torch
import torch
from seeded import write_seeded_checkpoint
from torch import Tensor

from penstock.models import fill, load, save
from penstock.models.checkpoint import StoredTensor
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.layout import Piece, pieces
from penstock.models.load import load_decoder
from penstock.models.ops import REFERENCE, Ops
from penstock.models.save import save_decoder
from penstock.wire.errors import Problem


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_seeded_checkpoint(tmp_path / "model")
    return tmp_path / "model"


def tensors_of(directory: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(directory / "model.safetensors")


def rewrite(directory: Path, tensors: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(tensors, directory / "model.safetensors")


def edit_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(directory: Path) -> Problem:
    with pytest.raises(Problem) as caught:
        load_decoder(directory)
    return caught.value


def test_fused_parameters_are_the_parts_in_order(directory: Path) -> None:
    """Query, key and value, and gate and up, stand one below the other in their fused parameters."""
    stored, decoder = tensors_of(directory), load_decoder(directory)
    attention = [stored[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    mlp = [stored[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(decoder.get_parameter("layers.1.qkv.weight"), torch.cat(attention))
    assert torch.equal(decoder.get_parameter("layers.1.mlp.gate_up.weight"), torch.cat(mlp))


@pytest.mark.parametrize("stored_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_dtypes_are_converted_as_torch_does(directory: Path, stored_dtype: torch.dtype, dtype: str) -> None:
    """Whatever a file holds arrives in the asked dtype with torch's rounding."""
    stored = {name: tensor.to(stored_dtype) for name, tensor in tensors_of(directory).items()}
    rewrite(directory, stored)
    decoder = load_decoder(directory, dtype)  # type: ignore[arg-type]  # parametrised over the literal's values
    expected = stored["model.embed_tokens.weight"].to(getattr(torch, dtype))
    assert decoder.config.dtype == dtype
    assert decoder.embedding.dtype == expected.dtype and torch.equal(decoder.embedding, expected)


def test_the_table_of_ops_is_the_callers(directory: Path) -> None:
    """A decoder is loaded over the table it is to run with."""
    calls: list[Tensor] = []

    def counted(hidden: Tensor, weight: Tensor) -> Tensor:
        calls.append(hidden)
        return REFERENCE.head(hidden, weight)

    decoder = load_decoder(directory, ops=dataclasses.replace(REFERENCE, head=counted))
    decoder.logits(torch.zeros(1, 128))
    assert len(calls) == 1


def test_auto_dtype_is_the_one_of_config_json(directory: Path) -> None:
    """Left to itself the model is computed in the dtype that its configuration states."""
    edit_config(directory, torch_dtype="bfloat16")
    assert {parameter.dtype for parameter in load_decoder(directory).parameters()} == {torch.bfloat16}


def test_shards_and_a_single_file_load_the_same(directory: Path, tmp_path: Path) -> None:
    """A checkpoint split over files, as links into another directory like the hub's cache, is the same model."""
    stored, blobs = tensors_of(directory), tmp_path / "blobs"
    whole = load_decoder(directory).state_dict()
    (directory / "model.safetensors").unlink()
    blobs.mkdir()
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(stored))}
    for file in set(weight_map.values()):
        safetensors.torch.save_file({n: stored[n] for n, at in weight_map.items() if at == file}, blobs / file)
        (directory / file).symlink_to(blobs / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    split = load_decoder(directory).state_dict()
    assert whole.keys() == split.keys() and all(torch.equal(whole[name], split[name]) for name in whole)


def test_progress_rises_to_one(directory: Path) -> None:
    """Progress is told in the caller's thread, never falls, and ends at 1."""
    heard: list[tuple[float, threading.Thread]] = []
    load_decoder(directory, "auto", lambda fraction, words: heard.append((fraction, threading.current_thread())))
    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert {thread for _, thread in heard} == {threading.current_thread()}


def test_missing_tensor_is_named(directory: Path) -> None:
    """A tensor that the files lack is named."""
    stored = tensors_of(directory)
    del stored["model.layers.2.self_attn.k_norm.weight"]
    rewrite(directory, stored)
    problem = refusal(directory)
    assert problem.code == "checkpoint_invalid"
    assert "model.layers.2.self_attn.k_norm.weight is missing" in problem.message


def test_wrong_shape_states_both(directory: Path) -> None:
    """A tensor of another shape is refused with the one it has and the one config.json asks for."""
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(directory, tensors_of(directory) | {name: torch.zeros(255, 128)})
    problem = refusal(directory)
    assert problem.code == "checkpoint_invalid"
    assert name in problem.message and "[255, 128]" in problem.message and "[256, 128]" in problem.message


def test_config_of_another_model_allocates_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that does not fit the files, however huge, is refused before any memory is asked for."""
    edit_config(directory, vocab_size=1 << 24, hidden_size=1 << 17)
    monkeypatch.setattr(load, "_allocate", lambda *_: pytest.fail("allocated before the headers were checked"))
    assert "[259, 128]" in refusal(directory).message


def test_claimed_experts_without_number_end_at_the_first_missing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration of 786,432 expert tensors is refused before a thousand of them were thought of."""
    edit_config(
        directory,
        architectures=["Qwen3MoeForCausalLM"],
        num_hidden_layers=64,
        layer_types=None,
        num_experts=4096,
        mlp_only_layers=[0],
        moe_intermediate_size=1,
    )
    seen: list[Piece] = []

    def counted(model: Decoder, tensors: dict[str, tuple[str, ...]]) -> Iterator[Piece]:
        for piece in pieces(model, tensors):
            seen.append(piece)
            yield piece

    monkeypatch.setattr(load, "pieces", counted)
    problem = refusal(directory)
    assert problem.code == "checkpoint_invalid" and "layers.1.mlp" in problem.message
    assert len(seen) < 1000


def test_unsupported_stored_dtype_is_named(directory: Path) -> None:
    """A weight stored in a dtype that is no plain float is refused with its name."""
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(directory, tensors_of(directory) | {name: torch.zeros(256, 128, dtype=torch.int8)})
    problem = refusal(directory)
    assert problem.code == "checkpoint_unsupported" and name in problem.message and "I8" in problem.message


def test_learnt_surplus_is_refused(directory: Path) -> None:
    """A bias that the configuration does not mention is refused: ignoring it would compute another model."""
    name = "model.layers.0.self_attn.q_proj.bias"
    rewrite(directory, tensors_of(directory) | {name: torch.zeros(128)})
    problem = refusal(directory)
    assert problem.code == "checkpoint_invalid" and name in problem.message


def test_derived_surplus_is_ignored(directory: Path) -> None:
    """Rotary frequencies that old exporters stored do no harm."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(directory, tensors_of(directory) | {name: torch.zeros(16)})
    load_decoder(directory)


def test_a_body_saved_alone_is_the_same_model(directory: Path) -> None:
    """Embedding models are decoders saved without their head: names lack the body's prefix, nothing else differs."""
    edit_config(directory, tie_word_embeddings=True)
    whole = load_decoder(directory).state_dict()
    stored = {name.removeprefix("model."): tensor for name, tensor in tensors_of(directory).items()}
    del stored["lm_head.weight"]
    rewrite(directory, stored)
    body = load_decoder(directory).state_dict()
    assert all(torch.equal(whole[name], body[name]) for name in whole)
    rewrite(directory, stored | {"model.norm.weight": stored["norm.weight"] * 2})
    assert "two names" in refusal(directory).message
    rewrite(directory, stored)
    edit_config(directory, tie_word_embeddings=False)
    assert "lm_head.weight is missing" in refusal(directory).message


def test_head_beside_tied_embeddings_is_ignored(directory: Path) -> None:
    """A stored head is ignored where the configuration ties it to the embeddings, as transformers does."""
    edit_config(directory, tie_word_embeddings=True)
    decoder = load_decoder(directory)
    assert decoder.head is None
    hidden = torch.randn(2, 128)
    torch.testing.assert_close(decoder.logits(hidden), hidden @ decoder.embedding.T)


def test_file_that_shrinks_while_loading_is_an_error(tmp_path: Path) -> None:
    """A file that ends before a tensor that its header had promised is a refusal, not garbage and not a crash."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(100))
    with pytest.raises(Problem, match="became shorter"):
        fill._read_plain(torch.empty(32), StoredTensor(file, "F32", (32,), 8, 128), "x")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_refused(
    directory: Path, value: float, stored_dtype: torch.dtype, dtype: str
) -> None:
    """One NaN or infinity anywhere, in any dtype, is a refusal that names the file, the tensor and the way out."""
    name = "model.layers.1.mlp.up_proj.weight"
    stored = {key: tensor.to(stored_dtype) for key, tensor in tensors_of(directory).items()}
    stored[name][200, 77] = value
    rewrite(directory, stored)
    with pytest.raises(Problem) as caught:
        load_decoder(directory, dtype)  # type: ignore[arg-type]  # parametrised over the literal's values
    assert caught.value.code == "checkpoint_invalid"
    for words in (str(directory / "model.safetensors"), name, "NaN", "fetch it again"):
        assert words in caught.value.message


def test_tensors_are_read_in_parts_without_a_seam(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the parts that are converted, the weights are the same."""
    whole = load_decoder(directory, "bfloat16").state_dict()
    monkeypatch.setattr(fill, "_PART", 1000)
    for parts in (load_decoder(directory, "bfloat16").state_dict(), load_decoder(directory).bfloat16().state_dict()):
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_refused_memory_states_the_need(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses the memory, the error says how much was needed."""
    real = Decoder

    def no_memory(config: ModelConfig, ops: Ops = REFERENCE) -> Decoder:
        if torch.get_default_device().type != "meta":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(config, ops)

    monkeypatch.setattr("penstock.models.load.Decoder", no_memory)
    problem = refusal(directory)
    assert problem.code == "insufficient_memory" and f"{4 * 509_760:,} bytes" in problem.message


def test_saved_decoder_loads_the_same(directory: Path, tmp_path: Path) -> None:
    """Saving and loading returns every bit, and the file is one that the safetensors library accepts."""
    decoder = load_decoder(directory, "bfloat16")
    save_decoder(decoder, tmp_path / "copy")
    again = load_decoder(tmp_path / "copy")
    assert again.config == decoder.config
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), again.parameters(), strict=True))
    assert tensors_of(tmp_path / "copy").keys() == tensors_of(directory).keys()


def test_large_weights_are_saved_in_shards(directory: Path, tmp_path: Path) -> None:
    """Beyond a size the weights become several files, each within it, and the same model."""
    decoder, copy = load_decoder(directory), tmp_path / "copy"
    save_decoder(decoder, copy, max_shard_bytes=300_000)
    assert len(list(copy.glob("model-*.safetensors"))) == 9
    assert not (copy / "model.safetensors").exists()
    assert all(file.stat().st_size < 310_000 for file in copy.glob("model-*.safetensors"))
    again = load_decoder(copy)
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), again.parameters(), strict=True))


def test_saving_anew_leaves_nothing_of_the_former(directory: Path, tmp_path: Path) -> None:
    """Shards over a single file, other shards over shards, and a single file over shards: only the last is there."""
    decoder, copy = load_decoder(directory), tmp_path / "copy"
    for max_shard_bytes in (10**9, 300_000, 900_000, 10**9):
        with torch.no_grad():
            decoder.norm.weight.add_(1.0)
        save_decoder(decoder, copy, max_shard_bytes)
        again = load_decoder(copy)
        assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), again.parameters(), strict=True))
        used = json.loads((copy / "model.safetensors.index.json").read_text()) if max_shard_bytes < 10**9 else {}
        expected = set(used.get("weight_map", {"": "model.safetensors"}).values())
        assert {file.name for file in copy.glob("*.safetensors")} == expected


def test_a_full_disk_leaves_the_former_shards(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the third shard does not fit, the checkpoint that was there still loads, and no draft is left."""
    decoder, copy = load_decoder(directory), tmp_path / "copy"
    save_decoder(decoder, copy, max_shard_bytes=900_000)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    real, calls = save._write_tensors, []

    def full(file: BinaryIO, tensors: list[tuple[str, Tensor]]) -> None:
        calls.append(tensors)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, tensors)

    monkeypatch.setattr(save, "_write_tensors", full)
    with pytest.raises(Problem) as caught:
        save_decoder(decoder, copy, max_shard_bytes=300_000)
    assert caught.value.code == "insufficient_disk" and "model-00003-of-" in caught.value.message
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
