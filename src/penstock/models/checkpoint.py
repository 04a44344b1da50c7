"""Which tensors a checkpoint holds, and where: read and checked before anything is allocated.

In: a directory in Hugging Face layout; out: name -> place in a safetensors file.  Reads headers only, never a pickle.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.models.fields import read_object
from penstock.wire.errors import Problem

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64"), 8),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
_MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
# Longer than a file system's names may be; asked about one, it fails instead of saying no.
_MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor's place: ``num_bytes`` from byte ``offset`` of ``file``.  ``dtype`` is a key of ITEM_BYTES."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in ``directory``.

    Raises ``checkpoint_invalid`` for a missing, damaged or truncated file (named, with its sizes), and
    ``checkpoint_unsafe`` where the only weights are pickles.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _files(directory):
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise _invalid(f"{file}: tensor {name} is also in {tensors[name].file.name}.")
            tensors[name] = tensor
    return tensors


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file.  Raises ``checkpoint_invalid`` as :func:`read_headers` does."""
    file_bytes = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        begin = _LENGTH_BYTES + header_bytes
        if header_bytes > _MAX_HEADER_BYTES:
            raise _invalid(
                f"{file}: its header claims {header_bytes} bytes; at most {_MAX_HEADER_BYTES} are allowed. "
                "This is not a safetensors file."
            )
        if file_bytes < begin:
            raise _invalid(f"{file} has {file_bytes} bytes, but its header alone needs {begin}: it is truncated.")
        header = _parse(file, stream.read(header_bytes))
    tensors = {name: _stored(file, name, entry, begin) for name, entry in header.items() if name != "__metadata__"}
    _check_coverage(file, tensors, begin, file_bytes)
    return tensors


def _files(directory: Path) -> list[Path]:
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    if (directory / INDEX_FILE).is_file():
        return _indexed_files(directory)
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickles:
        raise Problem(
            "checkpoint_unsafe",
            f"{directory} holds weights only as pickles ({', '.join(pickles[:3])}), which can run code when loaded. "
            "Convert them to safetensors.",
        )
    gguf = next(directory.glob("*.gguf"), None)
    if gguf is not None:
        raise Problem(
            "checkpoint_unsupported",
            f"{gguf} is a GGUF file, which is not read. Take the release that it was made from, in safetensors.",
        )
    raise _invalid(f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}.")


def _indexed_files(directory: Path) -> list[Path]:
    index = directory / INDEX_FILE
    weight_map = read_object(index).object("weight_map")
    if weight_map is None or not weight_map.data:
        raise _invalid(f"{index}: the field weight_map is missing or empty.")
    names = list(weight_map.data.values())
    for name in names:
        # A bare name in this directory.  It may be a link: the hub's cache is made of them.
        if not isinstance(name, str) or name in ("", ".", "..") or any(char in name for char in "/\\\0"):
            shown = repr(name)[:80]
            raise _invalid(f"{index}: weight_map names the file {shown}; only plain names in {directory} are allowed.")
    files = []
    for name in dict.fromkeys(names):
        if len(os.fsencode(name)) > _MAX_NAME_BYTES or not (directory / name).is_file():
            raise _invalid(f"{directory / name}, which {INDEX_FILE} names, is missing.")
        files.append(directory / name)
    return files


def _parse(file: Path, header: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{file}: its header is not valid JSON: {error}.") from None
    if not isinstance(parsed, dict):
        raise _invalid(f"{file}: its header must be a JSON object, but is a {type(parsed).__name__}.")
    try:
        "".join(parsed).encode()
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell and no message can carry
        raise _invalid(f"{file}: its header names a tensor by what is no text: {error}.") from None
    return parsed


def _stored(file: Path, name: str, entry: Any, begin: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(last)]} if all(
            type(size) is int and size >= 0 for size in shape
        ):
            item_bytes = ITEM_BYTES.get(dtype)
        case _:
            raise _invalid(f"{file}: tensor {name} has a malformed header entry: {json.dumps(entry)[:120]}.")
    if item_bytes is None:
        raise Problem("checkpoint_unsupported", f"{file}: tensor {name} has the unknown dtype {dtype[:80]!r}.")
    needed = math.prod(shape) * item_bytes
    if first < 0 or last - first != needed:
        raise _invalid(
            f"{file}: tensor {name} of shape {shape} and dtype {dtype} needs {needed} bytes, "
            f"but its header gives it bytes {first} to {last}."
        )
    return StoredTensor(file, dtype, tuple(shape), begin + first, needed)


def _check_coverage(file: Path, tensors: dict[str, StoredTensor], begin: int, file_bytes: int) -> None:
    """The tensors must fill the file without gap or overlap, as the format demands."""
    end = begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if tensor.offset != end:
            raise _invalid(f"{file}: tensor {name} begins at byte {tensor.offset}, but the one before ends at {end}.")
        end += tensor.num_bytes
    if end != file_bytes:
        state = "truncated" if file_bytes < end else "followed by bytes that belong to no tensor"
        raise _invalid(f"{file} has {file_bytes} bytes, but its header describes {end}: it is {state}.")


def _invalid(message: str) -> Problem:
    return Problem("checkpoint_invalid", message)
