"""What tokens cost: one price per model and date, as an administrator wrote them.

In: a list of prices in YAML or JSON; out: frozen values, or a ``ValueError`` that names the mistake.
A price counts from the beginning of its day in UTC until the model's next one.
"""

from __future__ import annotations

import datetime as dt
import math

import msgspec

from penstock.config.yaml_file import read_yaml


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars per million tokens of the model with this served name, from the day ``since`` on.

    ``cached``: prompt tokens from a prefix cache; ``None``: as any other.  Raises ``ValueError``.
    """

    model: str
    since: dt.date
    input: float
    output: float
    cached: float | None = None

    def __post_init__(self) -> None:
        for name, usd in (("input", self.input), ("output", self.output), ("cached", self.cached)):
            if usd is not None and not (math.isfinite(usd) and usd >= 0):
                raise ValueError(f"{name} of {self.model!r} is {usd}; a price is a finite number, 0 or more")
        if self.cached is not None and self.cached > self.input:
            raise ValueError(f"cached of {self.model!r} is above input: what is reserved would not cover it")


def read_prices(data: bytes) -> tuple[Price, ...]:
    """The prices of a file's content.  Raises ``ValueError``."""
    try:
        prices = msgspec.convert(read_yaml(data), tuple[Price, ...])
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"is no list of prices: {error}") from None
    known = set()
    for price in prices:
        if (price.model, price.since) in known:
            raise ValueError(f"has two prices of {price.model!r} since {price.since}")
        known.add((price.model, price.since))
    return prices
