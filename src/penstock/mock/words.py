"""What a mock engine says: token ``i`` of a request is a function of its prompt, its seed and ``i``, nothing else.

In: a request; out: its key, its tokens, their texts.  Greedy requests (temperature 0) depend on the prompt alone.
Ids below 256 are bytes; every eighth group of three tokens is one character in three bytes, so that character
borders fall between tokens.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.engine import GenerateRequest
from penstock.wire.tokenization import TokenizeRequest

_DIMENSIONS = 16
_MASK = (1 << 64) - 1
_GROUP = 3
_SPLIT_EVERY = 8
_FIRST_WORD = 256
_LEAD = (0xE2, 0x82)
_NUM_TAILS = 0x1F
_FIRST_TAIL = 0xA0
"""Characters U+20A0 to U+20BE: their last byte says which, and is never one of the first two."""
_SYLLABLES = ("ka", "lo", "mi", "né", "ru", "ta", "vo", "zu", "ße", "ha", "ji", "pe", "so", "wy", "gú", "do")


def _word(number: int) -> str:
    parts = (number & 15, number >> 4 & 15, number >> 8 & 3)
    return "".join(_SYLLABLES[part] for part in parts) + (". " if number % 16 == 0 else " ")


WORDS = tuple(_word(number) for number in range(1024))
VOCABULARY = _FIRST_WORD + len(WORDS)


def mix(key: int, number: int) -> int:
    """64 well mixed bits of two numbers (the finaliser of SplitMix64, Steele et al. 2014)."""
    bits = (key + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)


def share(key: int, number: int) -> float:
    """A number in [0, 1) of two numbers."""
    return mix(key, number) / 2.0**64


def prompt_bytes(request: GenerateRequest | TokenizeRequest) -> bytes:
    """The prompt as the mock's template renders it; token ids as their texts."""
    if request.messages is not None:
        text = "".join(f"{message.get('role')}\n{_content(message)}\n" for message in request.messages)
    elif request.text is not None:
        text = request.text
    else:
        text = text_of(list(getattr(request, "token_ids", None) or []))
    return text.encode("utf-8", "surrogatepass")


def key_of(request: GenerateRequest, prompt: bytes) -> int:
    """What the tokens of a request depend on."""
    seed = 0 if request.sampling.temperature == 0 else request.sampling.seed
    return mix(zlib.crc32(prompt), seed & _MASK)


def token_of(key: int, position: int) -> int:
    """Token ``position`` of the answer with this key."""
    group, place = divmod(position, _GROUP)
    bits = mix(key, group)
    if bits % _SPLIT_EVERY == 0:
        return _LEAD[place] if place < 2 else _FIRST_TAIL + (bits >> 8) % _NUM_TAILS
    return _FIRST_WORD + (bits >> (16 + 10 * place)) % len(WORDS)


def piece(token_id: int) -> str:
    """What an answer's token adds to its text: a word, a character with its last byte, or nothing yet."""
    if token_id >= _FIRST_WORD:
        return WORDS[(token_id - _FIRST_WORD) % len(WORDS)]
    return chr(0x20A0 + token_id - _FIRST_TAIL) if 0 <= token_id - _FIRST_TAIL < _NUM_TAILS else ""


def token_bytes(token_id: int) -> bytes:
    """What a token stands for."""
    return bytes([token_id]) if token_id < _FIRST_WORD else piece(token_id).encode()


def text_of(token_ids: list[int]) -> str:
    """Any tokens as text; what is no character becomes U+FFFD."""
    return b"".join(map(token_bytes, token_ids)).decode("utf-8", "replace")


def embedded(request: EmbedRequest) -> Embedded:
    """One vector per input, a function of the input alone."""
    texts = request.texts if request.texts is not None else list(map(text_of, request.token_ids or []))
    size = request.num_dimensions or _DIMENSIONS
    vectors = []
    for text in texts:
        key = zlib.crc32(text.encode("utf-8", "surrogatepass"))
        numbers = [2.0 * share(key, number) - 1.0 for number in range(size)]
        vectors.append(base64.b64encode(struct.pack(f"<{size}f", *numbers)).decode())
    num_tokens = sum(map(len, request.token_ids)) if request.token_ids is not None else sum(map(_num_bytes, texts))
    return Embedded(vectors=vectors, prompt_tokens=num_tokens)


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
