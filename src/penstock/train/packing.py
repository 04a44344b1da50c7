"""Documents cut into pieces and packed into rows of one length, and the batches made of them.

In: token ids, a loss mask and document offsets; out: int64 and float32 tensors of constant shape.
Which row comes when is train/order.py's business.  Since attention never crosses a document's border, it does not
matter which pieces share a row: they are packed once, and every epoch permutes the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PADDING = -1


@dataclass(frozen=True)
class Batch:
    """B rows of R tokens, flat in the order of the rows.

    ``segments[B, R]`` tells which document of its row a token belongs to, ``PADDING`` for none.
    ``targets`` is the token that follows in the same document; ``weights`` is 0 where its loss does not count.
    """

    token_ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    segments: Tensor


class PackedRows:
    """A token set seen as ``len(self)`` rows of ``row_tokens`` tokens.

    ``tokens[N]`` any integer type, ``mask[N]`` non-zero where predicting that token counts, ``offsets[D + 1]``
    where each document begins.  A document of n tokens takes n - 1 places: its last token is only ever predicted.
    """

    def __init__(
        self,
        tokens: NDArray[np.integer],
        mask: NDArray[np.integer | np.bool_],
        offsets: NDArray[np.integer],
        *,
        row_tokens: int,
        seed: int,
    ) -> None:
        self.row_tokens = row_tokens
        self._tokens = tokens
        self._mask = mask
        self._rows = pack(_pieces(mask, offsets, row_tokens), row_tokens, seed)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_filled(self) -> int:
        """Places that hold a token; the others are padding."""
        return sum(length for row in self._rows for _, length in row)

    def batch(self, rows: NDArray[np.integer]) -> Batch:
        """The rows with these numbers, in this order."""
        shape = (len(rows), self.row_tokens)
        token_ids, positions, targets = (np.zeros(shape, np.int64) for _ in range(3))
        weights = np.zeros(shape, np.float32)
        segments = np.full(shape, PADDING, np.int64)
        for i, row in enumerate(rows):
            at = 0
            for number, (start, length) in enumerate(self._rows[row]):
                places, end = slice(at, at + length), start + length
                token_ids[i, places] = self._tokens[start:end]
                targets[i, places] = self._tokens[start + 1 : end + 1]
                weights[i, places] = self._mask[start + 1 : end + 1] != 0
                positions[i, places] = np.arange(length)
                segments[i, places] = number
                at += length
        arrays = token_ids.ravel(), positions.ravel(), targets.ravel(), weights.ravel(), segments
        return Batch(*map(torch.from_numpy, arrays))


def pack(pieces: list[tuple[int, int]], row_tokens: int, seed: int) -> list[list[tuple[int, int]]]:
    """Best fit: each piece (start, length), in an order drawn from ``seed``, goes where it leaves the least room.

    Random order instead of longest first mixes lengths within a row, so that steps carry alike many documents.
    """
    rows: list[list[tuple[int, int]]] = []
    with_room: list[list[int]] = [[] for _ in range(row_tokens + 1)]
    for index in np.random.default_rng(seed).permutation(len(pieces)):
        piece = pieces[index]
        length = piece[1]
        room = next((room for room in range(length, row_tokens + 1) if with_room[room]), None)
        if room is None:
            room = row_tokens
            with_room[room].append(len(rows))
            rows.append([])
        number = with_room[room].pop()
        rows[number].append(piece)
        with_room[room - length].append(number)
    return rows


def _pieces(
    mask: NDArray[np.integer | np.bool_], offsets: NDArray[np.integer], row_tokens: int
) -> list[tuple[int, int]]:
    """(start, number of inputs), cut so that each fits a row; a piece that predicts nothing that counts is left out."""
    counted = np.concatenate(([0], np.cumsum(mask != 0)))
    pieces = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for start in range(begin, end - 1, row_tokens):
            length = min(row_tokens, end - 1 - start)
            if counted[start + length + 1] > counted[start + 1]:
                pieces.append((start, length))
    return pieces
