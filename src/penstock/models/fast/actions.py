"""What a step does, as values: the actions of a plan, and the rows that go from one to the next.

In and out: names of parameters, sizes, numbers; no tensors but a turn's frequencies.
plan.py finds them by watching a decoder, binding.py makes jobs of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from penstock.models.attention import AttentionSpec
from penstock.models.traits import Activation


class NotPlain(Exception):  # no error: the reason why a decoder is computed op by op
    """The decoder does something that there is no job for."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A value of the step: [T, width], bfloat16 or float32; ``number`` says which."""

    number: int
    width: int
    dtype: Literal["bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class Turn:
    """cos and sin of a step's positions."""

    frequencies: Tensor
    amplitude: float = 1.0


@dataclass(frozen=True, slots=True)
class Embed:
    """``factor``: what the embedded tokens are multiplied by."""

    table: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class AddNorm:
    """The stream takes ``change`` times ``factor``, if any; ``out``: the stream normalised, or as it is."""

    change: Rows | None
    factor: float
    weight: str | None
    offset: float
    eps: float
    out: Rows


@dataclass(frozen=True, slots=True)
class RowsNorm:
    """``rows``, before the stream takes them, normalised in their place."""

    rows: Rows
    weight: str
    offset: float
    eps: float


@dataclass(frozen=True, slots=True)
class Product:
    x: Rows
    weight: str
    bias: str | None
    out: Rows


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """Of each head, or of all of a token's as a ``whole``."""

    weight: str
    offset: float
    eps: float
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Attend:
    """``qkv``: queries, keys and values of a layer; queries and keys go through ``norms`` and ``turn`` first."""

    spec: AttentionSpec
    qkv: Rows
    norms: tuple[HeadNorm, HeadNorm] | None
    turn: Turn | None
    out: Rows


@dataclass(frozen=True, slots=True)
class Gate:
    gate_up: Rows
    activation: Activation
    out: Rows


Action = Embed | AddNorm | RowsNorm | Product | Attend | Gate


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in order; ``hidden`` is what the last one leaves, which ``Decoder.logits`` takes."""

    actions: list[Action]
    hidden: Rows
