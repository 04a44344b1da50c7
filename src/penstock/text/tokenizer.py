"""A checkpoint's tokenizer: text to ids and back, its special tokens, its chat template.

In: a directory in Hugging Face layout (tokenizer.json and the small JSON files beside it); out: ids, text and bytes.
Never truncates and never pads, whatever tokenizer.json asks for: a prompt that is too long is the caller's to refuse.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from penstock.text.template import ChatTemplate
from penstock.text.token_bytes import byte_decoder
from penstock.wire.errors import Problem

MAX_TOKEN_IDS = 1 << 21
"""Ids are counted up to the highest, holes included; the largest vocabularies have a quarter of a million."""

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Made by :meth:`load`.  Safe to share between threads: nothing changes after loading, and no text is remembered.

    ``special_tokens`` maps names ("bos_token") to text; ``stop_token_ids`` end a generation.
    ``vocab_size`` is the highest id plus one; a model's embedding may have more rows, for padding.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any], eos_ids: list[int]) -> None:
        backend.no_truncation()
        backend.no_padding()
        _remember_no_words(backend)
        self._backend = backend
        self._decoder = byte_decoder(json.loads(backend.to_str())["decoder"])
        added = backend.get_added_tokens_decoder()
        self.special_token_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size = _vocab_size(backend, max(added, default=-1) + 1)
        self.special_tokens = {
            name: text for name in _SPECIAL_NAMES if (text := _token_text(config.get(name))) is not None
        }
        eos_id = backend.token_to_id(self.special_tokens.get("eos_token", ""))
        self.stop_token_ids = frozenset(eos_ids) | ({eos_id} if eos_id is not None else frozenset())
        self.chat_template: ChatTemplate | None = None
        self._bos_id = backend.token_to_id(self.special_tokens.get("bos_token", ""))
        self._add_bos: bool | None = config.get("add_bos_token")
        self._processor_adds_bos = self._bos_id is not None and backend.encode("").ids[:1] == [self._bos_id]

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a checkpoint's tokenizer.  Raises ``Problem("checkpoint_invalid")`` that names the file at fault."""
        path = directory / "tokenizer.json"
        if not path.is_file():
            others = [name for name in _OLDER_FILES if (directory / name).is_file()]
            instead = f" {' and '.join(others)}, which is there instead, is not read." if others else ""
            raise Problem(
                "checkpoint_invalid",
                f"{path} is missing.{instead} Fetch the checkpoint with its tokenizer.json, or write one with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...).",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for whatever it cannot read
            raise Problem("checkpoint_invalid", f"{path} is not a usable tokenizer: {error}. {_AGAIN}") from error
        _check_ids(backend, path)
        config = _read_json(directory / "special_tokens_map.json") | _read_json(directory / "tokenizer_config.json")
        tokenizer = cls(backend, config, _eos_ids(directory / "generation_config.json"))
        tokenizer.chat_template = _chat_template(directory, config, tokenizer.special_tokens)
        return tokenizer

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text to ids.  With ``add_special_tokens`` as for a bare prompt (BOS where the model wants one).

        Raises ``Problem("invalid_value")`` for text that UTF-8 cannot carry (a lone surrogate).
        """
        try:
            # A batch of one: unlike encode() it lets other threads run meanwhile, and it keeps no offsets.
            ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except (UnicodeEncodeError, TypeError) as error:
            raise Problem("invalid_value", f"The text is not valid Unicode: {error}.", param="text") from error
        if not add_special_tokens or self._add_bos is None or self._add_bos == self._processor_adds_bos:
            return ids
        if self._processor_adds_bos:
            return ids[1:]
        return ids if self._bos_id is None or ids[:1] == [self._bos_id] else [self._bos_id, *ids]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Ids to text; bytes that form no character become U+FFFD.

        Raises ``Problem("invalid_value")`` for an id outside 0 .. vocab_size - 1.
        """
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise Problem(
                    "invalid_value",
                    f"Token id {token_id} is out of range; this vocabulary has ids 0 to {self.vocab_size - 1}.",
                    param="token_ids",
                )
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes one token stands for; part of a character for some.  Ids the vocabulary lacks have none."""
        table = self._bytes_by_id
        return table[token_id] if 0 <= token_id < len(table) else b""

    def id_of(self, token: str) -> int | None:
        """The id of a token that is spelled like this, if there is one."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def spell(self, text: bytes) -> list[int]:
        """Ids that stand for exactly these bytes, one byte each.  Raises ``KeyError`` where the vocabulary has none."""
        return [self._ids_of_bytes[byte] for byte in text]

    def token_text(self, token_id: int) -> str:
        """One token for display: its bytes, with U+FFFD where they are no whole characters."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def knows(self, token_id: int) -> bool:
        """Whether the vocabulary has this id."""
        return 0 <= token_id < self.vocab_size and self._backend.id_to_token(token_id) is not None

    def uses(self, token_id: int) -> bool:
        """Whether the token is plain text, or a special one that this checkpoint's files make use of."""
        if token_id not in self.special_token_ids or token_id in self.stop_token_ids:
            return True
        text = self._backend.id_to_token(token_id)
        template = "" if self.chat_template is None else self.chat_template.source
        return text is not None and (text in self.special_tokens.values() or text in template)

    @property
    def decodes_by_bytes(self) -> bool:
        """Whether text is the concatenation of :meth:`token_bytes`, but for the leading spaces stripped."""
        return self._decoder is not None

    @property
    def leading_spaces_stripped(self) -> int:
        """How many leading spaces a whole text loses when it is decoded (SentencePiece's dummy prefix)."""
        return 0 if self._decoder is None else self._decoder.strip_spaces

    @cached_property
    def _ids_of_bytes(self) -> dict[int, int]:
        return {data[0]: i for i, data in enumerate(self._bytes_by_id) if len(data) == 1}

    @cached_property
    def _bytes_by_id(self) -> list[bytes]:
        if self._decoder is None:
            decode = self._backend.decode
            return [decode([i], skip_special_tokens=False).encode() for i in range(self.vocab_size)]
        token_of, to_bytes = self._backend.id_to_token, self._decoder.to_bytes
        return [b"" if (token := token_of(i)) is None else to_bytes(token) for i in range(self.vocab_size)]


# What releases before tokenizer.json hold: SentencePiece, byte-level BPE, WordPiece, tiktoken, Mistral's own.
_OLDER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "tekken.json")
_AGAIN = "Fetch or export the checkpoint again."


