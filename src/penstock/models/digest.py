"""Telling checkpoints apart without reading all of them.

In: a directory in Hugging Face layout; out: short digests of its weights and of its vocabulary.
Training moves nearly every weight, so samples of every file tell two checkpoints apart; a file in which single bytes
between the samples were changed by hand passes for the same.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_SAMPLES = 64
_SAMPLE_BYTES = 4096
_DIGITS = 12
_VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")


def weights_digest(directory: Path, *settings: str) -> str:
    """Of the configuration, the weights, and the ``settings`` that change what is computed with them."""
    digest = hashlib.sha256("\0".join(settings).encode())
    for path in [directory / "config.json", *sorted(directory.glob("*.safetensors"))]:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        for part in _samples(path):
            digest.update(part)
    return f"fp_{digest.hexdigest()[:_DIGITS]}"


def vocabulary_digest(directory: Path) -> str:
    """Of the files that say which text a token id stands for."""
    digest = hashlib.sha256()
    for path in (directory / name for name in _VOCABULARY):
        if path.is_file():
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def _samples(path: Path) -> list[bytes]:
    """Pieces at even distances, the first and the last bytes among them; a small file is read whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            return [file.read()]
        last = size - _SAMPLE_BYTES
        return [os.pread(file.fileno(), _SAMPLE_BYTES, last * number // (_SAMPLES - 1)) for number in range(_SAMPLES)]
