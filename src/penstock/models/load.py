"""Loading a checkpoint into a model.

In: a directory in Hugging Face layout; out: a model whose every parameter came from the files.
Everything is checked against the headers first; then bytes go from the files straight into the fused parameters,
through a few megabytes where they need conversion.  Weights to be packed go there just so: they never lie plain.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from penstock.models.checkpoint import StoredTensor, read_headers
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.layout import Piece, pieces
from penstock.models.ops import REFERENCE, Ops
from penstock.models.packed import Pack, Packed, put_rows
from penstock.wire.errors import Problem

M = TypeVar("M", bound=nn.Module)
Progress = Callable[[float, str], None]
_STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Values that are read, checked and converted at a time.
_PART = 1 << 18
_BODY = ("embed_tokens.", "layers.", "norm.")
# Surplus tensors that old exporters write and that hold nothing learnt.
_DERIVED = (".rotary_emb.inv_freq", ".self_attn.masked_bias")


@dataclass(frozen=True)
class Blueprint(Generic[M]):
    """A model as loading sees it, whatever it computes.

    ``build`` allocates it on the ambient device; ``tensors`` is its table, as :class:`~.family.Family` has it.
    ``is_spare`` tells of a tensor's name that the model does without: derived, or of a head that is not served.
    ``own_name`` gives a stored tensor the name that the table knows it by, or ``None`` if it is another model's.
    """

    architecture: str
    dtype: torch.dtype
    build: Callable[[], M]
    tensors: Mapping[str, tuple[str, ...]]
    is_spare: Callable[[str], bool]
    own_name: Callable[[str], str | None] = lambda name: name


def load_decoder(
    directory: Path,
    dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    progress: Progress | None = None,
    ops: Ops = REFERENCE,
    context_tokens: int | None = None,
    pack: Pack | None = None,
) -> Decoder:
    """The decoder in ``directory``, in ``dtype`` (``auto``: config.json's own), over the table ``ops``.

    ``context_tokens``: the longest sequence that will be computed (``None``: the longest that it was made for).
    ``pack`` says which weights are packed, and how; ``None``: none is.
    Loads and raises as :func:`load_model` does.
    """
    config = ModelConfig.from_directory(directory)
    if dtype != "auto":
        config = dataclasses.replace(config, dtype=dtype)
    config = dataclasses.replace(config, context_tokens=context_tokens)
    whole = config.family.whole
    blueprint = Blueprint(
        architecture=config.architecture,
        dtype=config.torch_dtype,
        build=lambda: Decoder(config, ops),
        tensors=config.family.tensors,
        is_spare=lambda name: name.endswith(_DERIVED) or (config.tie_embeddings and name == "lm_head.weight"),
        own_name=_full_name if whole is None else whole.own_name,
    )
    return load_model(directory, blueprint, progress, pack)


def _full_name(name: str) -> str:
    """The body of a decoder, saved without its head as embedding models are, has names without the body's prefix."""
    return f"model.{name}" if name.startswith(_BODY) else name


def load_model(
    directory: Path, blueprint: Blueprint[M], progress: Progress | None = None, pack: Pack | None = None
) -> M:
    """The model of ``blueprint`` with the weights in ``directory``.

    ``progress`` hears (fraction of bytes 0..1, words).
    Raises ``checkpoint_invalid`` (file, tensor, both shapes or sizes named), ``checkpoint_unsupported``,
    ``checkpoint_unsafe`` or ``insufficient_memory``.
    """
    progress = progress or (lambda fraction, words: None)
    stored, num_unread = _named(directory, blueprint.own_name)
    if num_unread:
        progress(0.0, f"{num_unread} tensors of parts that do not read text stay unread")
    with torch.device("meta"):
        plan = list(_checked(pieces(blueprint.build(), blueprint.tensors), stored, directory))
    surplus = (name for name in stored.keys() - {piece.name for piece in plan} if not blueprint.is_spare(name))
    _refuse_surplus(sorted(surplus), blueprint.architecture, directory)
    num_parameters = sum(math.prod(piece.shape) for piece in plan)
    model = _allocate(blueprint, num_parameters, pack)
    _fill(model, [(piece, stored[piece.name]) for piece in plan], progress)
    return model


def _named(directory: Path, own_name: Callable[[str], str | None]) -> tuple[dict[str, StoredTensor], int]:
    """The stored tensors by the table's names, and how many are of other parts."""
    stored: dict[str, StoredTensor] = {}
    num_unread = 0
    for written, tensor in read_headers(directory).items():
        name = own_name(written)
        if name is None:
            num_unread += 1
        elif name in stored:
            raise Problem("checkpoint_invalid", f"{tensor.file}: the tensor {written} is there under two names.")
        else:
            stored[name] = tensor
    return stored, num_unread


def _checked(plan: Iterable[Piece], stored: Mapping[str, StoredTensor], directory: Path) -> Iterator[Piece]:
    """One by one: a config.json that claims experts without number ends at the first that is not there."""
    for piece in plan:
        tensor = stored.get(piece.name)
        if tensor is None:
            raise Problem("checkpoint_invalid", f"{directory}: the tensor {piece.name} is missing.")
        if tensor.shape != piece.shape:
            raise Problem(
                "checkpoint_invalid",
                f"{tensor.file}: tensor {piece.name} has shape {list(tensor.shape)}, "
                f"but config.json asks for {list(piece.shape)}. One of the two files is another model's.",
            )
        if tensor.dtype not in _STORED_DTYPES:
            raise Problem(
                "checkpoint_unsupported",
                f"{tensor.file}: tensor {piece.name} has dtype {tensor.dtype}; supported: {', '.join(_STORED_DTYPES)}. "
                "Take the release whose weights are in one of these.",
            )
        yield piece


def _refuse_surplus(surplus: list[str], architecture: str, directory: Path) -> None:
    """A learnt tensor that the model would not use (a bias, a scale) means that it computes another model."""
    if surplus:
        more = f" and {len(surplus) - 3} more" if len(surplus) > 3 else ""
        raise Problem(
            "checkpoint_invalid",
            f"{directory}: a {architecture} with this config.json has no use for the tensors "
            f"{', '.join(surplus[:3])}{more}; without them the model would compute something else than was trained.",
        )


def _allocate(blueprint: Blueprint[M], num_parameters: int, pack: Pack | None) -> M:
    try:
        return blueprint.build() if pack is None else _allocate_packed(blueprint, pack)
    except RuntimeError:  # torch's only word for memory that the system refused
        needed, dtype = num_parameters * blueprint.dtype.itemsize, str(blueprint.dtype).removeprefix("torch.")
        raise Problem(
            "insufficient_memory", f"The weights need {needed:,} bytes in {dtype}; the system refused them."
        ) from None


def _allocate_packed(blueprint: Blueprint[M], pack: Pack) -> M:
    """The model with packed weights where ``pack`` gives some, and plain parameters elsewhere; none is filled yet."""
    with torch.device("meta"):
        model = blueprint.build()
    for name, parameter in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        packed = pack(module, leaf, parameter)
        if packed is None:
            setattr(module, leaf, nn.Parameter(torch.empty_like(parameter, device="cpu")))
        else:
            module.take_packed(packed)  # type: ignore[operator]  # what a Pack promises of such a module
    return model


def _fill(model: nn.Module, plan: list[tuple[Piece, StoredTensor]], progress: Progress) -> None:
    """Largest first, so that the threads end together."""
    total = sum(tensor.num_bytes for _, tensor in plan)
    done = 0
    plan.sort(key=lambda step: -step[1].num_bytes)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        reads = {pool.submit(_read, _place(model, piece), tensor, piece.name): tensor for piece, tensor in plan}
        try:
            for read in as_completed(reads):
                read.result()
                done += reads[read].num_bytes
                progress(done / total, f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB of weights")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Rows:
    """The rows of packed ``matrices`` that a piece is, from ``start`` on; each matrix has ``num_rows``."""

    matrices: Sequence[Packed]
    num_rows: int
    start: int
    shape: tuple[int, ...]


def _place(model: nn.Module, piece: Piece) -> Tensor | _Rows:
    path, _, leaf = piece.parameter.rpartition(".")
    module = model.get_submodule(path)
    parameter = getattr(module, leaf, None)
    if isinstance(parameter, Tensor):
        return piece.of(parameter.detach())
    matrices: Sequence[Packed] = module.packed  # type: ignore[assignment]  # what _allocate_packed has put there
    return _Rows(matrices, matrices[0].num_rows, piece.start, piece.shape)


def _read(target: Tensor | _Rows, stored: StoredTensor, name: str) -> None:
    if isinstance(target, Tensor):
        _read_plain(target, stored, name)
    else:
        _read_packed(target, stored, name)


def _read_packed(target: _Rows, stored: StoredTensor, name: str) -> None:
    """Tensor ``name`` into packed weights, some rows at a time."""
    total, inputs = target.shape
    num_rows = max(1, _PART // inputs)
    landing = torch.empty(min(num_rows, total), inputs, dtype=_STORED_DTYPES[stored.dtype])
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        for at in range(0, total, num_rows):
            landed = landing[: min(num_rows, total - at)]
            _read_part(file, landed, stored)
            _check_finite(landed, stored, name)
            put_rows(target.matrices, target.num_rows, target.start + at, landed)


def _read_plain(target: Tensor, stored: StoredTensor, name: str) -> None:
    """Tensor ``name`` into the contiguous ``target``, part by part, so that a conversion needs little memory."""
    dtype = _STORED_DTYPES[stored.dtype]
    flat = target.view(-1)
    landing = None if target.dtype == dtype else torch.empty(min(_PART, len(flat)), dtype=dtype)
    # Not a memory map: a file that shrinks meanwhile is a short read here and a SIGBUS there.
    with stored.file.open("rb", buffering=0) as file:
        file.seek(stored.offset)
        for part in torch.split(flat, _PART):
            landed = part if landing is None else landing[: len(part)]
            _read_part(file, landed, stored)
            _check_finite(landed, stored, name)
            if landed is not part:
                part.copy_(landed)


def _read_part(file: FileIO, landed: Tensor, stored: StoredTensor) -> None:
    view = memoryview(landed.view(torch.uint8).numpy().data).cast("B")
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])
        if not count:
            raise Problem("checkpoint_invalid", f"{stored.file} became shorter while it was read.")
        filled += count


def _check_finite(part: Tensor, stored: StoredTensor, name: str) -> None:
    """One pass over what is in the cache anyway, at the speed of memory: a NaN or an infinity is an extreme too."""
    if part.numel() and not all(math.isfinite(extreme) for extreme in part.aminmax()):
        raise Problem(
            "checkpoint_invalid",
            f"{stored.file}: tensor {name} holds values that are NaN or infinite. The checkpoint is damaged, or its "
            "training diverged: fetch it again, or take another.",
        )
