"""Pooling: from hidden states to vectors, in one step or over several, and what happens to numbers that are none."""

from __future__ import annotations

import itertools
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penstock.engine.cpu.pooling import pool
from penstock.engine.sequence import Pooling, Sequence, StepPlan
from penstock.sim.clock import VirtualClock
from penstock.sim.replay import Recorder
from penstock.wire.engine import Sampling

HIDDEN = torch.randn(23, 8, generator=torch.Generator().manual_seed(1))


def sequence(num_tokens: int, pooling: Pooling | None) -> Sequence:
    recorder = Recorder(VirtualClock(), 0.0)
    return Sequence("a", [1] * num_tokens, num_tokens, 0, Sampling(seed=0), recorder, pooling=pooling)


def step(works: list[tuple[Sequence, int, int]], hidden: Tensor) -> dict[int, bytes | None]:
    """Pool one step of (sequence, start, count), whose rows lie in ``hidden`` one work after the other."""
    sequences, starts, counts = (list(column) for column in zip(*works, strict=True))
    offsets = [sum(counts[:i]) for i in range(len(counts))]
    return pool(StepPlan(1, sequences, starts, counts, [0] * len(works), 0), offsets, hidden)


def numbers(vector: bytes | None) -> Tensor:
    assert vector is not None
    return torch.tensor(struct.unpack(f"<{len(vector) // 4}f", vector))


def expected(rows: Tensor, how: str) -> Tensor:
    return {"cls": rows[0], "last": rows[-1], "mean": rows.mean(0)}[how]


@pytest.mark.parametrize("how", ["cls", "last", "mean"])
def test_each_pooling_takes_its_own_rows(how: str) -> None:
    """Two sequences side by side, and one without pooling between them: each gets its own rows' vector, unit length."""
    works = [(sequence(5, Pooling(how)), 0, 5), (sequence(7, None), 0, 7), (sequence(11, Pooling(how)), 0, 11)]  # type: ignore[arg-type]  # parametrised over the literal's values
    pooled = step(works, HIDDEN)
    assert pooled.keys() == {0, 2}
    for index, rows in ((0, HIDDEN[:5]), (2, HIDDEN[12:])):
        vector = expected(rows, how)
        torch.testing.assert_close(numbers(pooled[index]), vector / vector.norm())


@settings(deadline=None, max_examples=60)
@given(how=st.sampled_from(["cls", "last", "mean"]), cuts=st.sets(st.integers(1, 22)))
def test_chunks_give_what_one_step_gives(how: str, cuts: set[int]) -> None:
    """However a prompt is cut into steps, its vector has the bits of a single step's."""
    whole = sequence(23, Pooling(how, normalize=False))  # type: ignore[arg-type]  # drawn from the literal's values
    edges = [0, *sorted(cuts), 23]
    for start, end in itertools.pairwise(edges):
        whole.pooled = step([(whole, start, end - start)], HIDDEN[start:end])[0]
    torch.testing.assert_close(numbers(whole.pooled), expected(HIDDEN, how))
    assert whole.pooled == step([(sequence(23, whole.pooling), 0, 23)], HIDDEN)[0]


def test_fewer_dimensions_are_the_first_ones_normalised_again() -> None:
    """A shortened embedding is the beginning of the long one, at unit length."""
    vector = numbers(step([(sequence(23, Pooling("mean", num_dimensions=3)), 0, 23)], HIDDEN)[0])
    beginning = HIDDEN.mean(0)[:3]
    torch.testing.assert_close(vector, beginning / beginning.norm())


def test_bfloat16_is_pooled_in_float32() -> None:
    """The mean of bf16 rows is not rounded to bf16 again."""
    rows = HIDDEN.bfloat16()
    vector = numbers(step([(sequence(23, Pooling("mean", normalize=False)), 0, 23)], rows)[0])
    torch.testing.assert_close(vector, rows.float().mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_concern_their_own_text_alone(bad: float) -> None:
    """A text whose hidden states overflowed has no vector; its neighbour has the one it always has."""
    hidden = HIDDEN.clone()
    hidden[2, 4] = bad
    pooled = step([(sequence(5, Pooling("mean")), 0, 5), (sequence(18, Pooling("mean")), 0, 18)], hidden)
    assert pooled[0] is None
    torch.testing.assert_close(numbers(pooled[1]), HIDDEN[5:].mean(0) / HIDDEN[5:].mean(0).norm())
