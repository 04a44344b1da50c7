"""Loading a checkpoint into a model.

In: a directory in Hugging Face layout; out: a model whose every parameter came from the files.
Everything is checked against the headers before memory is asked for; ``models.fill`` then reads.
Weights to be packed go there just so: they never lie plain.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from torch import nn

from penstock.models.checkpoint import StoredTensor, read_headers
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.fill import Progress, Transfer, fill
from penstock.models.layout import Piece, pieces
from penstock.models.numbers import QuantisedTensor, find
from penstock.models.ops import REFERENCE, Ops
from penstock.models.packed import Kept, Pack
from penstock.models.quantised import Scheme
from penstock.models.stored import FLOATS
from penstock.wire.errors import Problem

M = TypeVar("M", bound=nn.Module)
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
    used = {name for transfer in plan for name in transfer.names}
    _refuse_surplus(
        sorted(name for name in stored.keys() - used if not blueprint.is_spare(name)), blueprint.architecture, directory
    )
    model = _allocate(blueprint, plan, pack)
    fill(model, plan, progress)
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


def _checked(
    plan: Iterable[Piece], stored: Mapping[str, StoredTensor], scheme: Scheme | None, directory: Path
) -> Iterator[Transfer]:
    """One by one: a config.json that claims experts without number ends at the first that is not there."""
    for piece in plan:
        quantised = find(scheme, piece.name, piece.shape, stored)
        if quantised is not None:
            yield Transfer(piece, quantised)
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
        yield Transfer(piece, tensor)


def _refuse_surplus(surplus: list[str], architecture: str, directory: Path) -> None:
    """A learnt tensor that the model would not use (a bias, a scale) means that it computes another model."""
    if surplus:
        more = f" and {len(surplus) - 3} more" if len(surplus) > 3 else ""
        raise Problem(
            "checkpoint_invalid",
            f"{directory}: a {architecture} with this config.json has no use for the tensors "
            f"{', '.join(surplus[:3])}{more}; without them the model would compute something else than was trained.",
        )


def _allocate(blueprint: Blueprint[M], plan: list[Transfer], pack: Pack | None) -> M:
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
        needed = sum(math.prod(transfer.piece.shape) for transfer in plan) * blueprint.dtype.itemsize
        dtype = str(blueprint.dtype).removeprefix("torch.")
        raise Problem(
            "insufficient_memory", f"The weights need {needed:,} bytes in {dtype}; the system refused them."
        ) from None


def _kept(plan: list[Transfer]) -> dict[str, Kept]:
    """The quantised parameters; where several pieces make up one, all have to be alike."""
    kept: dict[str, set[Kept | None]] = {}
    for transfer in plan:
        one = transfer.source.kept if isinstance(transfer.source, QuantisedTensor) else None
        kept.setdefault(transfer.piece.parameter, set()).add(one)
    for transfer in plan:
        if len(kept[transfer.piece.parameter]) > 1:
            raise Problem(
                "checkpoint_unsupported",
                f"{transfer.piece.name} and what it is multiplied together with are not quantised alike.",
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
