"""Small tokenizers of the usual families, trained or written here."""

from __future__ import annotations

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

_CORPUS = [
    "the cat sat on the mat",
    "naïve café — 日本語 テキスト",
    "emoji 🙂🙃 and ünïcode",
    "def f(x):\n    return x",
] * 20


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3 and Qwen: bytes spelled as printable characters."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("two words")])
    return tokenizer


def sentencepiece(strip: bool = True) -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral (with ``strip``) or Gemma: U+2581 for space, bytes as <0xNN>."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz", "é", "日", "▁t", "th", "▁th", "▁the", "▁▁", "▁a"]
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h"), ("▁th", "e"), ("▁", "▁"), ("▁", "a")]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    prepend = [normalizers.Prepend("▁")] if strip else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    ending = [decoders.Strip(" ", 1, 0)] if strip else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ending]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    """As BERT: a decoder that is no concatenation of bytes."""
    pieces = ["[UNK]", "[SEP]", "the", "cat", "##s", "##é", "sat", "日", "."]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[SEP]"])
    return tokenizer


BUILDERS = {
    "byte_level": byte_level,
    "llama2": sentencepiece,
    "gemma": lambda: sentencepiece(strip=False),
    "word_piece": word_piece,
}
