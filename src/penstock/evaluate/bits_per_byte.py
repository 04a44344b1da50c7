"""How well a model predicts text, in a unit that no tokenizer can change.

In: documents and a function that gives their negative log-likelihood; out: bits per UTF-8 byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar


class Text(Protocol):
    """What is needed of a document: ``num_bytes`` of the text that is predicted."""

    @property
    def num_bytes(self) -> int: ...


D = TypeVar("D", bound=Text)


def bits_per_byte(documents: Iterable[D], nats: Callable[[Sequence[D]], Sequence[float]], *, batch: int = 64) -> float:
    """Bits per byte over all ``documents`` together: long ones weigh more.

    ``nats`` gives, per document, the sum of -ln p over its predicted tokens.  Raises ``ValueError`` for no text at all.
    """
    kept = list(documents)
    total_bytes = sum(document.num_bytes for document in kept)
    if not total_bytes:
        raise ValueError("there is no text to measure on")
    total_nats = math.fsum(value for begin in range(0, len(kept), batch) for value in nats(kept[begin : begin + batch]))
    return total_nats / math.log(2) / total_bytes
