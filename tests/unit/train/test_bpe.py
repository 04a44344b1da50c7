from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.text.tokenizer import Tokenizer
from penstock.train.bpe import train_bpe, write_tokenizer
from penstock.train.chats import Chat, Exchange, as_chats, encode_chats, encode_text
from penstock.wire.errors import Problem

TEXTS = [f"The function number_{n} returns the value of {n % 7} and the user asks the assistant.\n" for n in range(200)]
EXCHANGES = [Exchange(f"What is f{n}?", f"It returns {n}.") for n in range(200)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, train_bpe(TEXTS, 300), max_position=64)
    return Tokenizer.load(directory)


def test_the_special_tokens_come_first_and_the_size_is_exact(tokenizer: Tokenizer) -> None:
    """Ids 0, 1, 2 are the special tokens, and there are as many tokens as asked for."""
    assert [tokenizer.encode(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [[0], [1], [2]]
    assert tokenizer.vocab_size == 300
    assert tokenizer.stop_token_ids == {0, 2}


@given(text=st.text())
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    """Encoding and decoding gives the text back, whatever its alphabet."""
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_another_process_makes_the_same_bytes() -> None:
    """Nothing depends on hash seeds or on what ran before."""
    lines = [
        "import sys",
        "from penstock.train.bpe import train_bpe",
        "sys.stdout.buffer.write(train_bpe([line + chr(10) for line in sys.stdin.read().splitlines()], 300))",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, input="".join(TEXTS).encode(), capture_output=True, check=True)
    assert done.stdout == train_bpe(TEXTS, 300)


@pytest.mark.parametrize(("size", "said"), [(258, "need 259"), (50_000, "only fill")])
def test_a_size_that_cannot_be_is_refused(size: int, said: str) -> None:
    """Too small for bytes and special tokens, or more than the texts have pairs for."""
    with pytest.raises(Problem, match=said):
        train_bpe(TEXTS, size)


def test_a_chat_is_encoded_as_the_template_shows_it(tokenizer: Tokenizer) -> None:
    """What is trained on is what the served template gives, and exactly the answers and their ends are predicted."""
    assert tokenizer.chat_template is not None
    for chat in as_chats(EXCHANGES, 1):
        (document,) = encode_chats(tokenizer, [chat], 200)
        messages = [{"role": "system", "content": chat.system}] if chat.system is not None else []
        for number, exchange in enumerate(chat.exchanges):
            messages.append({"role": "user", "content": exchange.question})
            prompt = tokenizer.encode(tokenizer.chat_template.render(messages, add_generation_prompt=True))
            answer = tokenizer.encode(exchange.answer + "<|im_end|>")
            assert document.token_ids[: len(prompt) + len(answer)] == prompt + answer, number
            assert not document.loss_mask[len(prompt) - 1] and all(
                document.loss_mask[len(prompt) : len(prompt) + len(answer)]
            )
            messages.append({"role": "assistant", "content": exchange.answer})
        predicted = [i for i, wanted in zip(document.token_ids, document.loss_mask, strict=True) if wanted]
        assert tokenizer.decode(predicted, skip_special_tokens=False) == "".join(
            exchange.answer + "<|im_end|>" for exchange in chat.exchanges
        )
        assert document.num_bytes == sum(len(exchange.answer.encode()) for exchange in chat.exchanges)


def test_each_exchange_is_in_exactly_one_chat() -> None:
    """Putting exchanges into chats loses and repeats none; some chats have two, some a system message."""
    chats = as_chats(EXCHANGES, 1)
    assert sorted(e.question for c in chats for e in c.exchanges) == sorted(e.question for e in EXCHANGES)
    assert {len(chat.exchanges) for chat in chats} == {1, 2}
    assert any(chat.system for chat in chats) and as_chats(EXCHANGES, 1) == chats != as_chats(EXCHANGES, 2)


def test_a_chat_that_is_too_long_is_split_and_a_hopeless_exchange_left_out(tokenizer: Tokenizer) -> None:
    """No document exceeds the limit, and what fits alone is kept."""
    short, long = Exchange("What?", "That."), Exchange("What?", "That. " * 50)
    alone = len(next(encode_chats(tokenizer, [Chat((short,))], 1000)).token_ids)
    documents = list(encode_chats(tokenizer, [Chat((short, short)), Chat((short, long))], alone))
    assert [len(document.token_ids) for document in documents] == [alone] * 3


def test_text_lies_between_ends(tokenizer: Tokenizer) -> None:
    """The first token of a text and its end are predicted; bytes are those of the text."""
    document = encode_text(tokenizer, "ä b")
    assert document.token_ids[0] == document.token_ids[-1] == 0
    assert document.loss_mask == [False] + [True] * (len(document.token_ids) - 1)
    assert document.num_bytes == 4


def test_the_template_shows_the_last_two_questions(tokenizer: Tokenizer) -> None:
    """A long conversation stays within what was trained on."""
    assert tokenizer.chat_template is not None
    messages = [{"role": ("user", "assistant")[n % 2], "content": f"text {n}"} for n in range(9)]
    text = tokenizer.chat_template.render(messages, add_generation_prompt=True)
    assert text.startswith("<|im_start|>user\ntext 6<|im_end|>\n") and text.endswith("<|im_start|>assistant\n")


def test_transformers_reads_the_same_tokenizer(tmp_path: Path) -> None:
    """transformers loads the files without a warning about them and gives the same ids and prompt."""
    from transformers import AutoTokenizer, GenerationConfig

    write_tokenizer(tmp_path, train_bpe(TEXTS, 300), max_position=64)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "What is that?"}]
    assert ours.chat_template is not None
    text = ours.chat_template.render(messages, add_generation_prompt=True)
    assert theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == text
    assert theirs(text).input_ids == ours.encode(text)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [2, 0]
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] < 0.1
