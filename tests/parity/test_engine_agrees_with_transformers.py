"""A checkpoint of any family, through the engine on any path, is the model that transformers computes.

The reference is transformers' forward over the whole sequence.  Where our paths differ among themselves,
tests/parity/test_engine_paths_agree.py finds it; here it is the families that vary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from random_checkpoints import CASES, CONTEXT_TOKENS, VOCAB, make_checkpoint
from stepwise import BLOCK_TOKENS, Driver, decode, prefill
from torch import Tensor

from penstock.engine.sequence import Sequence
from penstock.models.decoder import Decoder
from penstock.models.fast.pack import packing
from penstock.models.load import load_decoder

FP32_BOUND = 1e-4
# Against the same weights in float32.  With experts, rounding may choose others, and the bound holds for most rows.
BF16_BOUND = 0.12
BF16_SHARE_WITH_EXPERTS = 0.5


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def models(case: str) -> tuple[Any, Decoder, Decoder, Decoder]:
    """transformers' model, and ours in float32, in bfloat16, and with the weights packed that can be here."""
    with TemporaryDirectory() as folder:
        theirs, context = make_checkpoint(case, Path(folder)), CONTEXT_TOKENS.get(case)
        ours = (load_decoder(Path(folder), dtype, context_tokens=context) for dtype in ("float32", "bfloat16"))
        packed = load_decoder(Path(folder), "bfloat16", context_tokens=context, pack=packing())
        return theirs, *ours, packed


def reference(case: str, token_ids: list[int]) -> Tensor:
    """transformers' log-probabilities [T, vocab] after each token."""
    with torch.inference_mode():
        log_probabilities: Tensor = models(case)[0](torch.tensor([token_ids])).logits[0].log_softmax(-1)
        return log_probabilities


def prompt_of(length: int, seed: int = 0) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(VOCAB) for _ in range(length)]


def driver_of(case: str) -> Driver:
    """Float32, with blocks handed out in no order."""
    order = list(range(128))
    random.Random(case).shuffle(order)
    return Driver(models(case)[1], block_order=order)


def assert_theirs(case: str, sequence: Sequence, rows: list[list[float]], first: int = 0) -> None:
    """``rows`` are the reference's from row ``first`` on, and what was sampled is what it would have taken."""
    expected = reference(case, sequence.token_ids)
    torch.testing.assert_close(torch.tensor(rows), expected[first : first + len(rows)], atol=FP32_BOUND, rtol=0)
    best = expected.topk(2).values
    decided = (best[:, 0] - best[:, 1] > 2 * FP32_BOUND).tolist()
    for row in range(sequence.num_prompt_tokens - 1, len(sequence.token_ids) - 1):
        if decided[row]:
            assert sequence.token_ids[row + 1] == int(expected[row].argmax())


@pytest.mark.parametrize("case", CASES)
def test_whole_prefill_and_decode(case: str) -> None:
    """A prompt in one chunk, then token by token past every window."""
    driver = driver_of(case)
    sequence = driver.sequence(prompt_of(21))
    assert_theirs(case, sequence, prefill(driver, sequence, [21]) + decode(driver, sequence, 14))


@pytest.mark.parametrize("case", CASES)
def test_chunked_prefill(case: str) -> None:
    """A prompt in chunks shorter and longer than blocks and windows."""
    driver = driver_of(case)
    sequence = driver.sequence(prompt_of(33))
    assert_theirs(case, sequence, prefill(driver, sequence, [3, 1, 10, 2, 17]) + decode(driver, sequence, 3))


@pytest.mark.parametrize("case", CASES)
def test_prefix_hit(case: str) -> None:
    """A sequence that begins on another's blocks, with a longer prompt of its own."""
    driver = driver_of(case)
    first = driver.sequence(prompt_of(22))
    prefill(driver, first, [22])
    second = driver.sequence([*first.token_ids[:20], *prompt_of(9, 1)])
    second.block_ids, second.num_computed = first.block_ids[:5], 5 * BLOCK_TOKENS
    assert_theirs(case, second, prefill(driver, second, [9]) + decode(driver, second, 3), first=20)


@pytest.mark.parametrize("case", CASES)
def test_preemption(case: str) -> None:
    """A sequence that loses its blocks and computes prompt and output again."""
    driver = driver_of(case)
    sequence = driver.sequence(prompt_of(18))
    rows = prefill(driver, sequence, [18]) + decode(driver, sequence, 5)
    sequence.block_ids, sequence.num_computed = [], 0
    rows += prefill(driver, sequence, [11, sequence.num_tokens - 11])[-1:] + decode(driver, sequence, 4)
    assert_theirs(case, sequence, rows)


@pytest.mark.parametrize("case", CASES)
def test_resume_elsewhere(case: str) -> None:
    """A sequence that goes on in another engine from the tokens that had left the first."""
    driver, other = driver_of(case), Driver(models(case)[1])
    sequence = driver.sequence(prompt_of(18))
    rows = prefill(driver, sequence, [18]) + decode(driver, sequence, 5)
    resumed = other.sequence(prompt_of(18), sequence.token_ids[18:])
    rows += prefill(other, resumed, [resumed.num_tokens])[-1:] + decode(other, resumed, 4)
    assert_theirs(case, resumed, rows)


@pytest.mark.parametrize("case", CASES)
def test_mixed_batch(case: str) -> None:
    """Sequences that prefill and decode beside one another."""
    driver, dice = driver_of(case), random.Random(case)
    sequences = [driver.sequence(prompt_of(length, length)) for length in (26, 19, 33, 17)]
    rows: dict[int, list[list[float]]] = {id(sequence): [] for sequence in sequences}
    for _ in range(14):
        chosen = dice.sample(sequences, dice.randint(1, 4))
        works = [(sequence, min(dice.randint(1, 12), sequence.num_remaining)) for sequence in chosen]
        for key, new in driver.step(*works).items():
            rows[key] += new
    for sequence in sequences:
        assert_theirs(case, sequence, rows[id(sequence)])


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("case", CASES)
def test_bfloat16(case: str, packed: bool) -> None:
    """In bf16, chunked prefill and decode stay within the stated bound of transformers in float32."""
    decoder = models(case)[3 if packed else 2]
    driver = Driver(decoder, dtype=torch.bfloat16)
    sequence = driver.sequence(prompt_of(33))
    rows = torch.tensor(prefill(driver, sequence, [12, 21]) + decode(driver, sequence, 12))
    errors = (rows - reference(case, sequence.token_ids)[: len(rows)]).abs().amax(-1)
    if any(layer.experts is not None for layer in decoder.config.layers):
        assert errors.quantile(BF16_SHARE_WITH_EXPERTS) < BF16_BOUND
    else:
        assert errors.max() < BF16_BOUND
