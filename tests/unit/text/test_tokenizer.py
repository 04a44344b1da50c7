"""Loading tokenizers, and text to ids and back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tiny_tokenizers import BUILDERS
from tokenizers import decoders, models

from penstock.text.tokenizer import Tokenizer
from penstock.wire.errors import Problem


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory with a tokenizer of a few words that truncates, pads and has a hole in its ids."""
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 5}, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>", "<end>"])
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


TEXTS = """
import random, resource, sys
from pathlib import Path
from penstock.text.tokenizer import Tokenizer
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
tokenizer, dice = Tokenizer.load(Path(sys.argv[1])), random.Random(1)
def encode(count):
    for _ in range(count):
        tokenizer.encode("".join(dice.choices("abcdefgh", k=200)))
encode(100)
before = resident()
encode(4000)
print((resident() - before) >> 20)
"""
"""Says by how many MiB a process grows over 4000 texts of one word each, none like another."""


def _write(directory: Path, name: str, value: Any) -> None:
    (directory / name).write_text(value if isinstance(value, str) else json.dumps(value))


def test_special_tokens_and_stops_come_from_every_file(checkpoint: Path) -> None:
    """Tokens as text or object, eos from tokenizer_config and generation_config, the newer file winning."""
    _write(checkpoint, "special_tokens_map.json", {"eos_token": "<unk>", "pad_token": {"content": "<end>"}})
    _write(checkpoint, "tokenizer_config.json", {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}})
    _write(checkpoint, "generation_config.json", {"eos_token_id": [1, 0]})
    tokenizer = Tokenizer.load(checkpoint)
    assert tokenizer.special_tokens == {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<end>"}
    eos = tokenizer.encode("<eos>")
    assert tokenizer.stop_token_ids == {0, 1, *eos}


def test_nothing_is_truncated_or_padded(checkpoint: Path) -> None:
    """Truncation and padding that tokenizer.json carries are not applied."""
    assert Tokenizer.load(checkpoint).encode("a b a b a") == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(("wanted", "count"), [(True, 1), (False, 0), (None, 0)])
def test_add_bos_token_is_obeyed(checkpoint: Path, wanted: bool | None, count: int) -> None:
    """add_bos_token adds one BOS to a bare prompt, never a second, and none without special tokens."""
    _write(checkpoint, "tokenizer_config.json", {"bos_token": "<bos>", "add_bos_token": wanted})
    tokenizer = Tokenizer.load(checkpoint)
    [bos] = tokenizer.encode("<bos>", add_special_tokens=False)
    assert tokenizer.encode("a").count(bos) == count
    assert tokenizer.encode("<bos> a").count(bos) == 1
    assert tokenizer.encode("a", add_special_tokens=False).count(bos) == 0


def test_add_bos_token_false_overrules_the_post_processor(tokenizer_of: dict[str, Tokenizer], tmp_path: Path) -> None:
    """Where tokenizer.json adds BOS, an explicit false takes that one away and leaves one in the text."""
    tokenizer_of["llama2"]._backend.save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "add_bos_token": False})
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer_of["llama2"].encode("a")[0] == 1
    assert 1 not in tokenizer.encode("a")
    assert tokenizer.encode("<s>a").count(1) == 1


def test_ids_with_holes_have_their_highest_id_counted(checkpoint: Path) -> None:
    """vocab_size is the highest id plus one; a hole has no bytes and decodes to nothing."""
    tokenizer = Tokenizer.load(checkpoint)
    assert tokenizer.knows(5) and tokenizer.knows(tokenizer.vocab_size - 1)
    assert not tokenizer.knows(2) or not tokenizer.knows(4)
    hole = next(i for i in range(tokenizer.vocab_size) if not tokenizer.knows(i))
    assert tokenizer.token_bytes(hole) == b""
    assert tokenizer.decode([hole]) == ""


@pytest.mark.parametrize("bad", [-1, 10_000, 2**40])
def test_an_id_out_of_range_is_named(tokenizer_of: dict[str, Tokenizer], bad: int) -> None:
    """Decoding an id outside the vocabulary says which id and which range."""
    with pytest.raises(Problem, match=str(bad)) as refused:
        tokenizer_of["byte_level"].decode([1, bad])
    assert (refused.value.code, refused.value.param) == ("invalid_value", "token_ids")


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("byte_level", "<think>", b"<think>"),
        ("byte_level", "two words", b"two words"),
        ("byte_level", "</s>", b"</s>"),
        ("llama2", "<0xC3>", b"\xc3"),
        ("llama2", "▁the", b" the"),
        ("gemma", "日", "日".encode()),
    ],
)
def test_a_token_stands_for_exact_bytes(
    tokenizer_of: dict[str, Tokenizer], family: str, text: str, expected: bytes
) -> None:
    """Byte tokens, spaces, added and special tokens each have the bytes they stand for."""
    tokenizer = tokenizer_of[family]
    token_id = tokenizer._backend.token_to_id(text)
    assert token_id is not None
    assert tokenizer.token_bytes(token_id) == expected
    assert tokenizer.token_text(token_id) == expected.decode("utf-8", "replace")


