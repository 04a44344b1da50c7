"""Perplexity and divergence, against sums done by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from penstock.evaluate.divergence import Distributions, divergence


def always(*shares: float, rows_at_a_time: int = 2) -> Distributions:
    """A model that gives every token the same distribution."""

    def of(token_ids: Sequence[int]) -> Iterator[Tensor]:
        rows = torch.tensor(shares).log().expand(len(token_ids) - 1, -1)
        yield from rows.split(rows_at_a_time)

    return of


def test_figures_of_two_distributions() -> None:
    """Perplexity is of the text, divergence of the whole distributions, whatever the text is."""
    found = divergence([[0, 0, 1, 1], [1, 0]], always(0.5, 0.25, 0.25), always(0.25, 0.5, 0.25))
    assert found.num_tokens == 4
    assert found.reference_perplexity == pytest.approx(math.exp((2 * math.log(2) + 2 * math.log(4)) / 4))
    assert found.perplexity == pytest.approx(math.exp((2 * math.log(4) + 2 * math.log(2)) / 4))
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert found.kl == pytest.approx(expected) and found.kl_p99 == pytest.approx(expected)
    assert found.same_best == 0.0


def test_a_model_does_not_diverge_from_itself() -> None:
    """Nor does a token that both exclude count for anything."""
    found = divergence([[0, 1, 1]], always(0.5, 0.5, 0.0), always(0.5, 0.5, 0.0))
    assert (found.kl, found.same_best) == (0.0, 1.0)
    assert found.perplexity == pytest.approx(2.0)


def test_progress_counts_tokens() -> None:
    """As they are done, over all windows."""
    heard: list[int] = []
    divergence([[0, 0, 0, 0], [0, 0]], always(1.0), always(1.0), heard.append)
    assert heard == [2, 3, 4]


def test_nothing_to_predict_is_an_error() -> None:
    with pytest.raises(ValueError, match="no text"):
        divergence([], always(1.0), always(1.0))
