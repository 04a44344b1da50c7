"""One model, one answer: every way the executor can compute a token gives the same distribution.

The reference is the decoder itself over the whole sequence with packed causal attention, as training runs it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwise import BLOCK_TOKENS, NUM_BLOCKS, Driver, decode, prefill

from penstock.engine.cpu.attention import TorchAttention
from penstock.engine.cpu.fast_attention import make_attention
from penstock.engine.cpu.forward import MakeAttention
from penstock.models.attention import packed_causal
from penstock.models.config import ModelConfig
from penstock.models.decoder import Decoder
from penstock.models.dtypes import DType
from penstock.models.fast import bf16
from penstock.models.rope import RopeConfig
from penstock.models.traits import LayerSpec

VOCAB = 61
ATTENTIONS = pytest.mark.parametrize("attention", [make_attention, TorchAttention], ids=["fast", "torch"])
FP32_BOUND = 1e-4
# Decode rounds scores and probabilities to bf16 at other places than prefill does; measured here: 0.08 at most.
BF16_BOUND = 0.15


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_decoder(
    *, num_kv_heads: int = 2, dtype: DType = "float32", windows: tuple[int | None, int | None] = (None, None)
) -> Decoder:
    config = ModelConfig(
        architecture="Qwen3ForCausalLM",
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=16,
        hidden_size=32,
        intermediate_size=48,
        vocab_size=VOCAB,
        max_position=512,
        norm_eps=1e-6,
        layers=tuple(LayerSpec(RopeConfig(theta=10_000.0), window) for window in windows),
        tie_embeddings=False,
        qk_norm="per_head",
        dtype=dtype,
    )
    decoder = Decoder(config)
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in decoder.parameters():
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape, generator=source) * 0.25)
    return decoder


GROUPED = make_decoder()
# A window that ends within pages, in one layer only.
WINDOWED = make_decoder(windows=(6, None))
DECODERS = st.sampled_from([GROUPED, WINDOWED])


def reference(decoder: Decoder, token_ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T, vocab] after each token, from one pass over the whole sequence."""
    with torch.inference_mode():
        positions = torch.arange(len(token_ids))
        hidden = decoder(torch.tensor(token_ids), positions, packed_causal([len(token_ids)]))
        return decoder.logits(hidden).log_softmax(-1)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(VOCAB) for _ in range(length)]


def assert_close(rows: list[list[float]], expected: torch.Tensor, bound: float = FP32_BOUND) -> None:
    assert len(rows) == len(expected)
    torch.testing.assert_close(torch.tensor(rows).view(-1, VOCAB), expected, atol=bound, rtol=0)


@ATTENTIONS
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_prefill_and_decode_equal_the_decoder(num_kv_heads: int, attention: MakeAttention) -> None:
    """A prompt in one chunk and the tokens decoded after it score as in one pass, for any grouping of heads."""
    decoder = make_decoder(num_kv_heads=num_kv_heads)
    driver = Driver(decoder, attention=attention)
    sequence = driver.sequence(prompt_of(11))
    rows = prefill(driver, sequence, [11]) + decode(driver, sequence, 10)
    assert_close(rows, reference(decoder, sequence.token_ids[:-1]))


@ATTENTIONS
@settings(deadline=None, max_examples=15)
@given(data=st.data(), length=st.integers(1, 40))
def test_any_chunking_equals_one_chunk(attention: MakeAttention, data: st.DataObject, length: int) -> None:
    """However a prompt is cut, and wherever its pages lie, distributions and greedy continuation are the same."""
    cuts = data.draw(st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set()))
    edges = [0, *sorted(cuts), length]
    order = data.draw(st.permutations(range(NUM_BLOCKS)))
    decoder = data.draw(DECODERS)
    whole, cut = Driver(decoder, attention=attention), Driver(decoder, block_order=list(order), attention=attention)
    one, many = whole.sequence(prompt_of(length)), cut.sequence(prompt_of(length))
    expected = prefill(whole, one, [length]) + decode(whole, one, 5)
    rows = prefill(cut, many, [b - a for a, b in itertools.pairwise(edges)]) + decode(cut, many, 5)
    assert_close(rows, torch.tensor(expected))
    assert many.token_ids == one.token_ids


