from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from penstock.evaluate.bits_per_byte import bits_per_byte


@dataclass
class Text:
    num_bytes: int
    nats: float


def _nats(texts: Sequence[Text]) -> list[float]:
    return [text.nats for text in texts]


def test_a_fair_guess_among_256_bytes_is_eight_bits() -> None:
    """Uniform bytes cost 8 bits each, whatever the batch and however the text is divided."""
    texts = [Text(n, n * math.log(256)) for n in (1, 5, 100)]
    for batch in (1, 2, 64):
        assert bits_per_byte(texts, _nats, batch=batch) == pytest.approx(8.0)


def test_long_documents_weigh_more() -> None:
    """It is bits over bytes of all text together, not a mean over documents."""
    assert bits_per_byte([Text(9, 0.0), Text(1, math.log(2) * 10)], _nats) == pytest.approx(1.0)


def test_no_text_is_an_error() -> None:
    """Nothing can be said about nothing."""
    with pytest.raises(ValueError, match="no text"):
        bits_per_byte([], _nats)
