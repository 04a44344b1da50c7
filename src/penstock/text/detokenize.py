"""Token ids to text, one at a time.

In: the prompt's ids, then each output id; out: the text that id completes, never half a character.
The text depends on the ids alone, so a resumed stream replays its ids into a fresh detokenizer and goes on seamlessly.
Constant cost per token: the prompt is not decoded, and nothing that was emitted is looked at again.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_MAX_CHAR_BYTES = 4
# Windowed decoding: visible tokens that precede the window, and the most that wait for a character to complete.
_CONTEXT_TOKENS = 6
_MAX_HELD_TOKENS = 16


class Detokenizer:
    """One output stream.  Special tokens, but for those in ``shown``, and ids that the vocabulary lacks have no text.

    Pushes and the flush add up to ``decode(prompt + output)`` minus ``decode(prompt)``.
    A character that the prompt began and the output completes belongs to the output.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int], shown: frozenset[int] = frozenset()) -> None:
        self._stream: _ByteStream | _WindowStream
        if tokenizer.decodes_by_bytes:
            self._stream = _ByteStream(tokenizer, prompt_ids)
        else:
            self._stream = _WindowStream(tokenizer, prompt_ids)
        self._special = tokenizer.special_token_ids
        self._shown = {token_id: tokenizer.token_text(token_id) for token_id in shown}

    def push(self, token_id: int) -> str:
        """Take the next output id; answer the text it completes, which is often empty."""
        if token_id not in self._special:
            return self._stream.push(token_id)
        # A token of its own completes whatever was unfinished, and no decoder changes how it is spelled.
        return self._stream.flush() + self._shown[token_id] if token_id in self._shown else ""

    def flush(self) -> str:
        """The output ended: what was held back, an unfinished character as U+FFFD."""
        return self._stream.flush()


class _ByteStream:
    """For decoders that concatenate bytes: a table of bytes and an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int]) -> None:
        self._bytes_of = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer.leading_spaces_stripped
        hidden = tokenizer.special_token_ids
        if self._strip:
            for token_id in prompt_ids:
                if token_id not in hidden:
                    self._without_prefix(self._bytes_of(token_id).decode("utf-8", "replace"))
                if not self._strip:
                    break
        self._utf8.decode(_tail(tokenizer, prompt_ids, hidden))

    def push(self, token_id: int) -> str:
        text = self._utf8.decode(self._bytes_of(token_id))
        return self._without_prefix(text) if self._strip else text

    def flush(self) -> str:
        text = self._utf8.decode(b"", final=True)
        return self._without_prefix(text) if self._strip else text

    def _without_prefix(self, text: str) -> str:
        """Drop the leading spaces that the whole text still has to lose."""
        kept = text.lstrip(" ")
        dropped = min(self._strip, len(text) - len(kept))
        self._strip = 0 if kept else self._strip - dropped
        return text[dropped:]


def _tail(tokenizer: Tokenizer, prompt_ids: list[int], hidden: frozenset[int]) -> bytes:
    """The prompt's last bytes from a character's first byte on: what an unfinished character needs."""
    tail = b""
    for token_id in reversed(prompt_ids):
        if token_id not in hidden:
            tail = tokenizer.token_bytes(token_id) + tail
        if len(tail) >= _MAX_CHAR_BYTES:
            break
    tail = tail[-_MAX_CHAR_BYTES:]
    is_continuation = [byte & 0xC0 == 0x80 for byte in tail]
    return tail[is_continuation.index(False) :] if False in is_continuation else b""


class _WindowStream:
    """For any other decoder: decode a short window with and without the new token, and emit the difference."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        hidden = tokenizer.special_token_ids
        self._window: list[int] = []
        for token_id in reversed(prompt_ids):
            if token_id not in hidden and tokenizer.knows(token_id):
                self._window.insert(0, token_id)
            if len(self._window) == _CONTEXT_TOKENS:
                break
        self._num_emitted = len(self._window)

    def push(self, token_id: int) -> str:
        if not self._tokenizer.knows(token_id):
            return ""
        self._window.append(token_id)
        text = self._pending()
        waiting = len(self._window) - self._num_emitted
        if not text or (text.endswith(_REPLACEMENT) and waiting < _MAX_HELD_TOKENS):
            return ""
        self._window = self._window[-_CONTEXT_TOKENS:]
        self._num_emitted = len(self._window)
        return text

    def flush(self) -> str:
        text = self._pending()
        self._num_emitted = len(self._window)
        return text

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._window[: self._num_emitted])
        return self._tokenizer.decode(self._window)[len(before) :]
