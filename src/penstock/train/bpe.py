"""A byte-level BPE tokenizer of our own, and the small files that make it a checkpoint's.

In: texts; out: tokenizer.json, the same bytes for the same texts, and its companions in Hugging Face layout.
Source: Sennrich et al. 2016 (BPE), Radford et al. 2019 (on bytes); trained by the tokenizers library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from penstock.models.save import write_atomically
from penstock.wire.errors import Problem

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
_SMALLEST = 256 + len(SPECIAL_TOKENS)
# The last two questions and the answer between them: what a model trained on short rows can make use of.
CHAT_TEMPLATE_MESSAGES = 3
CHAT_TEMPLATE = (
    "{% for message in messages[-" + str(CHAT_TEMPLATE_MESSAGES) + ":] %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Next to greedy, for a request that says nothing: do_sample = false is not what an engine is told by a temperature.
_DEFAULT_TEMPERATURE = 0.01


def train_bpe(texts: Iterable[str], vocab_size: int) -> bytes:
    """tokenizer.json with exactly ``vocab_size`` tokens; ``<|endoftext|> <|im_start|> <|im_end|>`` are 0, 1, 2.

    Raises ``invalid_value`` when ``vocab_size`` is below 259, or when the texts have too few pairs to fill it.
    """
    if vocab_size < _SMALLEST:
        message = f"vocab_size is {vocab_size}; 256 bytes and {len(SPECIAL_TOKENS)} special tokens need {_SMALLEST}."
        raise Problem("invalid_value", message, param="vocab_size")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        filled = tokenizer.get_vocab_size()
        message = f"The texts only fill a vocabulary of {filled:,} tokens; vocab_size is {vocab_size:,}."
        raise Problem("invalid_value", message, param="vocab_size")
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    text: str = tokenizer.to_str(pretty=True)
    return text.encode()


def write_tokenizer(directory: Path, tokenizer_json: bytes, *, max_position: int) -> None:
    """Write tokenizer.json, tokenizer_config.json (with the chat template) and generation_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    end_of_text, _, turn_end = range(len(SPECIAL_TOKENS))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "model_max_length": max_position,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    generation = {
        "do_sample": True,
        "temperature": _DEFAULT_TEMPERATURE,
        "eos_token_id": [turn_end, end_of_text],
        "pad_token_id": end_of_text,
    }
    write_atomically(directory / "tokenizer.json", lambda file: file.write(tokenizer_json))
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "generation_config.json", generation)


def _write_json(path: Path, content: dict[str, object]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
