"""A decoder's step as one compiled call: its plan bound to weights, pages and buffers.

In: a step's rows, their pages and what each of them attends to; out: hidden states, and the best token of each row.
Buffers are kept from step to step; what a call changes is addresses of its inputs, and counts of rows.
Argued in docs/decisions/020-the-fast-step.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penstock.models.decoder import Decoder
from penstock.models.fast import attention_jobs
from penstock.models.fast import step_jobs as jobs
from penstock.models.fast.bf16 import Bf16Weight
from penstock.models.fast.jobs import product_items
from penstock.models.fast.plan import AddNorm, Attend, Embed, Gate, HeadNorm, NotPlain, Plan, Product, Rows, Turn
from penstock.models.fast.products import ITEM_ROWS, NUM_BLOCKS, NUM_ROWS, multiply_bf16
from penstock.models.fast.program import NUM_ARGUMENTS, Program
from penstock.models.fast.team import NUM_ITEMS, Job, float_bits
from penstock.models.fast.works import Works
from penstock.models.linear import Linear

Ints = npt.NDArray[np.int64]
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_FIRST = 2
"""Where a job's own arguments begin."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """T rows: token_ids, positions, pages and slots [T] int64; ``table`` int64; what is attended to, by window."""

    token_ids: Ints
    positions: Ints
    pages: Ints
    slots: Ints
    table: Ints
    works: Mapping[int | None, Works]

    def __len__(self) -> int:
        return len(self.token_ids)


