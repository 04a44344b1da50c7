"""An adapter is what its folder says, or it is refused with the file and what is wrong in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import edit_config, edit_tensors, write_adapter
from seeded import write_seeded_checkpoint

from penstock.models.adapter import load_adapter, room_bytes
from penstock.models.decoder import Decoder
from penstock.models.load import load_decoder
from penstock.wire.errors import Problem

Q = "model.layers.1.self_attn.q_proj"
UP, DOWN = f"{Q}.lora_B.weight", f"{Q}.lora_A.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "seeded"
    write_seeded_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def decoder(base: Path) -> Decoder:
    return load_decoder(base)


def refusal(directory: Path, decoder: Decoder, max_rank: int = 16) -> Problem:
    with pytest.raises(Problem) as refused:
        load_adapter(directory, decoder, max_rank)
    return refused.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", "lora_only"),
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("init_lora_weights", "pissa"),
        ("lora_bias", True),
        ("peft_type", "IA3"),
        ("alora_invocation_tokens", [1, 2]),
        ("rank_pattern", {"(a+)+$": 4}),
    ],
)
def test_what_would_compute_something_else_is_refused_by_its_field(
    field: str, value: Any, base: Path, decoder: Decoder, tmp_path: Path
) -> None:
    """A field that is acted on nowhere is never passed over."""
    write_adapter(tmp_path, base)
    edit_config(tmp_path, **{field: value})
    problem = refusal(tmp_path, decoder)
    assert problem.code == "checkpoint_unsupported" and problem.param == field and field in problem.message


def cut(directory: Path) -> None:
    file = directory / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_config(directory: Path) -> None:
    (directory / "adapter_config.json").unlink()


def torn_config(directory: Path) -> None:
    (directory / "adapter_config.json").write_text('{"peft_type": "LO')


def pickled(directory: Path) -> None:
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")


def nothing(directory: Path) -> None:
    (directory / "adapter_model.safetensors").unlink()


def tensors(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    names = {"up": UP, "down": DOWN}
    return lambda directory: edit_tensors(
        directory, {names.get(key, key.replace("__", ".")): tensor for key, tensor in changes.items()}
    )


def infinite() -> torch.Tensor:
    values = torch.zeros(8, 128)
    values[3, 5] = torch.inf
    return values


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (cut, "checkpoint_invalid", "truncated"),
        (no_config, "checkpoint_invalid", "adapter_config.json is missing"),
        (torn_config, "checkpoint_invalid", "not valid JSON"),
        (pickled, "checkpoint_unsafe", "pickle"),
        (nothing, "checkpoint_invalid", "holds no adapter_model.safetensors"),
        (tensors(up=None), "checkpoint_invalid", f"{Q} has only one"),
        (tensors(down=infinite()), "checkpoint_invalid", "NaN or infinite"),
        (tensors(down=torch.zeros(8, 64)), "checkpoint_invalid", "shape [8, 64]"),
        (tensors(down=torch.zeros(4, 128), up=torch.zeros(128, 4)), "checkpoint_invalid", "shape [4, 128]"),
        (tensors(up=torch.zeros(128, 8, dtype=torch.int8)), "checkpoint_unsupported", "dtype I8"),
        (tensors(lm_head__lora_A__weight=torch.zeros(8, 128)), "checkpoint_invalid", "only one"),
        (tensors(model__embed_tokens__lora_embedding_A=torch.zeros(8, 128)), "checkpoint_unsupported", "embed_tokens"),
        (tensors(up=torch.full((128, 8), 3e38)), "checkpoint_invalid", "not finite"),
    ],
)
def test_damage_is_told(
    damage: Callable[[Path], None], code: str, words: str, base: Path, decoder: Decoder, tmp_path: Path
) -> None:
    """A file that is cut, missing, another's or full of nonsense: its name and what is wrong with it."""
    write_adapter(tmp_path, base, alpha=32.0)
    damage(tmp_path)
    problem = refusal(tmp_path, decoder)
    assert problem.code == code and words in problem.message and str(tmp_path) in problem.message


def test_a_linear_that_the_model_lacks(base: Path, decoder: Decoder, tmp_path: Path) -> None:
    """An adapter of the head, or of a deeper model, names the module and what could be changed."""
    write_adapter(tmp_path, base)
    sides = {f"model.layers.9.mlp.up_proj.lora_{side}.weight": torch.zeros(8, 8) for side in "AB"}
    edit_tensors(tmp_path, sides)  # type: ignore[arg-type]  # a dict of tensors is one of tensors or None
    problem = refusal(tmp_path, decoder)
    assert problem.code == "checkpoint_unsupported"
    assert "model.layers.9.mlp.up_proj" in problem.message and "q_proj" in problem.message


def test_a_rank_above_the_most_names_the_flag(base: Path, decoder: Decoder, tmp_path: Path) -> None:
    """Rank 17 with at most 16; the same adapter is served where more is allowed."""
    write_adapter(tmp_path, base, rank=17)
    problem = refusal(tmp_path, decoder)
    assert problem.code == "checkpoint_unsupported" and "--max-lora-rank" in problem.message
    assert load_adapter(tmp_path, decoder, 17).rank == 17


def test_a_target_without_tensors_is_told(base: Path, decoder: Decoder, tmp_path: Path) -> None:
    """A file that lacks every tensor of a target was cut."""
    write_adapter(tmp_path, base, targets=("q_proj",))
    edit_config(tmp_path, target_modules=["q_proj", "v_proj"])
    assert "v_proj" in refusal(tmp_path, decoder).message


def test_its_digest_is_its_content(base: Path, decoder: Decoder, tmp_path: Path) -> None:
    """The same in another folder and another order of fields; another for one other value, scale or dtype."""

    def digest(directory: str) -> str:
        return load_adapter(tmp_path / directory, decoder, 64).digest

    write_adapter(tmp_path / "one", base)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    edit_config(tmp_path / "copy", base_model_name_or_path="elsewhere", lora_dropout=0.1)
    assert digest("one") == digest("copy")
    found = {digest("one")}
    for name, kind in {
        "seed": {"seed": 2},
        "alpha": {"alpha": 17.0},
        "dtype": {"dtype": torch.bfloat16},
        "root": {"use_rslora": True},
        "fewer": {"targets": ("q_proj",)},
    }.items():
        write_adapter(tmp_path / name, base, **kind)  # type: ignore[arg-type]  # of several kinds
        found.add(digest(name))
    assert len(found) == 6


def test_no_adapter_takes_more_than_the_room_that_is_kept_for_it(base: Path, decoder: Decoder, tmp_path: Path) -> None:
    """The largest that is allowed fills its room; ranks are filled up to 16, as the room counts them."""
    for rank in (5, 16, 40):
        write_adapter(tmp_path, base, rank=rank)
        assert load_adapter(tmp_path, decoder, rank).num_bytes == room_bytes(decoder.config, rank)