@ATTENTIONS
@settings(deadline=None, max_examples=15)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 25), min_size=2, max_size=6),
    shuffled=st.booleans(),
)
def test_company_does_not_matter(
    attention: MakeAttention, data: st.DataObject, lengths: list[int], shuffled: bool
) -> None:
    """Sequences that prefill and decode beside one another get what each would get alone."""
    order = data.draw(st.permutations(range(NUM_BLOCKS))) if shuffled else range(NUM_BLOCKS)
    decoder = data.draw(DECODERS)
    driver = Driver(decoder, block_order=list(order), attention=attention)
    sequences = [driver.sequence(prompt_of(length, seed)) for seed, length in enumerate(lengths)]
    rows: dict[int, list[list[float]]] = {id(sequence): [] for sequence in sequences}
    for _ in range(12):
        chosen = data.draw(st.lists(st.sampled_from(sequences), min_size=1, unique_by=id))
        works = [(sequence, data.draw(st.integers(1, min(9, sequence.num_remaining)))) for sequence in chosen]
        for key, new in driver.step(*works).items():
            rows[key] += new
    for sequence in sequences:
        assert_close(rows[id(sequence)], reference(decoder, sequence.token_ids)[: len(rows[id(sequence)])])


@ATTENTIONS
@pytest.mark.parametrize("num_shared", [1, 3, 5])
def test_a_shared_prefix_is_read_in_place(num_shared: int, attention: MakeAttention) -> None:
    """A sequence that starts on another's pages computes only the rest and continues like one that computed all."""
    driver = Driver(GROUPED, attention=attention)
    prompt = prompt_of(23)
    first = driver.sequence(prompt)
    expected = prefill(driver, first, [23])
    second = driver.sequence(prompt)
    second.block_ids = first.block_ids[:num_shared]
    second.num_computed = num_shared * BLOCK_TOKENS
    rows = prefill(driver, second, [23 - second.num_computed])
    assert_close(rows, torch.tensor(expected[num_shared * BLOCK_TOKENS :]))
    for _ in range(4):
        both = driver.step((first, 1), (second, 1))
        assert_close(both[id(first)], torch.tensor(both[id(second)]))
    assert first.token_ids == second.token_ids


@ATTENTIONS
def test_a_cached_prompt_may_leave_one_token_to_prefill(attention: MakeAttention) -> None:
    """When all but the last prompt token is cached, that one token decodes like any other."""
    driver = Driver(GROUPED, attention=attention)
    first = driver.sequence(prompt_of(9))
    expected = prefill(driver, first, [9])
    second = driver.sequence(prompt_of(9))
    second.block_ids = first.block_ids[:2]
    second.num_computed = 8
    assert_close(prefill(driver, second, [1]), torch.tensor(expected[-1:]))


@ATTENTIONS
def test_preemption_and_recompute_continue_alike(attention: MakeAttention) -> None:
    """A sequence whose pages were taken and that recomputes prompt and output in one chunk goes on as before."""
    undisturbed, preempted = Driver(GROUPED, attention=attention), Driver(GROUPED, attention=attention)
    one, two = undisturbed.sequence(prompt_of(10)), preempted.sequence(prompt_of(10))
    prefill(undisturbed, one, [10])
    expected = decode(undisturbed, one, 12)
    prefill(preempted, two, [10])
    rows = decode(preempted, two, 5)
    two.block_ids, two.num_computed = [], 0
    rows += prefill(preempted, two, [two.num_tokens])[-1:]
    rows += decode(preempted, two, 6)
    assert_close(rows, torch.tensor(expected))
    assert two.token_ids == one.token_ids


@ATTENTIONS
def test_a_page_forgets_its_last_owner(attention: MakeAttention) -> None:
    """A sequence that opens a page in one step and fills it in later ones never meets the NaN that lay there."""
    driver = Driver(GROUPED, attention=attention)
    sequence = driver.sequence(prompt_of(3))
    rows = prefill(driver, sequence, [2, 1]) + decode(driver, sequence, 9)
    assert_close(rows, reference(GROUPED, sequence.token_ids[:-1]))


@ATTENTIONS
def test_a_broken_neighbour_stays_alone(attention: MakeAttention) -> None:
    """Keys that overflowed in one sequence do not reach the sequences that decode beside it."""
    driver = Driver(GROUPED, attention=attention)
    sick, well = driver.sequence(prompt_of(6, 1)), driver.sequence(prompt_of(6, 2))
    driver.step((sick, 6), (well, 6))
    for cache in driver.pages.keys:
        cache[sick.block_ids] = torch.inf
    sick.num_logprobs = None
    rows = []
    for _ in range(5):
        rows += driver.step((sick, 1), (well, 1))[id(well)]
    assert_close(rows, reference(GROUPED, well.token_ids[:-1])[6:])


