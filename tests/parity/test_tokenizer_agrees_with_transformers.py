"""Our tokenizer is transformers' fast tokenizer: ids, text and special tokens, of every kind that releases have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import BUILDERS

from penstock.text.detokenize import Detokenizer
from penstock.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

SPECIAL = {"byte_level": "<|im_end|>", "llama2": "</s>", "gemma": "</s>", "word_piece": "[SEP]"}
TEXTS = st.lists(
    st.text(max_size=6)
    | st.sampled_from(["the cat", "<|im_end|>", "</s>", "<think>", "日本", "🙂", "  ", "\n\n", "é", "cats."]),
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    """By kind: ours and theirs."""
    result = {}
    for name, build in BUILDERS.items():
        directory: Path = tmp_path_factory.mktemp(name)
        build().save(str(directory / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[name]}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        result[name] = Tokenizer.load(directory), transformers.AutoTokenizer.from_pretrained(str(directory))
    return result


@pytest.mark.parametrize("name", BUILDERS)
@given(text=TEXTS)
@settings(deadline=None, max_examples=60)
def test_text_to_ids_and_back(pairs: dict[str, tuple[Tokenizer, Any]], name: str, text: str) -> None:
    """With special tokens and without, both ways; and what comes token by token adds up to the whole."""
    ours, theirs = pairs[name]
    for special in (True, False):
        ids = ours.encode(text, add_special_tokens=special)
        assert ids == theirs.encode(text, add_special_tokens=special)
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
    detokenizer = Detokenizer(ours, [])
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == ours.decode(ids)


@pytest.mark.parametrize("name", BUILDERS)
def test_special_tokens(pairs: dict[str, tuple[Tokenizer, Any]], name: str) -> None:
    """The same ids are special, and the same one ends a text."""
    ours, theirs = pairs[name]
    assert ours.special_token_ids == {
        token_id for token_id, token in theirs.added_tokens_decoder.items() if token.special
    }
    assert theirs.eos_token_id in ours.stop_token_ids
    assert ours.id_of(SPECIAL[name]) == theirs.eos_token_id