def _check_ids(backend: tokenizers.Tokenizer, path: Path) -> None:
    """Raise ``checkpoint_invalid`` for a vocabulary without tokens, or with an id that no model has a row for."""
    highest = max(backend.get_vocab(with_added_tokens=True).values(), default=None)
    if highest is None:
        raise Problem("checkpoint_invalid", f"{path} has no tokens. {_AGAIN}")
    if highest >= MAX_TOKEN_IDS:
        message = f"{path} has the token id {highest}; ids from 0 to {MAX_TOKEN_IDS - 1} are read. {_AGAIN}"
        raise Problem("checkpoint_invalid", message)


def _remember_no_words(backend: tokenizers.Tokenizer) -> None:
    """Have BPE and Unigram models cut each word anew; others remember none anyway.

    The library keeps ten thousand words of up to 255 bytes in each thread that tokenises, some 80 MB where texts are
    hardly split or hostile, which nobody accounts for.  Without them a token of English text takes 0.3 us more.
    """
    resize = getattr(backend.model, "_resize_cache", None)  # nothing public sizes it once a file has been read
    if resize is not None:
        resize(0)


def _vocab_size(backend: tokenizers.Tokenizer, after_added: int) -> int:
    size: int = max(backend.get_vocab_size(with_added_tokens=True), after_added)
    if backend.id_to_token(size - 1) is not None and backend.get_vocab_size() == size:
        return size
    # Ids with holes: only the whole vocabulary tells the highest one.
    return max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when there is no such file.  Raises ``Problem("checkpoint_invalid")``."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # an escaped lone surrogate is JSON, but no text
    except (OSError, ValueError, RecursionError) as error:
        raise Problem("checkpoint_invalid", f"{path} cannot be read as JSON: {error}. {_AGAIN}") from error
    if not isinstance(value, dict):
        raise Problem("checkpoint_invalid", f"{path} holds a {type(value).__name__}, not an object. {_AGAIN}")
    return value


def _token_text(token: Any) -> str | None:
    """A special token as the files write it: its text, or an object whose ``content`` is its text."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _eos_ids(path: Path) -> list[int]:
    ids = _read_json(path).get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise Problem("checkpoint_invalid", f"{path}: eos_token_id must be a token id or a list of them, not {ids}.")
    return ids


def _chat_template(directory: Path, config: dict[str, Any], special_tokens: dict[str, str]) -> ChatTemplate | None:
    """chat_template.jinja wins over tokenizer_config.json; of several named templates the one called "default"."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return ChatTemplate(path.read_text("utf-8"), special_tokens, origin=str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise Problem("checkpoint_invalid", f"{path} cannot be read: {error}. {_AGAIN}") from error
    origin = f"{directory / 'tokenizer_config.json'}: chat_template"
    source = config.get("chat_template")
    if isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
        source = named[-1].get("template") if named else None
    if source is None:
        return None
    if not isinstance(source, str):
        raise Problem("checkpoint_invalid", f"{origin} must be text or a list of named texts. {_AGAIN}")
    return ChatTemplate(source, special_tokens, origin=origin)