@pytest.mark.parametrize("decoder", [GROUPED, WINDOWED], ids=["full", "windowed"])
@pytest.mark.parametrize("max_pages", [1, 4, 7])
def test_groups_of_copied_pages_equal_one_group(
    monkeypatch: pytest.MonkeyPatch, max_pages: int, decoder: Decoder
) -> None:
    """Decodes whose pages are copied group by group get what they get in one group, long sequences too."""
    monkeypatch.setattr("penstock.engine.cpu.attention_index._MAX_GATHERED_PAGES", max_pages)
    driver = Driver(decoder, attention=TorchAttention, block_order=list(range(0, NUM_BLOCKS, 2)))
    sequences = [driver.sequence(prompt_of(length, length)) for length in (30, 3, 9, 21, 2, 16)]
    driver.step(*((sequence, sequence.num_tokens) for sequence in sequences))
    rows = driver.step(*((sequence, 1) for sequence in sequences))
    for sequence in sequences:
        assert_close(rows[id(sequence)], reference(decoder, sequence.token_ids[:-1])[-1:])


@ATTENTIONS
def test_pages_of_others_between_ours_change_nothing(attention: MakeAttention) -> None:
    """Pages read in place may have idle or foreign ones among them, filled with anything."""
    driver = Driver(GROUPED, attention=attention)
    idle, broken, active = (driver.sequence(prompt_of(n, n)) for n in (6, 5, 20))
    first = driver.sequence(prompt_of(9))
    driver.step((first, 9), (idle, 6), (broken, 5), (active, 20))
    for cache in (*driver.pages.keys, *driver.pages.values):
        cache[broken.block_ids] = torch.nan
    rows = driver.step((first, 1), (active, 1))
    for sequence in (first, active):
        assert_close(rows[id(sequence)], reference(GROUPED, sequence.token_ids[:-1])[-1:])


@ATTENTIONS
@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_bf16_paths_agree_within_the_bound(num_kv_heads: int, attention: MakeAttention) -> None:
    """In bf16 prefill, chunks and decode differ by rounding only: log-probabilities by at most BF16_BOUND."""
    decoder = make_decoder(num_kv_heads=num_kv_heads, dtype="bfloat16")
    driver = Driver(decoder, dtype=torch.bfloat16, attention=attention, block_tokens=16)
    sequence = driver.sequence(prompt_of(21))
    rows = prefill(driver, sequence, [8, 13]) + decode(driver, sequence, 30)
    assert_close(rows, reference(decoder, sequence.token_ids[:-1]), BF16_BOUND)


@pytest.mark.skipif(not bf16.is_supported(), reason="needs a CPU with AVX2")
@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_bytes_agree_within_the_bound_on_every_path(num_kv_heads: int) -> None:
    """Keys and values in eight bits: chunks, decodes, pages of somebody else's and a recompute."""
    decoder = make_decoder(num_kv_heads=num_kv_heads, dtype="bfloat16")
    whole, cut = (Driver(decoder, dtype=torch.int8, block_tokens=16) for _ in range(2))
    first = whole.sequence(prompt_of(40))
    expected = prefill(whole, first, [40]) + decode(whole, first, 12)
    assert_close(expected[:40], reference(decoder, first.token_ids[:40]), 2 * BF16_BOUND)
    second = cut.sequence(prompt_of(40))
    second.token_ids = first.token_ids[:40]
    rows = prefill(cut, second, [8, 13, 19])
    assert_close(rows, torch.tensor(expected[:40]), BF16_BOUND)
    third = cut.sequence(prompt_of(40))
    third.block_ids, third.num_computed = second.block_ids[:2], 32
    assert_close(prefill(cut, third, [8]), torch.tensor(expected[32:40]), BF16_BOUND)
    again = whole.sequence(prompt_of(40), first.token_ids[40:50])
    assert_close(prefill(whole, again, [50])[-1:], torch.tensor(expected[49:50]), BF16_BOUND)


def test_sequences_that_begin_alike_share_one_reading() -> None:
    """In bf16, decodes on the same first pages score as those that read pages of their own."""
    decoder = make_decoder(dtype="bfloat16")
    driver, apart = (Driver(decoder, dtype=torch.bfloat16, block_tokens=16) for _ in range(2))
    prompt = prompt_of(80)
    first = driver.sequence(prompt)
    prefill(driver, first, [80])
    company = [driver.sequence([*prompt, *prompt_of(own, own)]) for own in (1, 2, 30)]
    for sequence in company:
        sequence.block_ids, sequence.num_computed = first.block_ids[:5], 80
        prefill(driver, sequence, [sequence.num_remaining])
    for _ in range(20):
        rows = driver.step((first, 1), *((sequence, 1) for sequence in company))
        for sequence in (first, *company):
            alone = apart.sequence(sequence.token_ids[:-1])
            apart._free = list(range(NUM_BLOCKS))
            expected = prefill(apart, alone, [alone.num_tokens])[-1:]
            assert_close(rows[id(sequence)], torch.tensor(expected), BF16_BOUND)
