"""A plan bound to weights, pages and buffers: jobs with arguments, and which of these change from step to step.

In: a plan, its decoder, packed pages; out: a :class:`Bound`, or ``NotPlain`` where a weight has no job.
Rows are made what the weight that multiplies them takes (Form) by the job that makes them, once for all who read them.
Argued in docs/decisions/020-the-fast-step.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from penstock.models.decoder import Decoder
from penstock.models.fast import attention_jobs, embed_jobs, prepare_jobs
from penstock.models.fast import step_jobs as jobs
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
from penstock.models.fast.activations import quantise_job
from penstock.models.fast.best import BEST
from penstock.models.fast.bf16 import Bf16Weight
from penstock.models.fast.bound import Bound, Head, Outside
from penstock.models.fast.int4 import Int4Weight
from penstock.models.fast.int8 import Int8Weight
from penstock.models.fast.jobs import BFLOAT16, ByJob, Form, RowsAt, float_width
from penstock.models.fast.layout import BLOCK
from penstock.models.fast.low_rank_jobs import add_low_rank
from penstock.models.fast.pages import tokens_of
from penstock.models.fast.simd import LANES
from penstock.models.fast.team import float_bits
from penstock.models.linear import Linear

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_GATES = {"silu": jobs.gated_silu, "gelu": jobs.gated_gelu, "gelu_tanh": jobs.gated_gelu_tanh}


def bind(
    plan: Plan, decoder: Decoder, keys: Sequence[Tensor], values: Sequence[Tensor], num_rows: int, logits_rows: int
) -> Bound:
    """For up to ``num_rows`` rows, and logits of up to ``logits_rows`` of them.

    ``keys``, ``values``: packed pages of each layer.  Raises ``NotPlain``.
    """
    binder = _Binder(plan, decoder, keys, values, num_rows)
    binder.bound.head = binder.head(plan.hidden, min(num_rows, logits_rows))
    return binder.bound


class _Binder:
    def __init__(
        self, plan: Plan, decoder: Decoder, keys: Sequence[Tensor], values: Sequence[Tensor], num_rows: int
    ) -> None:
        self.bound = Bound(decoder, buffers=[*keys, *values])
        self._decoder, self._num_rows = decoder, num_rows
        self._keys, self._values = keys, values
        self._kept: dict[tuple[object, ...], Tensor] = {}
        self._turns: dict[Turn, tuple[int, int]] = {}
        self._weights = {action: self._weight(action) for action in plan.actions if isinstance(action, Product)}
        self._forms: dict[Rows, Form] = {plan.hidden: BFLOAT16}
        for product, weight in self._weights.items():
            if self._forms.setdefault(product.x, weight.form) != weight.form:
                raise NotPlain(f"{product.weight} takes rows as other numbers than who else takes them")
        self._stream = self.bound.keep(torch.empty(num_rows, decoder.config.hidden_size))
        for action in plan.actions:
            self._add(action)
        if any(rows % LANES for linear in self.bound.adapted.values() for rows in linear.parts):
            self.bound.adapted.clear()
        self.bound.hidden = self._buffer(plan.hidden)

    def head(self, hidden: Rows, num_rows: int) -> Head | None:
        """``None`` where the decoder does more to its logits than to multiply, or not by a packed weight."""
        bound, config = self.bound, self._decoder.config
        if config.logits_scale != 1.0 or config.logits_softcap is not None or len(self._decoder.packed) != 1:
            return None
        (weight,) = self._decoder.packed
        if not isinstance(weight, Bf16Weight | Int8Weight) or weight.row_width != hidden.width:
            return None
        form, width = weight.form, BLOCK * len(weight.blocks)
        picked = RowsAt(
            bound.keep(torch.empty(num_rows, float_width(hidden.width))),
            form.row_bytes(hidden.width),
            bound.keep(torch.empty(num_rows)),
            bound.keep(torch.empty(num_rows)),
        )
        logits, best = torch.empty(num_rows, width), torch.empty(num_rows, dtype=torch.int64)
        to = picked.values, picked.scales, picked.sums, form.num_groups, form.offset, picked.row_bytes
        pick = bound.add(jobs.pick, self._at(hidden), 0, hidden.width, *to, by_row=False)
        own = weight.arguments(None, picked, logits.data_ptr(), wide=True)
        product = bound.add(weight.job, *own, by_row=False, shape=_shape(weight))
        finds = logits.data_ptr(), 4 * width, weight.num_rows // LANES, best.data_ptr()
        return Head(pick, product, bound.add(BEST, *finds, by_row=False), weight, logits, best)

    def _add(self, action: Action) -> None:
        match action:
            case Embed(_, factor):
                self._embed(factor)
            case AddNorm(change, factor, _, _, eps, out):
                at = 0 if change is None else self._at(change)
                own = self._stream, at, float_bits(factor), self._gain(action), out.width, float_bits(eps)
                self.bound.add(jobs.add_norm, *own, *self._taken(out))
            case RowsNorm(rows, _, _, eps):
                self.bound.add(jobs.norm_rows, self._at(rows), self._gain(action), rows.width, float_bits(eps))
            case Product():
                self._product(action)
            case Attend():
                self._attend(action)
            case Gate(gate_up, activation, out):
                self.bound.add(_GATES[activation], self._at(gate_up), out.width, *self._taken(out))

    def _embed(self, factor: float) -> None:
        decoder, size, by = self._decoder, self._decoder.config.hidden_size, float_bits(factor)
        if not decoder.packed or not decoder.config.tie_embeddings:
            place = self.bound.add(embed_jobs.embed, 0, decoder.embedding.data_ptr(), self._stream, size, by)
        else:
            match decoder.packed:
                case [Bf16Weight() as table]:
                    place = self.bound.add(embed_jobs.embed_packed, 0, table.blocks.data_ptr(), self._stream, size, by)
                case [Int8Weight() as table]:
                    own = table.blocks.data_ptr(), self._stream, size, by, table.scales.data_ptr()
                    place = self.bound.add(embed_jobs.embed_bytes, 0, *own)
                case _:
                    raise NotPlain("embeddings are packed in another way")
        self.bound.takes("token_ids", place, 2)

    def _weight(self, action: Product) -> ByJob:
        module = self._decoder.get_submodule(action.weight.removesuffix(".weight"))
        if not isinstance(module, Linear) or not module.packed:
            raise NotPlain(f"{action.weight} is not packed")
        (weight,) = module.packed
        if not isinstance(weight, Bf16Weight | Int8Weight | Int4Weight):
            raise NotPlain(f"{action.weight} is packed in another way")
        if action.x.width != weight.row_width or action.out.width != BLOCK * len(weight.blocks):
            raise NotPlain(f"{action.weight} is padded")
        return weight

    def _product(self, action: Product) -> None:
        weight = self._weights[action]
        bias = None if action.bias is None else self._decoder.get_parameter(action.bias)
        own = weight.arguments(bias, self._rows_at(action.x), self._at(action.out), wide=True)
        place = self.bound.add(weight.job, *own, by_row=False, shape=_shape(weight))
        self.bound.products.setdefault(len(weight.blocks), []).append(place)
        if isinstance(weight, Bf16Weight) and weight.many is not None:
            x = self._taken_floats(action.x)[:, : action.x.width]
            self.bound.outside[place] = Outside(weight.many, x, bias, self._buffer(action.out))
        self._adapted(action)

    def _adapted(self, action: Product) -> None:
        """What adapters add to a product, where a step has any."""
        linear = self._decoder.get_submodule(action.weight.removesuffix(".weight"))
        assert isinstance(linear, Linear)
        x, form, width = self._rows_at(action.x), self._forms[action.x], action.x.width
        rows = x.values, x.row_bytes, x.scales, form.offset, width
        place = self.bound.add(add_low_rank, 0, 0, 0, *rows, self._at(action.out), action.out.width, by_row=False)
        self.bound.adapted[place] = linear

    def _attend(self, action: Attend) -> None:
        bound, config, layer = self.bound, self._decoder.config, action.spec.layer
        keys, values = self._keys[layer], self._values[layer]
        page_tokens = tokens_of(keys, config.head_dim)
        attention, combine = attention_jobs.JOBS[keys.dtype]
        cos, sin, half = self._turned(action.turn)
        norms = [0, 0] if action.norms is None else [self._gain(norm) for norm in action.norms]
        eps = 0.0 if action.norms is None else action.norms[0].eps
        wholes = [False, False] if action.norms is None else [norm.whole for norm in action.norms]
        q = self._buffer(Rows(0, config.num_heads * config.head_dim, "bfloat16"), "queries").data_ptr()
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        place = bound.add(
            prepare_jobs.prepare, self._at(action.qkv), q, keys.data_ptr(), values.data_ptr(), 0, 0, cos, sin, *norms,
            float_bits(eps), *heads, half, page_tokens, keys.dtype.itemsize, *wholes, by_row=False,
        )  # fmt: skip
        bound.prepares.append(place)
        bound.takes("pages", place, prepare_jobs.PAGES)
        bound.takes("slots", place, prepare_jobs.SLOTS)
        window, cap = action.spec.window, action.spec.softcap or 0.0
        out = self._at(action.out)
        place = bound.add(
            attention, 0, 0, 0, 0, 0, q, keys.data_ptr(), values.data_ptr(),
            float_bits(action.spec.scale), window or 0, float_bits(cap), out, 0, 0, *heads, page_tokens, len(keys),
            by_row=False,
        )  # fmt: skip
        bound.takes("positions", place, attention_jobs.POSITIONS)
        bound.attends.setdefault(window, []).append(place)
        place = bound.add(combine, 0, 0, 0, out, config.num_heads, config.head_dim, by_row=False)
        bound.combines.setdefault(window, []).append(place)
        self._convert(action.out)

    def _convert(self, rows: Rows) -> None:
        """Rows that were made in bfloat16, as the weight that multiplies them takes them."""
        form, to = self._forms[rows], self._rows_at(rows)
        if not form.num_groups:
            self.bound.add(jobs.widen_rows, self._at(rows), to.values, rows.width, to.row_bytes)
            return
        groups = form.num_groups, rows.width // LANES // form.num_groups
        own = self._at(rows), 2 * rows.width, self._num_rows, to.values, to.row_bytes, to.scales, to.sums
        self.bound.add(quantise_job, *own, *groups, form.offset, 1)

    def _turned(self, turn: Turn | None) -> tuple[int, int, int]:
        """Where cos and sin of a turn are, made by a job in front of the first layer that needs them."""
        if turn is None:
            return 0, 0, 0
        half = len(turn.frequencies)
        if turn not in self._turns:
            frequencies = self.bound.keep(turn.frequencies.float().contiguous())
            cos, sin = (self.bound.keep(torch.empty(self._num_rows, half)) for _ in range(2))
            place = self.bound.add(jobs.rotation, 0, frequencies, cos, sin, half, float_bits(turn.amplitude))
            self.bound.takes("positions", place, 2)
            self._turns[turn] = cos, sin
        return *self._turns[turn], half

    def _gain(self, norm: AddNorm | RowsNorm | HeadNorm) -> int:
        if norm.weight is None:
            return 0
        weight = self._decoder.get_parameter(norm.weight)
        return self.bound.keep((weight.detach().float() + norm.offset).contiguous())

    def _taken(self, rows: Rows) -> tuple[int, ...]:
        """What jobs that make ``rows`` are told of how they are taken."""
        form, at = self._forms[rows], self._rows_at(rows)
        steps = rows.width // LANES // form.num_groups if form.num_groups > 0 else at.row_bytes
        return at.values, at.scales, at.sums, form.num_groups, steps, form.offset

    def _rows_at(self, rows: Rows) -> RowsAt:
        key, form = rows.width, self._forms[rows]
        groups, row_bytes = form.num_groups, form.row_bytes(key)
        if groups < 0:
            return RowsAt(self._at(rows), row_bytes)
        if groups == 0:
            return RowsAt(self._taken_floats(rows).data_ptr(), row_bytes)
        return RowsAt(
            self._shared(("bytes", key), key, torch.uint8).data_ptr(),
            row_bytes,
            self._shared(("scales", key), 1, torch.float32).data_ptr(),
            self._shared(("sums", key, groups), groups, torch.float32).data_ptr(),
        )

    def _taken_floats(self, rows: Rows) -> Tensor:
        return self._shared(("taken", rows.width), float_width(rows.width), torch.float32)

    def _at(self, rows: Rows) -> int:
        return self._buffer(rows).data_ptr()

    def _buffer(self, rows: Rows, use: str = "") -> Tensor:
        return self._shared((use or rows.dtype, rows.width), rows.width, _DTYPES[rows.dtype])

    def _shared(self, key: tuple[object, ...], width: int, dtype: torch.dtype) -> Tensor:
        """Values of one kind and width take turns in one buffer: each is read before the next of its kind is made."""
        if key not in self._kept:
            self._kept[key] = torch.empty(self._num_rows, width, dtype=dtype)
            self.bound.keep(self._kept[key])
        return self._kept[key]


def _shape(weight: ByJob) -> str:
    return f"{weight.num_rows}x{weight.row_width}"