def test_text_that_is_no_unicode_is_refused(tokenizer_of: dict[str, Tokenizer]) -> None:
    """A lone surrogate is the caller's mistake, not a crash."""
    with pytest.raises(Problem) as refused:
        tokenizer_of["byte_level"].encode("a\ud800")
    assert refused.value.code == "invalid_value"


def test_other_threads_run_while_a_text_is_encoded(tokenizer_of: dict[str, Tokenizer]) -> None:
    """Encoding a long prompt does not hold up the streams that are running."""
    tokenizer, text = tokenizer_of["byte_level"], "ab c " * 200_000
    encoding = threading.Thread(target=tokenizer.encode, args=(text,))
    encoding.start()
    turns = 0
    while encoding.is_alive():
        turns += 1
        encoding.join(0.001)
    assert turns > 10


@pytest.mark.parametrize("unit", ["a", " ", "\n", "日", "ab c"])
def test_a_huge_text_is_encoded(tokenizer_of: dict[str, Tokenizer], unit: str) -> None:
    """Half a million characters without a border, or of borders only, come back unharmed."""
    text = unit * (500_000 // len(unit))
    tokenizer = tokenizer_of["byte_level"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", ""),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "null"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "Telepathy", "vocab": {}}}'),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}'),
        ("tokenizer_config.json", "{,"),
        ("tokenizer_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "two"}'),
        ("generation_config.json", '{"eos_token_id": [true]}'),
        ("tokenizer_config.json", r'{"eos_token": "\ud800"}'),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}'),
        ("chat_template.jinja", "{% for %}"),
    ],
)
def test_a_broken_file_is_named(checkpoint: Path, name: str, content: str) -> None:
    """Each file that cannot be used ends in checkpoint_invalid with the file's path."""
    _write(checkpoint, name, content)
    with pytest.raises(Problem, match=name) as refused:
        Tokenizer.load(checkpoint)
    assert refused.value.code == "checkpoint_invalid"


@pytest.mark.parametrize("vocabulary", [{}, {"a": 0, "b": 1 << 21}, {"a": 0, "b": (1 << 32) - 1}])
def test_a_vocabulary_without_end_or_tokens_is_refused(tmp_path: Path, vocabulary: dict[str, int]) -> None:
    """No tokens at all, or an id so high that counting up to it takes minutes, is refused at once."""
    tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Problem, match=r"tokenizer\.json has (no tokens|the token id)") as refused:
        Tokenizer.load(tmp_path)
    assert refused.value.code == "checkpoint_invalid"


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    """Without tokenizer.json the message gives the path and what to do."""
    with pytest.raises(Problem, match=r"tokenizer\.json is missing.*Fetch") as refused:
        Tokenizer.load(tmp_path)
    assert refused.value.code == "checkpoint_invalid"


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "tekken.json"])
def test_an_older_file_is_no_tokenizer(tmp_path: Path, name: str) -> None:
    """Where only an older kind of file is there, it is named beside the one that is missing."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(Problem, match=rf"tokenizer\.json is missing\. {name}, which is there instead"):
        Tokenizer.load(tmp_path)


def test_the_chat_template_is_found(checkpoint: Path) -> None:
    """None without one; the default of several; chat_template.jinja before tokenizer_config.json."""
    assert Tokenizer.load(checkpoint).chat_template is None
    named = [{"name": ["no name"], "template": "t"}, {"name": "default", "template": "{{ bos_token }}d"}]
    _write(checkpoint, "tokenizer_config.json", {"chat_template": named, "bos_token": "<bos>"})
    template = Tokenizer.load(checkpoint).chat_template
    assert template is not None and template.render([], add_generation_prompt=True) == "<bos>d"
    _write(checkpoint, "chat_template.jinja", "file")
    template = Tokenizer.load(checkpoint).chat_template
    assert template is not None and template.render([], add_generation_prompt=True) == "file"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["byte_level", "llama2", "unigram"])
def test_texts_leave_nothing_behind(tmp_path: Path, kind: str) -> None:
    """A process that has encoded thousands of words is no larger: no thread keeps words for the next time."""
    if kind == "unigram":
        backend = tokenizers.Tokenizer(models.Unigram([(char, -1.0) for char in "abcdefgh"], 0, False))
    else:
        backend = BUILDERS[kind]()
    backend.save(str(tmp_path / "tokenizer.json"))
    run = subprocess.run([sys.executable, "-c", TEXTS, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 4
