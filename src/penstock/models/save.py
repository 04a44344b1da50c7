"""Writing a decoder as a checkpoint in Hugging Face layout.

In: a decoder on the CPU; out: model.safetensors, or shards with their index, and config.json.  Each file is complete or
absent, and shards of two savings are never found together.  Tensors are streamed: there is no second copy of them.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from penstock.models.checkpoint import INDEX_FILE, SINGLE_FILE
from penstock.models.decoder import Decoder
from penstock.models.layout import pieces
from penstock.wire.errors import Problem

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNMENT = 8
Named = tuple[str, Tensor]


def save_decoder(decoder: Decoder, directory: Path, max_shard_bytes: int = 5_000_000_000) -> None:
    """Write ``decoder`` into ``directory``, replacing the weights and configuration of one that is there.

    Weights of more than ``max_shard_bytes`` become several files of at most that, or of one tensor.
    Raises ``insufficient_disk`` when the file system is full; what was there before is then still there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    parameters = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    tensors = [
        (piece.name, piece.of(parameters[piece.parameter])) for piece in pieces(decoder, decoder.config.family.tensors)
    ]
    config = json.dumps(decoder.config.to_huggingface(), indent=2) + "\n"
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        write_atomically(directory / SINGLE_FILE, lambda file: _write_tensors(file, tensors))
        _remove_shards(directory, keep=())
    else:
        _write_shards(directory, shards)
    write_atomically(directory / "config.json", lambda file: file.write(config.encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, make it durable and rename it into place."""
    with full_disk_named(path):
        _draft(path, write).replace(path)


def _draft(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """A durable temporary file beside ``path``, filled by ``write``; none is left where that fails."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn "no space left" into ``insufficient_disk`` with the path that did not fit."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Problem("insufficient_disk", f"No space is left on the disk while writing {path}.") from None


def _shards(tensors: Sequence[Named], max_bytes: int) -> list[list[Named]]:
    shards: list[list[Named]] = [[]]
    size = 0
    for name, tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, tensor))
        size += tensor.nbytes
    return shards


def _write_shards(directory: Path, shards: list[list[Named]]) -> None:
    """All files as drafts, then all renames: until the index is there, a directory has no weights, or its old ones."""
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for shard in shards for _, tensor in shard)},
        "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name, _ in shard},
    }
    text = json.dumps(index, indent=2).encode()
    writers: list[Callable[[BinaryIO], object]] = [partial(_write_tensors, tensors=shard) for shard in shards]
    targets = [directory / name for name in (*names, INDEX_FILE)]
    drafts: list[Path] = []
    try:
        for target, write in zip(targets, (*writers, lambda file: file.write(text)), strict=True):
            with full_disk_named(target):
                drafts.append(_draft(target, write))
        (directory / INDEX_FILE).unlink(missing_ok=True)
        (directory / SINGLE_FILE).unlink(missing_ok=True)
        for draft, target in zip(drafts, targets, strict=True):
            draft.replace(target)
    except BaseException:
        for draft in drafts:
            draft.unlink(missing_ok=True)
        raise
    _remove_shards(directory, keep=names)


def _remove_shards(directory: Path, keep: Collection[str]) -> None:
    """Shards of an earlier saving, and its index where nothing is kept."""
    if not keep:
        (directory / INDEX_FILE).unlink(missing_ok=True)
    for file in directory.glob("model-?????-of-?????.safetensors"):
        if file.name not in keep:
            file.unlink()


def _write_tensors(file: BinaryIO, tensors: Sequence[Named]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for _, tensor in tensors:
        file.write(tensor.view(torch.uint8).numpy().data)
