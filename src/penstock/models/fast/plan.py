"""What a decoder does, as a list of jobs: found by watching it, not by knowing it.

In: a configuration; out: a :class:`Plan`, or :class:`NotPlain` with what there is no job for.
A copy of the decoder without weights runs once, on two rows, over a table of ops that writes down what is asked of it.
So models/decoder.py stays the one definition, and whatever it does that this page does not know is computed op by op.
Argued in docs/decisions/020-the-fast-step.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from penstock.models.attention import AttentionSpec
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.fast.actions import (
    Action,
    AddNorm,
    Attend,
    Embed,
    Gate,
    HeadNorm,
    NotPlain,
    Plan,
    Product,
    Rows,
    RowsNorm,
    Turn,
)
from penstock.models.fast.simd import LANES
from penstock.models.ops import REFERENCE, Ops
from penstock.models.traits import Activation


def plan_of(config: ModelConfig) -> Plan:
    """Raises :class:`NotPlain`."""
    if config.dtype != "bfloat16":
        raise NotPlain(f"the model computes in {config.dtype}")
    return _Watch(config).watched()


@dataclass(frozen=True, slots=True)
class _Stream:
    """The residual stream, to which ``change`` is still to be added."""

    change: Rows | None = None
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class _Scaled:
    rows: Rows
    factor: float


@dataclass(frozen=True, slots=True)
class _Part:
    """``width`` columns from ``first`` on of a product's result, as heads: normalised and turned, once somebody has
    asked for it."""

    of: Rows
    first: int
    width: int
    norm: HeadNorm | None = None
    turn: Turn | None = None


class _Watch(TorchFunctionMode):
    """Runs a decoder and takes notes.  What a tensor stands for is kept beside it, by identity."""

    _RESHAPING = frozenset({"view", "unflatten", "flatten"})
    _ASKING = frozenset({"__len__", "__get__", "dim", "size"})

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._config = config
        self._actions: list[Action] = []
        self._meanings: dict[int, tuple[Tensor, Any]] = {}
        self._num_rows = 0
        with torch.device("meta"):
            self._decoder = Decoder(config, self._ops())
        self._names = {id(parameter): name for name, parameter in self._decoder.named_parameters()}

    def watched(self) -> Plan:
        with self:
            hidden = self._decoder(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), self._attend)
        meaning = self._meaning(hidden)
        if not isinstance(meaning, Rows):
            self._refuse("the last hidden states", meaning)
        return Plan(self._actions, meaning)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.__name__, kwargs or {}
        out = func(*args, **kwargs)
        meanings = [self._meaning(x) for x in args if isinstance(x, Tensor)]
        if all(meaning is None for meaning in meanings) or name in self._ASKING:
            return out
        meaning = meanings[0]
        if name in self._RESHAPING:
            self._means(out, meaning)
        elif name == "split" and isinstance(meaning, Rows):
            first = 0
            for part in out:
                self._means(part, _Part(meaning, first, part.shape[-1]))
                first += part.shape[-1]
        elif name in ("mul", "__mul__"):
            self._means(out, self._times(meaning, args[1]))
        elif name in ("add", "__add__") and isinstance(meaning, _Stream) and meaning.change is None:
            change = meanings[1]
            factor = change.factor if isinstance(change, _Scaled) else 1.0
            rows = change.rows if isinstance(change, _Scaled) else change
            if not isinstance(rows, Rows):
                self._refuse(name, change)
            self._means(out, _Stream(rows, factor))
        else:
            self._refuse(name, *meanings)
        return out

    def _times(self, meaning: Any, by: Any) -> Any:
        if not isinstance(by, float) and not (isinstance(by, Tensor) and by.dim() == 0 and self._meaning(by) is None):
            return self._refuse("a product", meaning, self._meaning(by))
        factor = float(by)
        if isinstance(meaning, Turn):
            return dataclasses.replace(meaning, amplitude=meaning.amplitude * factor)
        if isinstance(meaning, Rows) and meaning.dtype == "float32":
            return _Scaled(meaning, factor)
        embedded = self._actions[-1]
        if meaning == _Stream() and isinstance(embedded, Embed):
            self._actions[-1] = dataclasses.replace(embedded, factor=embedded.factor * factor)
            return meaning
        return self._refuse("a product with a number", meaning)

    def _ops(self) -> Ops:
        return dataclasses.replace(
            REFERENCE,
            embed=self._embed,
            norm=self._norm,
            layer_norm=lambda x, *_: self._refuse("a layer norm", self._meaning(x)),
            linear=self._linear,
            rotation=self._rotation,
            rope=self._rope,
            gated_activation=self._gated,
        )

    def _embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        self._actions.append(Embed(self._names[id(table)]))
        return self._made(_Stream(), len(token_ids), table.shape[1])

    def _norm(self, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        meaning, name = self._meaning(x), self._names[id(weight)]
        if (
            isinstance(meaning, _Part)
            and meaning.norm is None
            and x.shape[-1] in (self._config.head_dim, meaning.width)
        ):
            whole = x.shape[-1] != self._config.head_dim
            return self._made(dataclasses.replace(meaning, norm=HeadNorm(name, offset, eps, whole)), *x.shape)
        if isinstance(meaning, Rows) and meaning.dtype == "float32":
            self._actions.append(RowsNorm(meaning, name, offset, eps))
            self._means(x, None)  # what it was is lost
            return self._made(meaning, *x.shape)
        if not isinstance(meaning, _Stream):
            return self._refuse("a norm", meaning)
        return self._made(self._taken(x, name, offset, eps), *x.shape)

    def _taken(self, x: Tensor, weight: str | None = None, offset: float = 0.0, eps: float = 0.0) -> Rows:
        """The stream ``x`` with its change, normalised by ``weight`` if there is one, for whoever multiplies it."""
        stream, out = self._meaning(x), self._rows(x.shape[1], "bfloat16")
        self._actions.append(AddNorm(stream.change, stream.factor, weight, offset, eps, out))
        # The stream has taken its change: whoever adds to it next adds to what is there now.
        self._means(x, _Stream())
        return out

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        meaning = self._meaning(x)
        if isinstance(meaning, _Stream):
            meaning = self._taken(x)
        if not isinstance(meaning, Rows) or meaning.dtype != "bfloat16":
            return self._refuse("a linear", meaning)
        out = self._rows(len(weight), "float32")
        bias_name = None if bias is None else self._names[id(bias)]
        self._actions.append(Product(meaning, self._names[id(weight)], bias_name, out))
        return self._made(out, len(x), len(weight))

    def _rotation(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        turn, size = Turn(frequencies), 2 * len(frequencies)
        return self._made(turn, len(positions), size), self._made(turn, len(positions), size)

    def _rope(self, q: Tensor, k: Tensor, cos: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        turn = self._meaning(cos)
        turned = []
        for x in (q, k):
            meaning = self._meaning(x)
            if not isinstance(meaning, _Part) or not isinstance(turn, Turn):
                return self._refuse("a rotation", meaning, turn)
            turned.append(self._made(dataclasses.replace(meaning, turn=turn), *x.shape))
        return turned[0], turned[1]

    def _gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        meaning = self._meaning(gate_up)
        if not isinstance(meaning, Rows):
            return self._refuse(f"{activation}", meaning)
        out = self._rows(meaning.width // 2, "bfloat16")
        self._actions.append(Gate(meaning, activation, out))
        return self._made(out, len(gate_up), meaning.width // 2)

    def _attend(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [self._meaning(x) for x in (q, k, v)]
        if not all(isinstance(part, _Part) and part.of == parts[0].of for part in parts):
            return self._refuse("attention", *parts)
        query, key, value = parts
        widths = [x.shape[1] * x.shape[2] for x in (q, k, v)]
        as_stored = [part.first for part in parts] == [0, widths[0], widths[0] + widths[1]]
        norms = query.norm, key.norm
        alike = query.turn == key.turn and len({None if norm is None else norm.eps for norm in norms}) == 1
        if not (as_stored and alike and value.norm is value.turn is None):
            return self._refuse("attention", *parts)
        out = self._rows(widths[0], "bfloat16")
        self._actions.append(Attend(spec, query.of, None if query.norm is None else norms, query.turn, out))
        return self._made(out, *q.shape)

    def _rows(self, width: int, dtype: Literal["bfloat16", "float32"]) -> Rows:
        if width % LANES:
            raise NotPlain(f"{width} is no multiple of {LANES}")
        self._num_rows += 1
        return Rows(self._num_rows, width, dtype)

    def _made(self, meaning: Any, *shape: int) -> Tensor:
        out = torch.empty(shape, dtype=torch.bfloat16)
        self._means(out, meaning)
        return out

    def _means(self, tensor: Tensor, meaning: Any) -> None:
        self._meanings[id(tensor)] = tensor, meaning

    def _meaning(self, tensor: Any) -> Any:
        kept = self._meanings.get(id(tensor))
        return None if kept is None else kept[1]

    def _refuse(self, what: str, *meanings: Any) -> NoReturn:
        kinds = ", ".join(type(meaning).__name__.strip("_").lower() for meaning in meanings)
        raise NotPlain(f"{what} of {kinds}")
