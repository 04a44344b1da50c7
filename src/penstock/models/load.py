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
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from penstock.models.checkpoint import StoredTensor, read_headers
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.layout import Piece, pieces
from penstock.models.numbers import QuantisedTensor, find, read_numbers
from penstock.models.ops import REFERENCE, Ops
from penstock.models.packed import Kept, Pack, Packed, put_numbers, put_rows
from penstock.models.quantised import Scheme
from penstock.models.stored import FLOATS, check_finite, read_part
from penstock.wire.errors import Problem

M = TypeVar("M", bound=nn.Module)
Progress = Callable[[float, str], None]
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
    ``scheme``: how the checkpoint has those weights that it has quantised.
    """

    architecture: str
    dtype: torch.dtype
    build: Callable[[], M]
    tensors: Mapping[str, tuple[str, ...]]
    is_spare: Callable[[str], bool]
    own_name: Callable[[str], str | None] = lambda name: name
    scheme: Scheme | None = None


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
    blueprint = Blueprint(
        architecture=config.architecture,
        dtype=config.torch_dtype,
        build=lambda: Decoder(config, ops),
        tensors=config.family.tensors,
        is_spare=lambda name: name.endswith(_DERIVED) or (config.tie_embeddings and name == "lm_head.weight"),
        own_name=own_name(config),
        scheme=config.scheme,
    )
    return load_model(directory, blueprint, progress, pack)


def own_name(config: ModelConfig) -> Callable[[str], str | None]:
    """What gives a name of a checkpoint the one that the family's table has; ``None``: it is of another part."""
    whole = config.family.whole
    return _full_name if whole is None else whole.own_name


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
        plan = list(_checked(pieces(blueprint.build(), blueprint.tensors), stored, blueprint.scheme, directory))
    used = {name for step in plan for name in step.names}
    _refuse_surplus(
        sorted(name for name in stored.keys() - used if not blueprint.is_spare(name)), blueprint.architecture, directory
    )
    model = _allocate(blueprint, plan, pack)
    _fill(model, plan, progress)
    return model


@dataclass(frozen=True)
class _Step:
    """One piece and where its values come from."""

    piece: Piece
    source: StoredTensor | QuantisedTensor

    @property
    def names(self) -> set[str]:
        return {self.piece.name} if isinstance(self.source, StoredTensor) else self.source.names


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


def _checked(
    plan: Iterable[Piece], stored: Mapping[str, StoredTensor], scheme: Scheme | None, directory: Path
) -> Iterator[_Step]:
    """One by one: a config.json that claims experts without number ends at the first that is not there."""
    for piece in plan:
        quantised = find(scheme, piece.name, piece.shape, stored)
        if quantised is not None:
            yield _Step(piece, quantised)
            continue
        tensor = stored.get(piece.name)
        if tensor is None:
            raise Problem("checkpoint_invalid", f"{directory}: the tensor {piece.name} is missing.")
        if tensor.shape != piece.shape:
            raise Problem(
                "checkpoint_invalid",
                f"{tensor.file}: tensor {piece.name} has shape {list(tensor.shape)}, "
                f"but config.json asks for {list(piece.shape)}. One of the two files is another model's.",
            )
        if tensor.dtype not in FLOATS:
            raise Problem(
                "checkpoint_unsupported",
                f"{tensor.file}: tensor {piece.name} has dtype {tensor.dtype}; supported: {', '.join(FLOATS)}. "
                "Take the release whose weights are in one of these.",
            )
        yield _Step(piece, tensor)


def _refuse_surplus(surplus: list[str], architecture: str, directory: Path) -> None:
    """A learnt tensor that the model would not use (a bias, a scale) means that it computes another model."""
    if surplus:
        more = f" and {len(surplus) - 3} more" if len(surplus) > 3 else ""
        raise Problem(
            "checkpoint_invalid",
            f"{directory}: a {architecture} with this config.json has no use for the tensors "
            f"{', '.join(surplus[:3])}{more}; without them the model would compute something else than was trained.",
        )


def _allocate(blueprint: Blueprint[M], plan: list[_Step], pack: Pack | None) -> M:
    kept = _kept(plan)
    if kept and pack is None:
        raise Problem(
            "checkpoint_unsupported",
            f"The weights are quantised ({', '.join(sorted({one.kind for one in kept.values()}))}) and are read for "
            "serving on a CPU with AVX2 in fast mode alone. Take the release that they were made from.",
        )
    try:
        return blueprint.build() if pack is None else _allocate_packed(blueprint, kept, pack)
    except RuntimeError:  # torch's only word for memory that the system refused
        needed = sum(math.prod(step.piece.shape) for step in plan) * blueprint.dtype.itemsize
        dtype = str(blueprint.dtype).removeprefix("torch.")
        raise Problem(
            "insufficient_memory", f"The weights need {needed:,} bytes in {dtype}; the system refused them."
        ) from None


def _kept(plan: list[_Step]) -> dict[str, Kept]:
    """The quantised parameters; where several pieces make up one, all have to be alike."""
    kept: dict[str, set[Kept | None]] = {}
    for step in plan:
        source = step.source
        kept.setdefault(step.piece.parameter, set()).add(source.kept if isinstance(source, QuantisedTensor) else None)
    for step in plan:
        if len(kept[step.piece.parameter]) > 1:
            raise Problem(
                "checkpoint_unsupported",
                f"{step.piece.name} and what it is multiplied together with are not quantised alike.",
            )
    return {name: one for name, found in kept.items() for one in found if one is not None}


def _allocate_packed(blueprint: Blueprint[M], kept: Mapping[str, Kept], pack: Pack) -> M:
    """The model with packed weights where ``pack`` gives some, and plain parameters elsewhere; none is filled yet."""
    with torch.device("meta"):
        model = blueprint.build()
    for name, parameter in list(model.named_parameters()):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        packed = pack(module, leaf, parameter, kept.get(name))
        if packed is None:
            assert name not in kept
            # Not empty_like: of a tensor on "meta" it imports a third of a second of torch.
            setattr(module, leaf, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
        else:
            module.take_packed(packed)  # type: ignore[operator]  # what a Pack promises of such a module
    return model


def _fill(model: nn.Module, plan: list[_Step], progress: Progress) -> None:
    """Largest first, so that the threads end together."""
    total = sum(step.source.num_bytes for step in plan)
    done = 0
    plan.sort(key=lambda step: -step.source.num_bytes)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        reads = {pool.submit(_read, _place(model, step.piece), step): step for step in plan}
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
    matrices: Sequence[Packed] = module.packed  # type: ignore[assignment]  # what _allocate_packed has put there
    return _Rows(matrices, piece.start, piece.shape)


def _read(target: Tensor | _Rows, step: _Step) -> None:
    match target, step.source:
        case _Rows(), QuantisedTensor() as source:
            put_numbers(target.matrices, target.start, read_numbers(source))
        case _Rows(), StoredTensor() as source:
            _read_packed(target, source, step.piece.name)
        case Tensor(), StoredTensor() as source:
            _read_plain(target, source, step.piece.name)


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
