"""Filling a model from the files of a checkpoint.

In: an allocated model, and which stored tensor is which piece of it; out: the model with these values.
Bytes go from the files straight into the fused parameters, through a few megabytes where they need conversion, or
into packed weights.  What fits what has been checked before: ``models.load``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from penstock.models.checkpoint import StoredTensor
from penstock.models.layout import Piece
from penstock.models.numbers import QuantisedTensor, read_numbers
from penstock.models.packed import Packed, put_numbers, put_rows
from penstock.models.stored import FLOATS, check_finite, read_part

Progress = Callable[[float, str], None]
# Values that are read, checked and converted at a time.
_PART = 1 << 18


@dataclass(frozen=True)
class Transfer:
    """One piece and where its values come from."""

    piece: Piece
    source: StoredTensor | QuantisedTensor

    @property
    def names(self) -> set[str]:
        return {self.piece.name} if isinstance(self.source, StoredTensor) else self.source.names


def fill(model: nn.Module, plan: list[Transfer], progress: Progress) -> None:
    """Read all of ``plan`` into ``model``, largest first, so that the threads end together.

    ``progress`` hears (fraction of bytes 0..1, words).  Raises ``checkpoint_invalid``.
    """
    total = sum(transfer.source.num_bytes for transfer in plan)
    done = 0
    plan.sort(key=lambda transfer: -transfer.source.num_bytes)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        reads = {pool.submit(_read, _place(model, transfer.piece), transfer): transfer for transfer in plan}
        try:
            for read in as_completed(reads):
                read.result()
                done += reads[read].source.num_bytes
                progress(done / total, f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB of weights")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Rows:
    """The rows of packed ``matrices`` that a piece is, from ``start`` on."""

    matrices: Sequence[Packed]
    start: int
    shape: tuple[int, ...]


def _place(model: nn.Module, piece: Piece) -> Tensor | _Rows:
    path, _, leaf = piece.parameter.rpartition(".")
    module = model.get_submodule(path)
    parameter = getattr(module, leaf, None)
    if isinstance(parameter, Tensor):
        return piece.of(parameter.detach())
    matrices: Sequence[Packed] = module.packed  # type: ignore[assignment]  # what models.load has put there
    return _Rows(matrices, piece.start, piece.shape)


def _read(target: Tensor | _Rows, transfer: Transfer) -> None:
    match target, transfer.source:
        case _Rows(), QuantisedTensor() as source:
            put_numbers(target.matrices, target.start, read_numbers(source))
        case _Rows(), StoredTensor() as source:
            _read_packed(target, source, transfer.piece.name)
        case Tensor(), StoredTensor() as source:
            _read_plain(target, source, transfer.piece.name)


def _read_packed(target: _Rows, stored: StoredTensor, name: str) -> None:
    """Tensor ``name`` into packed weights, some rows at a time."""
    total, inputs = target.shape
    num_rows = max(1, _PART // inputs)
    landing = torch.empty(min(num_rows, total), inputs, dtype=FLOATS[stored.dtype])
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        for at in range(0, total, num_rows):
            landed = landing[: min(num_rows, total - at)]
            read_part(file, landed, stored)
            check_finite(landed, stored, name)
            put_rows(target.matrices, target.start + at, landed)


def _read_plain(target: Tensor, stored: StoredTensor, name: str) -> None:
    """Tensor ``name`` into the contiguous ``target``, part by part, so that a conversion needs little memory."""
    dtype = FLOATS[stored.dtype]
    flat = target.view(-1)
    landing = None if target.dtype == dtype else torch.empty(min(_PART, len(flat)), dtype=dtype)
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        for part in torch.split(flat, _PART):
            landed = part if landing is None else landing[: len(part)]
            read_part(file, landed, stored)
            check_finite(landed, stored, name)
            if landed is not part:
                part.copy_(landed)