class FastStep:
    """One plan for up to ``num_rows`` rows.  Not to be called by two threads at a time."""

    def __init__(
        self, plan: Plan, decoder: Decoder, keys: Sequence[Tensor], values: Sequence[Tensor], num_rows: int
    ) -> None:
        """``keys``, ``values``: packed pages of each layer.  Raises ``NotPlain`` for weights without a job."""
        self.num_rows = num_rows
        self._decoder = decoder
        self._keys, self._values = keys, values
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._kept: list[Tensor] = []
        self._jobs: list[Job] = []
        self._arguments: list[list[int]] = []
        self._by_row: list[int] = []
        self._products: dict[int, list[int]] = {}
        self._attends: dict[int | None, list[int]] = {}
        self._combines: dict[int | None, list[int]] = {}
        self._inputs: dict[tuple[str, int], list[int]] = {}
        self._parts: dict[int | None, npt.NDArray[np.float32]] = {}
        self._turns: dict[Turn, tuple[int, int]] = {}
        self._stream = self._keep(torch.empty(num_rows, decoder.config.hidden_size))
        for action in plan.actions:
            match action:
                case Embed():
                    self._embed()
                case AddNorm():
                    self._add_norm(action)
                case Product():
                    self._product(action)
                case Attend():
                    self._attend(action)
                case Gate():
                    job = jobs.gated_silu if action.activation == "silu" else jobs.gated_gelu_tanh
                    self._add(job, self._at(action.gate_up), self._at(action.out), action.out.width)
        self._hidden = self._buffer(plan.hidden)
        arguments = np.zeros((len(self._jobs), NUM_ARGUMENTS), np.int64)
        for row, own in zip(arguments, self._arguments, strict=True):
            row[_FIRST : _FIRST + len(own)] = own
        self._program = Program(self._jobs, arguments)

    def forward(self, inputs: StepInputs, num_threads: int) -> Tensor:
        """Normalised hidden states [T, hidden] bfloat16, valid until the next call."""
        num_rows, arguments = len(inputs), self._program.arguments
        arguments[self._by_row, NUM_ITEMS] = num_rows
        for num_blocks, places in self._products.items():
            num_items, item_rows = product_items(num_rows, num_blocks)
            arguments[places, NUM_ITEMS], arguments[places, ITEM_ROWS] = num_items, item_rows
            arguments[places, NUM_ROWS] = num_rows
        for (name, column), places in self._inputs.items():
            arguments[places, column] = getattr(inputs, name).ctypes.data
        for window, places in self._attends.items():
            self._attend_to(inputs, window, places)
        self._program.run(num_threads)
        return self._hidden[:num_rows]

    def _attend_to(self, inputs: StepInputs, window: int | None, places: list[int]) -> None:
        works, arguments, config = inputs.works[window], self._program.arguments, self._decoder.config
        size = config.num_heads * (config.head_dim + 2)
        parts = self._parts.get(window)
        if parts is None or parts.size < works.num_parts * size:
            parts = self._parts[window] = np.empty(max(1, works.num_parts) * size, np.float32)
        for column, value in (
            (attention_jobs.WORKS, works.works.ctypes.data),
            (attention_jobs.NUM_WORKS, len(works.works)),
            (attention_jobs.MEMBERS, works.members.ctypes.data),
            (attention_jobs.TABLE, inputs.table.ctypes.data),
            (attention_jobs.PARTS, parts.ctypes.data),
            (attention_jobs.NUM_ROWS, len(inputs)),
        ):
            arguments[places, column] = value
        for column, value in (
            (NUM_ITEMS, len(works.splits)),
            (attention_jobs.SPLITS, works.splits.ctypes.data),
            (attention_jobs.LISTED, works.listed.ctypes.data),
            (attention_jobs.SPLIT_PARTS, parts.ctypes.data),
        ):
            arguments[self._combines[window], column] = value

    def _embed(self) -> None:
        decoder, size = self._decoder, self._decoder.config.hidden_size
        if decoder.packed and decoder.config.tie_embeddings:
            self._add(jobs.embed_packed, 0, _bf16_weight(decoder.packed).blocks.data_ptr(), self._stream, size)
        else:
            self._add(jobs.embed, 0, decoder.embedding.data_ptr(), self._stream, size)
        self._takes("token_ids", len(self._jobs) - 1, 2)

    def _add_norm(self, action: AddNorm) -> None:
        change = 0 if action.change is None else self._at(action.change)
        self._add(
            jobs.add_norm,
            self._stream,
            change,
            float_bits(action.factor),
            self._gain(action),
            self._at(action.out),
            action.out.width,
            float_bits(action.eps),
        )

    def _product(self, action: Product) -> None:
        module = self._decoder.get_submodule(action.weight.removesuffix(".weight"))
        if not isinstance(module, Linear) or not module.packed:
            raise NotPlain(f"{action.weight} is not packed")
        weight = _bf16_weight(module.packed)
        if action.x.width != weight.num_inputs or action.out.width != 16 * len(weight.blocks):
            raise NotPlain(f"{action.weight} is padded")
        own = weight.arguments(module.bias, self._at(action.x), self._at(action.out), wide=True)
        self._products.setdefault(own[NUM_BLOCKS - _FIRST], []).append(len(self._jobs))
        self._add(multiply_bf16, *own, by_row=False)

    def _attend(self, action: Attend) -> None:
        config, layer = self._decoder.config, action.spec.layer
        keys, values = self._keys[layer], self._values[layer]
        page_tokens = keys.shape[2] * keys.shape[4]
        cos, sin, half = self._turned(action.turn)
        norms = [0, 0] if action.norms is None else [self._gain(norm) for norm in action.norms]
        eps = 0.0 if action.norms is None else action.norms[0].eps
        q = self._buffer(Rows(0, config.num_heads * config.head_dim, "bfloat16"), "queries").data_ptr()
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        place = len(self._jobs)
        self._add(
            jobs.prepare, self._at(action.qkv), q, keys.data_ptr(), values.data_ptr(), 0, 0, cos, sin, *norms,
            float_bits(eps), *heads, half, page_tokens, len(keys),
        )  # fmt: skip
        self._takes("pages", place, 6)
        self._takes("slots", place, 7)
        window, cap = action.spec.window, action.spec.softcap or 0.0
        out = self._at(action.out)
        self._add(
            attention_jobs.in_bf16, 0, 0, 0, 0, 0, q, keys.data_ptr(), values.data_ptr(),
            float_bits(action.spec.scale), window or 0, float_bits(cap), out, 0, 0, *heads, page_tokens, len(keys),
            by_row=False,
        )  # fmt: skip
        self._attends.setdefault(window, []).append(place + 1)
        self._takes("positions", place + 1, attention_jobs.POSITIONS)
        self._add(attention_jobs.combine, 0, 0, 0, out, config.num_heads, config.head_dim, by_row=False)
        self._combines.setdefault(window, []).append(place + 2)

    def _turned(self, turn: Turn | None) -> tuple[int, int, int]:
        """Where cos and sin of a turn are, made by a job in front of the first layer that needs them."""
        if turn is None:
            return 0, 0, 0
        half = len(turn.frequencies)
        if turn not in self._turns:
            frequencies = self._keep(turn.frequencies.float().contiguous())
            cos, sin = (self._keep(torch.empty(self.num_rows, half)) for _ in range(2))
            self._takes("positions", len(self._jobs), 2)
            self._add(jobs.rotation, 0, frequencies, cos, sin, half, float_bits(turn.amplitude))
            self._turns[turn] = cos, sin
        return *self._turns[turn], half

    def _gain(self, norm: AddNorm | HeadNorm) -> int:
        weight = self._decoder.get_parameter(norm.weight)
        return self._keep((weight.detach().float() + norm.offset).contiguous())

    def _add(self, job: Job, *own: int, by_row: bool = True) -> None:
        if by_row:
            self._by_row.append(len(self._jobs))
        self._jobs.append(job)
        self._arguments.append(list(own))

    def _takes(self, name: str, place: int, column: int) -> None:
        """The job at ``place`` is told where this step's input ``name`` is."""
        self._inputs.setdefault((name, column), []).append(place)

    def _at(self, rows: Rows) -> int:
        return self._buffer(rows).data_ptr()

    def _buffer(self, rows: Rows, use: str = "") -> Tensor:
        """Values of one kind and width take turns in one buffer: each is read before the next of its kind is made."""
        key = use or rows.dtype, rows.width
        if key not in self._buffers:
            self._buffers[key] = torch.empty(self.num_rows, rows.width, dtype=_DTYPES[rows.dtype])
        return self._buffers[key]

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


def _bf16_weight(packed: Sequence[object]) -> Bf16Weight:
    (weight,) = packed
    if not isinstance(weight, Bf16Weight):
        raise NotPlain("a weight is not kept in bfloat16")
    return weight
