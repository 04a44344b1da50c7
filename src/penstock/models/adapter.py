"""Loading a LoRA adapter for a decoder: a folder as PEFT writes it.

In: a folder, the decoder that it is to change, and the largest rank; out: an :class:`~.low_rank.Adapter`.
Every tensor is checked against the decoder before its values are read, and what is digested are the bytes that were
read: whoever changes the files meanwhile gets another digest or an error, and never another's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models.adapter_config import AdapterConfig, read_folder
from penstock.models.checkpoint import StoredTensor, read_header
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.experts import Router
from penstock.models.layout import pieces
from penstock.models.linear import Linear, StackedLinear
from penstock.models.load import own_name
from penstock.models.low_rank import RANK_MULTIPLE, Adapter, LowRank
from penstock.models.stored import FLOATS, read_whole
from penstock.wire.errors import Problem

_PREFIX = "base_model.model."
_SIDE = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Place:
    """A matrix that an adapter may change: ``rows`` outputs of a linear from ``start`` on, of ``inputs`` each."""

    linear: str
    start: int
    rows: int
    inputs: int


def places(config: ModelConfig) -> dict[str, Place]:
    """By the module's name in a checkpoint.  Experts and their routers are none."""
    with torch.device("meta"):
        decoder = Decoder(config)
    found = {}
    for piece in pieces(decoder, config.family.tensors):
        path, _, leaf = piece.parameter.rpartition(".")
        module = decoder.get_submodule(path)
        if isinstance(module, Linear) and not isinstance(module, StackedLinear | Router) and leaf == "weight":
            found[piece.name.removesuffix(".weight")] = Place(path, piece.start, *piece.shape)
    return found


def room_bytes(config: ModelConfig, rank: int) -> int:
    """Memory of one adapter of this rank that changes whatever it may."""
    values = sum(_filled(rank) * (place.rows + place.inputs) for place in places(config).values())
    return values * config.torch_dtype.itemsize


def load_adapter(directory: Path, decoder: Decoder, max_rank: int) -> Adapter:
    """The adapter in ``directory``, in the decoder's dtype.

    Raises ``source_not_found``, ``checkpoint_invalid``, ``checkpoint_unsupported`` or ``checkpoint_unsafe``, with the
    file and the field or tensor.
    """
    config, file = read_folder(directory)
    stored = _by_module(file, decoder.config)
    known = places(decoder.config)
    ranks = [_checked(config, module, sides, known, max_rank) for module, sides in stored.items()]
    _check_targets(config, stored)
    digest = blake2b(digest_size=_DIGEST_BYTES)
    changes: dict[Linear, tuple[LowRank, ...]] = {}
    for module in sorted(stored):
        place, (down, up) = known[module], stored[module]
        linear = decoder.get_submodule(place.linear)
        assert isinstance(linear, Linear)
        scale = config.scale_of(module)
        digest.update(f"\n{module} {scale!r}".encode())
        part = LowRank(
            start=place.start,
            down=_ready(_read(down, f"{module}.lora_A", digest), decoder.config.torch_dtype),
            up=_ready(_read(up, f"{module}.lora_B", digest).t() * scale, decoder.config.torch_dtype),
        )
        if not part.up.isfinite().all():
            raise _invalid(up.file, f"{module}.lora_B times its scale {scale:g} is not finite")
        changes[linear] = (*changes.get(linear, ()), part)
    return Adapter(digest.hexdigest(), max(ranks), changes)


Sides = tuple[StoredTensor, StoredTensor]
"""lora_A and lora_B."""


def _by_module(file: Path, config: ModelConfig) -> dict[str, Sides]:
    """Both sides of every module that is changed, by the module's name in a checkpoint of the decoder's own."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in read_header(file).items():
        match = _SIDE.fullmatch(name.removeprefix(_PREFIX))
        module = own_name(config)(match["module"]) if match else None
        if match is None or module is None:
            message = f"{file}: the tensor {name} is none of a linear's LoRA, which alone is served."
            raise Problem("checkpoint_unsupported", message)
        if found.setdefault(module, {}).setdefault(match["side"], tensor) is not tensor:
            raise _invalid(file, f"{module} has its lora_{match['side']} under two names")
    if not found:
        raise _invalid(file, "it holds no tensors")
    sides = {}
    for module, both in found.items():
        if len(both) != 2:
            raise _invalid(file, f"{module} has only one of lora_A and lora_B")
        sides[module] = both["A"], both["B"]
    return sides


def _checked(config: AdapterConfig, module: str, sides: Sides, known: Mapping[str, Place], max_rank: int) -> int:
    """The rank of one module whose tensors are as the decoder and the configuration have them."""
    place, (down, up), rank = known.get(module), sides, config.rank_of(module)
    if place is None:
        some = ", ".join(sorted({name.rpartition(".")[2] for name in known}))
        raise Problem(
            "checkpoint_unsupported",
            f"{down.file}: it changes {module}, which is no linear of this model that an adapter may change ({some}).",
        )
    if rank > max_rank:
        raise Problem(
            "checkpoint_unsupported",
            f"{config.file}: {module} has rank {rank}; the most is {max_rank}. Start with a larger --max-lora-rank.",
        )
    for side, tensor, shape in (("A", down, (rank, place.inputs)), ("B", up, (place.rows, rank))):
        if tensor.shape != shape:
            raise _invalid(
                tensor.file,
                f"{module}.lora_{side} has shape {list(tensor.shape)}, but this model and {config.file.name} ask for "
                f"{list(shape)}",
            )
        if tensor.dtype not in FLOATS:
            message = f"{tensor.file}: {module}.lora_{side} has dtype {tensor.dtype}; supported: {', '.join(FLOATS)}."
            raise Problem("checkpoint_unsupported", message)
    return rank


def _check_targets(config: AdapterConfig, modules: Iterable[str]) -> None:
    """A file that lacks all tensors of a target was cut, or is another adapter's."""
    for target in config.targets:
        if not any(f".{module}".endswith(f".{target}") for module in modules):
            raise _invalid(config.file, f"target_modules names {target[:80]!r}, of which there is no tensor")


def _read(stored: StoredTensor, name: str, digest: blake2b) -> Tensor:
    """The values in float32; the bytes that were read go into the digest."""
    values = read_whole(stored, name)
    digest.update(f"\n{stored.dtype} {stored.shape}\n".encode() + values.view(torch.uint8).numpy().tobytes())
    return values.float()


def _ready(values: Tensor, dtype: torch.dtype) -> Tensor:
    """[rank, N] filled up with rows of zeros."""
    return F.pad(values, (0, 0, 0, _filled(len(values)) - len(values))).to(dtype).contiguous()


def _filled(rank: int) -> int:
    return -(-rank // RANK_MULTIPLE) * RANK_MULTIPLE


def _invalid(file: Path, what: str) -> Problem:
    return Problem("checkpoint_invalid", f"{file}: {what}.")
