"""A step's jobs with their arguments, and which of these change from step to step.

In: what binding.py makes of a plan, job by job; out: places and buffers, for step.py to fill and to read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from penstock.models.decoder import Decoder
from penstock.models.fast.bf16 import ManyRows
from penstock.models.fast.jobs import ByJob
from penstock.models.fast.team import Job
from penstock.models.linear import Linear


@dataclass(frozen=True, slots=True)
class Head:
    """Places of the jobs that look up rows, multiply, and find the best token, and in which buffers these leave it.

    ``logits``: [rows, vocabulary, filled up to whole blocks] float32; ``best_tokens``: [rows].
    """

    pick: int
    product: int
    best: int
    weight: ByJob
    logits: Tensor
    best_tokens: Tensor


@dataclass(frozen=True, slots=True)
class Outside:
    """A product that no job computes where a step has many rows: of ``x`` [rows, I] float32, into ``out`` [rows, O]."""

    many: ManyRows
    x: Tensor
    bias: Tensor | None
    out: Tensor

    def compute(self, num_rows: int) -> None:
        self.out[:num_rows] = self.many.copy.multiply(self.x[:num_rows].bfloat16(), self.bias)


@dataclass(slots=True)
class Bound:
    """``jobs`` in order, their ``names`` and own ``arguments``; all else are places in that order.

    ``by_row``: jobs whose items are the step's rows.  ``products``: by number of blocks.
    ``prepares``: of each layer.  ``attends``, ``combines``: by window.
    ``inputs``: by the step's input, and in which column its address goes.
    ``adapted``: by place, the jobs of adapters and the linears that they are of; empty: for these there are no jobs.
    ``outside``: by place, the products that somebody else computes where there are many rows.
    ``hidden``: the last hidden states [num_rows, hidden].  ``head``: what makes logits of some of them, if there are
    jobs for it.  ``decoder``, ``buffers``: what the addresses point to.
    """

    decoder: Decoder
    jobs: list[Job] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    arguments: list[list[int]] = field(default_factory=list)
    by_row: list[int] = field(default_factory=list)
    products: dict[int, list[int]] = field(default_factory=dict)
    prepares: list[int] = field(default_factory=list)
    attends: dict[int | None, list[int]] = field(default_factory=dict)
    combines: dict[int | None, list[int]] = field(default_factory=dict)
    inputs: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    adapted: dict[int, Linear] = field(default_factory=dict)
    outside: dict[int, Outside] = field(default_factory=dict)
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    head: Head | None = None
    buffers: list[Tensor] = field(default_factory=list)

    def add(self, job: Job, *own: int, by_row: bool = True, shape: str = "") -> int:
        """Append a job; its place.  ``shape``: tells it from others of its kind."""
        place = len(self.jobs)
        if by_row:
            self.by_row.append(place)
        self.jobs.append(job)
        self.names.append(f"{job.name} {shape}".strip())
        self.arguments.append(list(own))
        return place

    def takes(self, name: str, place: int, column: int) -> None:
        """The job at ``place`` is told where the step's input ``name`` is."""
        self.inputs.setdefault((name, column), []).append(place)

    def keep(self, tensor: Tensor) -> int:
        """Its address, valid for as long as this is."""
        self.buffers.append(tensor)
        return tensor.data_ptr()
