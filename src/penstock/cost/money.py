"""What a request costs, in whole nano-dollars.

In: prices and token counts; out: integers.  Pure: the date is an argument.
A price of a millionth of a dollar per million tokens is one pico-dollar per token, so rates are exact integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from penstock.config.prices import Price

_PICO_PER_NANO = 1000
_PICO_PER_TOKEN = 1_000_000
"""A dollar per million tokens, in pico-dollars per token."""


class Rate(NamedTuple):
    """Pico-dollars per token by kind.  ``cached`` tokens are part of the prompt and cost no more than others."""

    input: int
    cached: int
    output: int


FREE = Rate(0, 0, 0)


class Tariff:
    """The prices of all models over time."""

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        self._by_model: dict[str, list[tuple[float, Rate]]] = {}
        for price in sorted(prices, key=lambda price: price.since):
            begin = datetime(price.since.year, price.since.month, price.since.day, tzinfo=UTC).timestamp()
            cached = price.input if price.cached is None else price.cached
            rate = Rate(*(round(usd * _PICO_PER_TOKEN) for usd in (price.input, cached, price.output)))
            self._by_model.setdefault(price.model, []).append((begin, rate))

    def rate(self, model: str, wall: float) -> Rate | None:
        """What counts for ``model`` at ``wall`` seconds since the epoch; ``None``: it has no price, or none yet."""
        current = None
        for begin, rate in self._by_model.get(model, ()):
            if begin > wall:
                break
            current = rate
        return current


def cost_nusd(rate: Rate, prompt: int, cached: int, output: int) -> int:
    """Nano-dollars, rounded up once over the whole request; never less for more tokens."""
    pico = (prompt - cached) * rate.input + cached * rate.cached + output * rate.output
    return -(-pico // _PICO_PER_NANO)
