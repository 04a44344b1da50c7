"""Writing a decoder as a checkpoint in Hugging Face layout.

In: a decoder on the CPU; out: model.safetensors and config.json, each complete or absent, never half.
The tensors are streamed: saving needs no second copy of the weights.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from penstock.models.checkpoint import SINGLE_FILE
from penstock.models.decoder import Decoder
from penstock.models.layout import pieces
from penstock.wire.errors import Problem

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNMENT = 8


def save_decoder(decoder: Decoder, directory: Path) -> None:
    """Write ``decoder`` into ``directory``, replacing the weights and configuration of one that is there.

    Raises ``insufficient_disk`` when the file system is full; what was there before is then still there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    parameters = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    tensors = [
        (piece.name, piece.of(parameters[piece.parameter])) for piece in pieces(decoder, decoder.config.family.tensors)
    ]
    config = json.dumps(decoder.config.to_huggingface(), indent=2) + "\n"
    write_atomically(directory / SINGLE_FILE, lambda file: _write_tensors(file, tensors))
    write_atomically(directory / "config.json", lambda file: file.write(config.encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, make it durable and rename it into place."""
    with full_disk_named(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        draft = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o644)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn "no space left" into ``insufficient_disk`` with the path that did not fit."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Problem("insufficient_disk", f"No space is left on the disk while writing {path}.") from None


def _write_tensors(file: BinaryIO, tensors: Sequence[tuple[str, Tensor]]) -> None:
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
