"""How a checkpoint's hidden states become an embedding, as the files of sentence-transformers beside it say.

In: a directory; out: which rows are pooled, whether the result is normalised, the longest text it was made for.
A module that changes the embedding and is not implemented is refused by name, never left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.models.fields import Fields, read_list, read_object
from penstock.wire.errors import Problem

Rows = Literal["cls", "last", "mean"]

# By the names of before and since sentence-transformers 6.
_ROWS: dict[str, Rows] = {"cls": "cls", "lasttoken": "last", "mean": "mean"}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@dataclass(frozen=True)
class SentenceConfig:
    """``max_tokens`` is the length that the checkpoint's authors recommend; ``None``: they say nothing."""

    rows: Rows
    normalize: bool
    max_tokens: int | None

    @classmethod
    def from_directory(cls, directory: Path, default_rows: Rows) -> SentenceConfig:
        """What modules.json and the files it names say; without one ``default_rows``, normalised.

        Raises ``checkpoint_invalid`` (file and field named) or ``checkpoint_unsupported``.
        """
        max_tokens = _max_tokens(directory / "sentence_bert_config.json")
        path = directory / "modules.json"
        if not path.is_file():
            return cls(default_rows, True, max_tokens)
        rows, normalize = default_rows, False
        for entry in read_list(path):
            kind = entry.text("type").rpartition(".")[2]
            if kind == "Pooling":
                rows = _rows(read_object(_folder(directory, entry) / "config.json"))
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer" or entry.text("path", ""):
                raise entry.unsupported("type", "Supported: Transformer at the top, Pooling, Normalize.")
        return cls(rows, normalize, max_tokens)


def _folder(directory: Path, entry: Fields) -> Path:
    name = entry.text("path", "")
    if name in ("", ".", "..") or any(char in name for char in "/\\\0"):
        raise entry.wrong("path", f"must be a plain name in {directory}")
    return directory / name


def _rows(fields: Fields) -> Rows:
    stated = fields.data.get("pooling_mode")
    if stated is None:
        active = [mode for flag, mode in _FLAGS.items() if fields.flag(flag, False)]
        if len(active) != 1:
            found = ", ".join(active) or "none"
            message = f"{fields.file}: it asks for the poolings {found}; exactly one is supported."
            raise Problem("checkpoint_unsupported", message)
        stated = active[0]
    if not isinstance(stated, str) or stated not in _ROWS:
        message = f"{fields.file}: it asks for the pooling {stated!r}. Supported: {', '.join(_ROWS)}."
        raise Problem("checkpoint_unsupported", message, param="pooling_mode")
    return _ROWS[stated]


def _max_tokens(path: Path) -> int | None:
    if not path.is_file():
        return None
    fields = read_object(path)
    if fields.flag("do_lower_case", False):
        raise fields.unsupported("do_lower_case", "Only what tokenizer.json itself does to a text is supported.")
    if fields.data.get("max_seq_length") is None:
        return None
    return fields.integer("max_seq_length", 1, 1 << 24)
