"""Whether the files of a checkpoint fit together."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from seeded import write_seeded_checkpoint

from penstock.cli.boot import boot
from penstock.cli.fit import check_vocabulary
from penstock.config.settings import EngineSettings
from penstock.cost.memory import KV_SHARE_OF_FREE
from penstock.engine.server.embed import input_ids
from penstock.engine.server.prompt import prompt_of
from penstock.models.adapter import room_bytes
from penstock.models.config import ModelConfig
from penstock.text.tokenizer import Tokenizer
from penstock.wire.embedding import EmbedRequest
from penstock.wire.engine import GenerateRequest, Sampling
from penstock.wire.errors import Problem

NUM_TOKENS = 259


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_seeded_checkpoint(tmp_path / "model")
    return tmp_path / "model"


def add_token(directory: Path, content: str, *, special: bool) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    token = {"id": NUM_TOKENS, "content": content, "special": special}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append(token | flags)
    path.write_text(json.dumps(tokenizer))


def test_every_token_needs_a_row(directory: Path) -> None:
    """A tokenizer with a plain token more than the embedding has rows is refused with both files and the token."""
    check_vocabulary(directory, Tokenizer.load(directory), NUM_TOKENS)
    add_token(directory, "extra", special=False)
    with pytest.raises(Problem) as caught:
        check_vocabulary(directory, Tokenizer.load(directory), NUM_TOKENS)
    assert caught.value.code == "checkpoint_invalid"
    for words in (str(directory / "tokenizer.json"), str(directory / "config.json"), "extra", "ids up to 259"):
        assert words in caught.value.message


def test_a_special_token_that_nothing_uses_needs_none(directory: Path) -> None:
    """Gemma 3 (1B) has a token for images beyond its rows; but one that the chat template writes needs its row."""
    add_token(directory, "<image>", special=True)
    check_vocabulary(directory, Tokenizer.load(directory), NUM_TOKENS)
    (directory / "chat_template.jinja").write_text("{% for message in messages %}<image>{% endfor %}")
    with pytest.raises(Problem, match="<image>"):
        check_vocabulary(directory, Tokenizer.load(directory), NUM_TOKENS)


def test_padding_rows_are_fine(directory: Path) -> None:
    """An embedding with more rows than there are tokens is the rule."""
    check_vocabulary(directory, Tokenizer.load(directory), 512)


def test_a_text_that_spells_a_token_without_a_row_is_refused(directory: Path) -> None:
    """Such a token, tolerated in the tokenizer, never reaches the model: not in a prompt, not in a text to embed."""
    config = json.loads((directory / "config.json").read_text())
    add_token(directory, "<image>", special=True)
    booted = boot(
        EngineSettings(
            replica="0", socket="", model_dir=str(directory), served_name="m", kv_memory_bytes=1 << 20, max_model_len=64
        ),
        lambda fraction, words: None,
    )
    booted.grammars.close()
    assert booted.vocab_size == config["vocab_size"] == NUM_TOKENS
    request = GenerateRequest(id="", sampling=Sampling(seed=0), text="see <image>")
    with pytest.raises(Problem, match="259") as caught:
        prompt_of(request, booted, "m")
    assert caught.value.code == "invalid_value"
    with pytest.raises(Problem, match="259"):
        input_ids(EmbedRequest(id="", texts=["fine", "see <image>"]), booted)


def test_memory_for_adapters_is_taken_off_the_kv_cache(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By as much as they may take at most; where there is less, the flag is named."""
    monkeypatch.setattr("penstock.cli.boot_decoder.free_memory_bytes", lambda: 2 << 30)
    plain = EngineSettings(
        replica="0", socket="", model_dir=str(directory), served_name="m", max_num_seqs=1 << 20, kv_share=0.02
    )
    found = []
    for number in (0, 4):
        booted = boot(msgspec.structs.replace(plain, max_loras=number, max_lora_rank=2048), lambda *_: None)
        booted.grammars.close()
        found.append(booted.kv_bytes)
    room = 4 * room_bytes(ModelConfig.from_directory(directory), 2048)
    assert found[0] - found[1] == pytest.approx(room * 0.02 * KV_SHARE_OF_FREE * 0.9, rel=0.05)
    with pytest.raises(Problem, match="--max-loras") as caught:
        boot(msgspec.structs.replace(plain, max_loras=1000, max_lora_rank=2048), lambda *_: None)
    assert (caught.value.code, caught.value.param) == ("insufficient_memory", "max_loras")
