"""Checkpoints told apart by samples of their files."""

from __future__ import annotations

from pathlib import Path

from penstock.models.digest import vocabulary_digest, weights_digest


def write(directory: Path, weights: bytes = b"w" * 5_000_000, tokenizer: bytes = b"{}") -> Path:
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(weights)
    (directory / "tokenizer.json").write_bytes(tokenizer)
    return directory


def test_a_copy_is_the_same_and_another_training_is_not(tmp_path: Path) -> None:
    """Equal files have equal digests wherever they lie; weights that all differ a little have another."""
    one, same = write(tmp_path / "one"), write(tmp_path / "same")
    other = write(tmp_path / "other", b"v" * 5_000_000)
    assert weights_digest(one) == weights_digest(same) != weights_digest(other)
    assert vocabulary_digest(one) == vocabulary_digest(other)
    assert weights_digest(one).startswith("fp_")


def test_both_ends_the_length_and_the_settings_count(tmp_path: Path) -> None:
    """A changed last byte, one byte more, or another dtype: another digest."""
    plain = write(tmp_path / "plain")
    tail = write(tmp_path / "tail", b"w" * 4_999_999 + b"x")
    longer = write(tmp_path / "longer", b"w" * 5_000_001)
    found = {weights_digest(path) for path in (plain, tail, longer)} | {weights_digest(plain, "bfloat16")}
    assert len(found) == 4


def test_the_vocabulary_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    """Another tokenizer is another vocabulary, whatever the weights are."""
    one, other = write(tmp_path / "one"), write(tmp_path / "other", tokenizer=b"{ }")
    assert vocabulary_digest(one) != vocabulary_digest(other)
