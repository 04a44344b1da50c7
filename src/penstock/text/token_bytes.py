"""Which bytes each token stands for, read off a tokenizer's decoder.

In: the ``decoder`` object of tokenizer.json; out: a :class:`ByteDecoder`, or ``None`` for a decoder that is not a
plain concatenation of bytes per token (WordPiece, CTC, ...): such text can only be decoded in windows.
Equal to the decoders of the ``tokenizers`` library, except that byte-fallback tokens which form no character become
U+FFFD by Unicode's rule (one per ill-formed part), where the library gives up the whole run of byte tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class ByteDecoder:
    """``to_bytes`` maps a token as the vocabulary spells it to its bytes.

    ``strip_spaces``: so many leading spaces of the whole text are dropped (SentencePiece's dummy prefix).
    """

    to_bytes: Callable[[str], bytes]
    strip_spaces: int = 0


def byte_decoder(decoder: dict[str, Any] | None) -> ByteDecoder | None:
    """Recognise ByteLevel, and SentencePiece's chain of Replace, ByteFallback, Fuse and a leading Strip."""
    steps = _flat(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteDecoder(byte_level_bytes)
    strip_spaces = 0
    if kinds and kinds[-1] == "Strip":
        strip = steps.pop()
        kinds.pop()
        if "Fuse" not in kinds or strip.get("content") != " " or strip.get("stop") != 0:
            return None
        strip_spaces = int(strip.get("start", 0))
    if kinds and kinds[-1] == "Fuse":
        kinds.pop()
        steps.pop()
    fallback = bool(kinds) and kinds[-1] == "ByteFallback"
    if fallback:
        kinds.pop()
        steps.pop()
    replacements = [_replacement(step) for step in steps]
    known = [pair for pair in replacements if pair is not None]
    if not (known or fallback) or len(known) != len(replacements):
        return None
    return ByteDecoder(functools.partial(_sentencepiece_bytes, known, fallback), strip_spaces)


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a token in the spelling of GPT-2, where each byte is one printable character.

    A token with any other character (an added token with a space in it) stands for its own UTF-8.
    """
    table = _byte_of_char()
    try:
        return bytes([table[char] for char in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def _sentencepiece_bytes(replacements: list[tuple[str, str]], fallback: bool, token: str) -> bytes:
    for old, new in replacements:
        token = token.replace(old, new)
    if fallback and (byte := _BYTE_FALLBACK.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    return token.encode("utf-8", "replace")


def _flat(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [step for part in decoder.get("decoders", []) for step in _flat(part)]
    return [decoder]


def _replacement(step: dict[str, Any]) -> tuple[str, str] | None:
    pattern = step.get("pattern")
    if step.get("type") != "Replace" or not isinstance(pattern, dict) or not isinstance(pattern.get("String"), str):
        return None
    return pattern["String"], step.get("content", "")


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
