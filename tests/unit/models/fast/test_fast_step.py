"""The step as one compiled call: the decoder's own values, for whatever of its traits there are jobs for."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from penstock.models.attention import packed_causal
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.fast import int8, onednn, pack
from penstock.models.fast.actions import AddNorm, Attend, Embed, Gate, NotPlain, Product
from penstock.models.fast.bf16 import Bf16Weight, Copy, ManyRows
from penstock.models.fast.pages import as_kept, page_shape
from penstock.models.fast.plan import plan_of
from penstock.models.fast.profile import Profile
from penstock.models.fast.step import FastStep, StepInputs, StepOutputs
from penstock.models.fast.works import Heads, attention_works
from penstock.models.linear import Linear
from penstock.models.low_rank import Adapter, LowRank, adapting
from penstock.models.packed import Pack, put_rows
from penstock.models.rope import RopeConfig, YarnScaling
from penstock.models.traits import ExpertSpec, LayerSpec

Quantization = Literal["none", "int8", "int4"]
needs_int8 = pytest.mark.skipif(not int8.is_supported(), reason="the CPU has no AVX2")
needs_bf16 = pytest.mark.skipif(pack.packing() is None, reason="the CPU has no AVX2")
ROPE = RopeConfig(theta=10_000.0)
PAGE_TOKENS = 16
# Hidden states of one step's rows are of size 1; both ways round to bf16 at different places.
BOUND = 0.06
# The same with bytes, and of the root of the mean square: a value next to the edge between two bytes goes either way.
BYTES_BOUND, BYTES_RMS = 0.25, 0.04


def config(**changes: Any) -> ModelConfig:
    made = ModelConfig(
        architecture="LlamaForCausalLM",
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        hidden_size=96,
        intermediate_size=80,
        vocab_size=64,
        max_position=512,
        norm_eps=1e-6,
        layers=(LayerSpec(ROPE), LayerSpec(ROPE)),
        tie_embeddings=False,
        dtype="bfloat16",
    )
    return dataclasses.replace(made, **changes)


def decoder_of(config: ModelConfig) -> Decoder:
    made = Decoder(config).requires_grad_(False)
    source = torch.Generator().manual_seed(5)
    for parameter in made.parameters():
        centre = 1.0 if parameter.dim() == 1 and config.norm != "rms_plus_one" else 0.0
        parameter.copy_(centre + torch.randn(parameter.shape, generator=source) * 0.1)
    return made


def packed(decoder: Decoder, quantization: Quantization = "none") -> Decoder:
    """The same decoder with its weights as they are packed while loading."""
    copy = decoder_of(decoder.config)
    pack_weight = pack.packing(quantization)
    assert pack_weight is not None
    for module in list(copy.modules()):
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            _pack(module, leaf, parameter, pack_weight)
    return copy


def _pack(module: nn.Module, leaf: str, parameter: Tensor, pack_weight: Pack) -> None:
    weights = pack_weight(module, leaf, parameter, None)
    if weights is not None:
        put_rows(weights, 0, parameter)
        module.take_packed(weights)  # type: ignore[operator]  # it has one, since its weights are packed


class Sequences:
    """Steps over some sequences, all of whose pages are apart, by the plan of a packed decoder."""

    def __init__(
        self,
        config: ModelConfig,
        lengths: list[int],
        num_threads: int = 1,
        quantization: Quantization = "none",
        copy: Callable[[Tensor], Copy] | None = None,
        kv_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """``copy``: makes of each linear's weight what multiplies 16 rows and more."""
        self._kv_dtype = kv_dtype
        self.decoder = decoder_of(config)
        self.packed = packed(self.decoder, quantization)
        if copy is not None:
            for weight in (m.packed[0] for m in self.packed.modules() if isinstance(m, Linear)):
                assert isinstance(weight, Bf16Weight)
                weight.many = ManyRows(16, copy(weight.rows(torch.arange(weight.num_rows))))
        self.adapters: list[Adapter | None] = [None] * len(lengths)
        source = torch.Generator().manual_seed(1)
        self.tokens = [torch.randint(config.vocab_size, (n,), generator=source) for n in lengths]
        self._done = [0] * len(lengths)
        self._num_threads = num_threads
        self._each = -(-max(lengths) // PAGE_TOKENS)
        page = page_shape(kv_dtype, config.num_kv_heads, PAGE_TOKENS, config.head_dim)
        num_pages = self._each * len(lengths)
        keys, values = ([torch.empty((num_pages, *page), dtype=kv_dtype) for _ in config.layers] for _ in range(2))
        for pages in (*keys, *values):
            pages.view(torch.int8).fill_(-1)  # bytes that are all ones are NaN, as bfloat16 and as scales
        self._step = FastStep(plan_of(config), self.packed, keys, values, num_rows=sum(lengths), logits_rows=4)

    def watch(self) -> Profile:
        """From now on all steps count as decodes."""
        profile = Profile(self._step.names)
        self._step.program.count_into(profile.ticks["decode"])
        return profile

    def step(self, counts: list[int]) -> list[Tensor]:
        """So many further tokens of each: their hidden states."""
        spans, row = [], 0
        for i, count in enumerate(counts):
            spans.append((row, count, self._done[i], i * self._each))
            row += count
        positions = np.concatenate([np.arange(start, start + count) for _, count, start, _ in spans])
        begins = np.repeat([begin for *_, begin in spans], counts)
        table = np.arange(self._each * len(counts))
        config = self.decoder.config
        sampled = np.array([row + count - 1 for row, count, *_ in spans if count])[::-1].copy()
        heads = Heads(config.num_heads // config.num_kv_heads, config.num_kv_heads, 2)
        inputs = StepInputs(
            token_ids=torch.cat(
                [t[d : d + n] for t, d, n in zip(self.tokens, self._done, counts, strict=True)]
            ).numpy(),
            positions=positions,
            pages=table[begins + positions // PAGE_TOKENS],
            slots=positions % PAGE_TOKENS,
            table=table,
            sampled=sampled,
            best=True,
            adapted=[
                (adapter, np.arange(row, row + count))
                for adapter, (row, count, *_) in zip(self.adapters, spans, strict=True)
                if adapter is not None
            ],
            works={
                window: attention_works(np.array(spans), 0, table, PAGE_TOKENS, window, heads)
                for window in {layer.window for layer in config.layers}
            },
        )
        outputs = self._step.forward(inputs, self._num_threads)
        hidden = outputs.hidden.clone()
        self.check_head(outputs, sampled)
        self._done = [done + count for done, count in zip(self._done, counts, strict=True)]
        return list(torch.split(hidden, counts))

    def check_head(self, outputs: StepOutputs, sampled: npt.NDArray[np.int64]) -> None:
        """Logits bit for bit as the decoder's own of the same hidden states, and the best tokens by them."""
        assert outputs.logits is not None and outputs.best is not None
        assert torch.equal(outputs.logits, self.packed.logits(outputs.hidden[torch.from_numpy(sampled)]))
        assert torch.equal(outputs.best, outputs.logits.argmax(-1))

    def expected(self, decoder: Decoder) -> list[Tensor]:
        """What ``decoder`` computes op by op, each sequence alone and whole."""
        found = []
        for tokens, adapter in zip(self.tokens, self.adapters, strict=True):
            size, positions = [len(tokens)], torch.arange(len(tokens))
            adapt = None if adapter is None else adapting(decoder.ops, [(adapter, positions)])
            attend = packed_causal(size)
            if self._kv_dtype == torch.int8:
                attend = as_kept(attend)
            with torch.inference_mode():
                found.append(decoder(tokens, positions, attend, adapt))
        return found


# Of which every product's inputs are whole groups of four-bit numbers.
SIZES = {"intermediate_size": 160}
PLAIN: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_embeddings": True},
    "query and key norms": {"qk_norm": "per_head"},
    "biases": {"qkv_bias": True, "mlp_bias": True, "output_bias": True},
    "gelu by tanh": {"activation": "gelu_tanh"},
    "gelu": {"activation": "gelu"},
    "scaled embeddings": {"embedding_scale": 12.0},
    "scaled and tied": {"embedding_scale": 12.0, "tie_embeddings": True},
    "norms behind": {"post_norm": True},
    "norms behind, scaled": {"post_norm": True, "norm": "rms_plus_one", "residual_scale": 0.5},
    "only norms behind": {"pre_norm": False, "post_norm": True},
    "norms of all heads at once": {"qk_norm": "whole"},
    "norms of all heads, one of keys": {"qk_norm": "whole", "num_kv_heads": 1},
    "norms of each head, one of keys": {"qk_norm": "per_head", "num_kv_heads": 1},
    "norms plus one": {"norm": "rms_plus_one"},
    "scaled residuals": {"residual_scale": 0.5},
    "scaled attention": {"attention_scale": 0.3, "attention_softcap": 2.0},
    "windows": {"layers": (LayerSpec(ROPE, window=5), LayerSpec(ROPE))},
    "two ropes and none": {"layers": (LayerSpec(ROPE), LayerSpec(RopeConfig(theta=100.0)), LayerSpec(None))},
    "a part turns": {"layers": (LayerSpec(RopeConfig(theta=10_000.0, share=0.5)),) * 2},
    "an amplitude": {"layers": (LayerSpec(RopeConfig(10_000.0, YarnScaling(4.0, 128, amplitude=1.2))),) * 2},
    "as many keys as queries": {"num_kv_heads": 4, "head_dim": 48},
}
NOT_PLAIN: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "layer norms": {"norm": "layer"},
    "experts": {"layers": (LayerSpec(ROPE, experts=ExpertSpec(4, 2, 32, renormalise=True)),)},
    "an odd size": {"hidden_size": 100},
}


@needs_bf16
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("changes", PLAIN.values(), ids=PLAIN)
def test_a_planned_step_computes_what_the_decoder_does(changes: dict[str, Any], num_threads: int) -> None:
    """Prompts, chunks and decodes beside one another, in one call each, within the stated bound of the op by op way."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    lengths = [40, 7, 21]
    sequences = Sequences(config(**changes), lengths, num_threads)
    steps = [sequences.step(counts) for counts in ([33, 5, 1], [1, 1, 17], [1, 1, 1], [5, 0, 2])]
    torch.set_num_threads(before)
    for i, expected in enumerate(sequences.expected(sequences.decoder)):
        got = torch.cat([step[i] for step in steps])
        torch.testing.assert_close(got.float(), expected.float(), atol=BOUND, rtol=0)


@needs_bf16
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    "traits",
    [
        "llama",
        "query and key norms",
        "norms of all heads, one of keys",
        "scaled attention",
        "windows",
        "a part turns",
        "as many keys as queries",
    ],
)
def test_a_planned_step_keeps_keys_and_values_in_bytes(traits: str, num_threads: int) -> None:
    """As the decoder does with keys and values rounded so; pages are filled by chunks and by single tokens.

    The decoder rounds to bfloat16 first, so that a number may be off by one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    sequences = Sequences(config(**PLAIN[traits]), [40, 7, 21], num_threads, kv_dtype=torch.int8)
    steps = [sequences.step(counts) for counts in ([33, 5, 1], [1, 1, 17], [1, 1, 1], [5, 0, 2])]
    torch.set_num_threads(before)
    for i, expected in enumerate(sequences.expected(sequences.decoder)):
        got = torch.cat([step[i] for step in steps])
        torch.testing.assert_close(got.float(), expected.float(), atol=BYTES_BOUND, rtol=0)


@needs_int8
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize(
    "traits",
    [
        "llama",
        "tied",
        "query and key norms",
        "biases",
        "gelu by tanh",
        "gelu",
        "windows",
        "scaled and tied",
        "norms behind",
        "only norms behind",
        "norms of all heads at once",
    ],
)
def test_a_planned_step_multiplies_by_quantised_weights(
    traits: str, quantization: Quantization, num_threads: int
) -> None:
    """As the decoder does op by op with the same weights; rows are rounded to bytes at one place less."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    sequences = Sequences(config(**SIZES, **PLAIN[traits]), [40, 7, 21], num_threads, quantization)
    steps = [sequences.step(counts) for counts in ([33, 5, 1], [1, 1, 17], [1, 1, 1], [5, 0, 2])]
    torch.set_num_threads(before)
    for i, expected in enumerate(sequences.expected(sequences.packed)):
        got = torch.cat([step[i] for step in steps])
        torch.testing.assert_close(got.float(), expected.float(), atol=BYTES_BOUND, rtol=0)
        assert (got.float() - expected.float()).square().mean().sqrt() < BYTES_RMS


class TorchCopy:
    """A weight as torch multiplies by it; counts how often."""

    num_bytes = 0
    times = 0

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        TorchCopy.times += 1
        return torch.nn.functional.linear(x, self._weight, bias)


@needs_bf16
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("copy", [TorchCopy, *([onednn.Reordered] if onednn.is_supported() else [])])
@pytest.mark.parametrize("traits", ["llama", "biases"])
def test_somebody_else_may_multiply_many_rows(traits: str, copy: Callable[[Tensor], Copy], num_threads: int) -> None:
    """The compiled call stops before each product of many rows and goes on behind it; two of four steps have many."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    sequences, alone = (Sequences(config(**PLAIN[traits]), [40, 7, 21], num_threads, copy=c) for c in (copy, None))
    TorchCopy.times = 0
    profile = sequences.watch()
    steps = [sequences.step(counts) for counts in ([33, 5, 1], [1, 1, 17], [1, 1, 1], [5, 0, 2])]
    own = [alone.step(counts) for counts in ([33, 5, 1], [1, 1, 17])]
    torch.set_num_threads(before)
    assert not torch.equal(steps[0][0], own[0][0])
    assert TorchCopy.times == (2 * 4 * 2 if copy is TorchCopy else 0)
    assert set(profile.shares()) >= {"multiply bf16 96x128", "attention bf16"}
    for i, expected in enumerate(sequences.expected(sequences.decoder)):
        got = torch.cat([step[i] for step in steps])
        torch.testing.assert_close(got.float(), expected.float(), atol=BOUND, rtol=0)


def adapter_of(decoder: Decoder, rank: int, of: Callable[[int], bool] = lambda index: True) -> Adapter:
    """Of those linears whose number in order fits, and there of every other matrix first."""
    source, changes = torch.Generator().manual_seed(rank), {}
    for index, linear in enumerate(m for m in decoder.modules() if isinstance(m, Linear)):
        if of(index):
            starts = [sum(linear.parts[:number]) for number in range(len(linear.parts))]
            changes[linear] = tuple(
                LowRank(
                    start,
                    (torch.randn(rank, linear.packed[0].row_width, generator=source) * 0.07).bfloat16(),  # type: ignore[attr-defined]  # as packed here
                    (torch.randn(rank, rows, generator=source) * 0.07).bfloat16(),
                )
                for start, rows in reversed(list(zip(starts, linear.parts, strict=True))[index % 2 :])
            )
    return Adapter(f"r{rank}", rank, changes)


@needs_bf16
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    "quantization", ["none", pytest.param("int8", marks=needs_int8), pytest.param("int4", marks=needs_int8)]
)
def test_a_planned_step_adds_what_adapters_do(quantization: Quantization, num_threads: int) -> None:
    """Rows of two adapters and of none in one call: each as op by op with its own, and far from without one."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    sequences = Sequences(config(**SIZES), [40, 7, 21], num_threads, quantization)
    every, some = adapter_of(sequences.packed, 16), adapter_of(sequences.packed, 48, lambda index: index % 3 == 1)
    plain = sequences.expected(sequences.packed)
    sequences.adapters = [every, None, some]
    steps = [sequences.step(counts) for counts in ([33, 5, 1], [1, 1, 17], [1, 1, 1], [5, 0, 2])]
    torch.set_num_threads(before)
    for i, expected in enumerate(sequences.expected(sequences.packed)):
        got = torch.cat([step[i] for step in steps])
        bound = BOUND if quantization == "none" else BYTES_BOUND
        torch.testing.assert_close(got.float(), expected.float(), atol=bound, rtol=0)
        assert ((expected - plain[i]).abs().max() > 4 * bound) == (sequences.adapters[i] is not None)


@needs_bf16
def test_an_adapter_that_is_gone_is_forgotten() -> None:
    """A step keeps addresses of an adapter only while somebody keeps the adapter."""
    sequences = Sequences(config(), [8])
    sequences.adapters = [adapter_of(sequences.packed, 16)]
    sequences.step([4])
    gone = weakref.ref(sequences.adapters[0])
    sequences.adapters = [None]
    gc.collect()
    assert gone() is None
    sequences.step([1])


@needs_bf16
def test_matrices_of_an_odd_size_have_no_job_for_adapters() -> None:
    """Queries and keys that share a register are changed op by op."""
    assert Sequences(config(), [4])._step.adapts
    odd = config(num_heads=2, num_kv_heads=1, head_dim=24, hidden_size=96)
    assert not Sequences(odd, [4])._step.adapts


@needs_int8
def test_rows_in_two_forms_have_no_step() -> None:
    """What one weight takes as bytes and another in bfloat16 is computed op by op."""
    made = packed(decoder_of(config(**SIZES)), "int8")
    weight = Bf16Weight(128, 96)
    made.layers[0].qkv.packed = [weight]  # type: ignore[union-attr]  # a layer's first product
    plan = plan_of(config(**SIZES))
    first, second = (action for action in plan.actions[:6] if isinstance(action, Product))
    shared = dataclasses.replace(second, x=first.x)
    actions = [shared if action == second else action for action in plan.actions]
    pages = [torch.empty(1, 2, 512, dtype=torch.bfloat16)] * 2
    with pytest.raises(NotPlain):
        FastStep(dataclasses.replace(plan, actions=actions), made, pages, pages, 16, 16)


@pytest.mark.parametrize("changes", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_there_is_no_job_for_is_said_and_not_guessed(changes: dict[str, Any]) -> None:
    """A decoder that does anything else has no plan, so it is computed op by op."""
    with pytest.raises(NotPlain):
        plan_of(config(**changes))


def test_a_plan_is_what_the_decoder_was_seen_to_do() -> None:
    """One action per norm, product, attention and gate, in the decoder's order; nothing else."""
    kinds = [type(action) for action in plan_of(config()).actions]
    layer = [AddNorm, Product, Attend, Product, AddNorm, Product, Gate, Product]
    assert kinds == [Embed, *layer, *layer, AddNorm]


