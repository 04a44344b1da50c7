"""The checkpoint that is made on the spot."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from seeded import write_seeded_checkpoint
from tokenizers import Tokenizer

from penstock.models.attention import packed_causal, packed_positions
from penstock.models.load import load_decoder
from penstock.wire.errors import Problem

# Changing this means that the default model changed for everybody: say so in the changelog.
WEIGHTS_SHA256 = "56352e5afecc6e40627da7ae9f6ef2b662e5f2718d8aa44655bdc9b6a9a7700f"


def digests(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


def test_checkpoint_is_the_same_bytes_always(tmp_path: Path) -> None:
    """Two makings give the same files, and the weights are the ones of record."""
    write_seeded_checkpoint(tmp_path / "a")
    write_seeded_checkpoint(tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a")["model.safetensors"] == WEIGHTS_SHA256


def test_racing_writers_leave_one_whole_checkpoint(tmp_path: Path) -> None:
    """Several writers at once all succeed and leave one checkpoint and no drafts."""
    target = tmp_path / "models" / "seeded"
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: write_seeded_checkpoint(target), range(12)))
    assert [entry.name for entry in target.parent.iterdir()] == ["seeded"]
    assert load_decoder(target).config.max_position == 2048


def test_existing_checkpoint_is_left_alone(tmp_path: Path) -> None:
    """A checkpoint that is there is not written again."""
    write_seeded_checkpoint(tmp_path / "seeded")
    (tmp_path / "seeded" / "note").touch()
    write_seeded_checkpoint(tmp_path / "seeded")
    assert (tmp_path / "seeded" / "note").exists()


def test_directory_with_other_content_is_refused(tmp_path: Path) -> None:
    """A directory that holds something else is neither used nor overwritten."""
    (tmp_path / "seeded").mkdir()
    (tmp_path / "seeded" / "thesis.txt").write_text("years of work")
    with pytest.raises(Problem, match="remove it") as caught:
        write_seeded_checkpoint(tmp_path / "seeded")
    assert caught.value.code == "checkpoint_invalid"
    assert [file.name for file in tmp_path.iterdir()] == ["seeded"]
    assert (tmp_path / "seeded" / "thesis.txt").read_text() == "years of work"


def test_tokens_are_bytes(tmp_path: Path) -> None:
    """Token b is byte b, whatever the text, and the special tokens follow."""
    write_seeded_checkpoint(tmp_path / "seeded")
    tokenizer = Tokenizer.from_file(str(tmp_path / "seeded" / "tokenizer.json"))
    text = "Grüße, 世界 👋\n\ttab  \x00\x7f"
    assert tokenizer.encode(text).ids == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.encode("<|im_start|>a<|im_end|><|endoftext|>").ids == [257, 97, 258, 256]
    generation = json.loads((tmp_path / "seeded" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [258, 256]
    assert tokenizer.get_vocab_size() == load_decoder(tmp_path / "seeded").config.vocab_size


def test_it_babbles_without_repeating_itself(tmp_path: Path) -> None:
    """Greedy text is mostly ASCII, does not stop, and changes with the prompt: a lost token would show."""
    write_seeded_checkpoint(tmp_path / "seeded")
    decoder = load_decoder(tmp_path / "seeded")

    def continuation(prompt: bytes) -> list[int]:
        token_ids = list(prompt)
        with torch.inference_mode():
            for _ in range(60):
                length = len(token_ids)
                hidden = decoder(torch.tensor(token_ids), packed_positions([length]), packed_causal([length]))
                token_ids.append(int(decoder.logits(hidden[-1:]).argmax()))
        return token_ids[len(prompt) :]

    first, second = continuation(b"Hello"), continuation(b"Hallo")
    assert first != second
    for tokens in (first, second):
        assert len(set(tokens)) > 15 and max(tokens) < 256
        assert sum(32 <= token < 127 for token in tokens) > 40
