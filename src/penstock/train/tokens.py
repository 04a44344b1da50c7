"""Tokenised documents on disk: what every training stage reads.

In: documents as token ids with a mask; out: a directory of flat arrays, verified whenever it is loaded.
``mask[i]`` says whether token ``i`` is to be predicted (its loss counts); the first token of a document never is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.train.artefact import artefact_digest, read_artefact, write_artefact
from penstock.wire.errors import Problem

_MAX_ID = np.iinfo(np.uint16).max


@dataclass(frozen=True, slots=True)
class Document:
    """One text as the model sees it.  ``num_bytes`` counts the UTF-8 bytes of what is to be predicted."""

    token_ids: list[int]
    loss_mask: list[bool]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class TokenSet:
    """Documents laid end to end.  Document ``d`` is ``token_ids[offsets[d]:offsets[d + 1]]``.

    ``token_ids`` uint16 [T], ``loss_mask`` uint8 [T], ``offsets`` int64 [D + 1], ``num_bytes`` int64 [D].
    ``digest`` identifies the set; ``manifest`` has its counts and provenance.
    """

    token_ids: NDArray[np.uint16]
    loss_mask: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    num_bytes: NDArray[np.int64]
    manifest: Mapping[str, Any]
    digest: str

    @classmethod
    def load(cls, directory: Path) -> TokenSet:
        """Read and verify what :func:`write_tokens` wrote.  Raises ``artefact_invalid`` that names the file."""
        manifest = read_artefact(directory)
        arrays = {name: _read(directory / f"{name}.npy") for name in ("tokens", "mask", "offsets", "bytes")}
        tokens, mask, offsets = arrays["tokens"], arrays["mask"], arrays["offsets"]
        consistent = (
            tokens.dtype == np.uint16
            and mask.dtype == np.uint8
            and mask.shape == tokens.shape
            and len(offsets) == len(arrays["bytes"]) + 1
            and offsets[0] == 0
            and offsets[-1] == len(tokens)
            and bool(np.all(np.diff(offsets) > 0))
        )
        if not consistent:
            raise Problem("artefact_invalid", f"The arrays of {directory} do not fit together. Write them again.")
        return cls(tokens, mask, offsets, arrays["bytes"], manifest, artefact_digest(directory))

    def __len__(self) -> int:
        return len(self.num_bytes)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def document(self, index: int) -> Document:
        begin, end = self.offsets[index], self.offsets[index + 1]
        mask = self.loss_mask[begin:end].astype(bool).tolist()
        return Document(self.token_ids[begin:end].tolist(), mask, int(self.num_bytes[index]))


def write_tokens(directory: Path, documents: Iterable[Document], *, provenance: Mapping[str, Any]) -> None:
    """Write ``documents`` as an artefact; ``provenance`` (tokenizer digest, corpus digest ...) goes into its manifest.

    Raises ``invalid_value`` when there is no document or an id exceeds 65,535, ``insufficient_disk`` on a full disk.
    """
    kept = list(documents)
    if not kept:
        raise Problem("invalid_value", f"There are no documents to write to {directory}.")
    for index, document in enumerate(kept):
        assert 0 < len(document.token_ids) == len(document.loss_mask) and not document.loss_mask[0]
        if max(document.token_ids) > _MAX_ID:
            message = f"Document {index} has the token id {max(document.token_ids)}; ids up to {_MAX_ID} can be stored."
            raise Problem("invalid_value", message)
    lengths = np.array([len(document.token_ids) for document in kept], dtype=np.int64)
    arrays = {
        "tokens": np.concatenate([np.array(document.token_ids, dtype=np.uint16) for document in kept]),
        "mask": np.concatenate([np.array(document.loss_mask, dtype=np.uint8) for document in kept]),
        "offsets": np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
        "bytes": np.array([document.num_bytes for document in kept], dtype=np.int64),
    }
    facts = {
        "kind": "tokens",
        "num_documents": len(kept),
        "num_tokens": int(lengths.sum()),
        "num_predicted_tokens": int(arrays["mask"].sum()),
        "num_bytes": int(arrays["bytes"].sum()),
        "longest_document_tokens": int(lengths.max()),
        "provenance": dict(provenance),
    }
    write_artefact(directory, {f"{name}.npy": _writer(array) for name, array in arrays.items()}, facts)


def _writer(array: NDArray[Any]) -> Any:
    return lambda file: np.save(file, array, allow_pickle=False)


def _read(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Problem("artefact_invalid", f"{path} cannot be read: {error}. Write it again.") from error
    return array