@needs_bf16
def test_a_weight_that_is_not_packed_has_no_step() -> None:
    """Plain weights are multiplied op by op."""
    with pytest.raises(NotPlain, match="not packed"):
        FastStep(
            plan_of(config()), decoder_of(config()), [torch.empty(1, 2, 512, dtype=torch.bfloat16)] * 2, [], 16, 16
        )


@needs_int8
def test_a_watched_step_says_where_its_time_goes() -> None:
    """Shares of all jobs by what they compute, products by their shapes; what was before nobody knows."""
    sequences = Sequences(config(), [9], num_threads=2, quantization="int8")
    profile = sequences.watch()
    sequences.step([8])
    shares = profile.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    # Queries, keys and values; what attention leaves; gate and up; down; the head.
    for shape in ("256x96", "96x128", "160x96", "96x80", "64x96"):
        assert shares[f"multiply int8 {shape}"] > 0
    assert shares["attention bf16"] > 0
    assert sum(sequences.watch().shares().values()) == 0


def test_steps_of_two_kinds_are_told_apart() -> None:
    """Each kind's shares are of its own time, all shares of both; a kind that there was none of has none."""
    profile = Profile(["norm", "multiply", "norm"])
    profile.ticks["prefill"][:] = 1, 8, 1
    assert profile.shares("prefill") == {"multiply": 0.8, "norm": 0.2}
    assert not any(profile.shares("decode").values())
    profile.ticks["decode"][:] = 20, 10, 0
    assert profile.shares("decode") == {"norm": 20 / 30, "multiply": 10 / 30}
    assert profile.shares() == {"norm": 22 / 40, "multiply": 18 / 40}
