"""The small tokenizers, loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_tokenizers import BUILDERS

from penstock.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Family to loaded tokenizer."""
    loaded = {}
    for name, build in BUILDERS.items():
        directory: Path = tmp_path_factory.mktemp(name)
        build().save(str(directory / "tokenizer.json"))
        loaded[name] = Tokenizer.load(directory)
    return loaded
