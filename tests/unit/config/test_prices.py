"""Prices as a file has them."""

from __future__ import annotations

import pytest

from penstock.config.prices import read_prices

GOOD = b"""
- {model: m, since: 2026-01-01, input: 0.15, cached: 0.075, output: 0.6}
- {model: m, since: 2026-07-01, input: 0.1, output: 0.4}
"""


def test_a_list_of_prices_is_read() -> None:
    """YAML and JSON say the same."""
    prices = read_prices(GOOD)
    assert [(price.since.month, price.output, price.cached) for price in prices] == [(1, 0.6, 0.075), (7, 0.4, None)]
    assert read_prices(b'[{"model": "m", "since": "2026-01-01", "input": 1, "output": 2}]')[0].input == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"model: m", "list of prices"),
        (b"- {model: m, since: soon, input: 1, output: 1}", "list of prices"),
        (b"- {model: m, since: 2026-01-01, input: -1, output: 1}", "0 or more"),
        (b"- {model: m, since: 2026-01-01, input: .nan, output: 1}", "finite"),
        (b"- {model: m, since: 2026-01-01, input: 1, output: 1, cached: 2}", "above input"),
        (b"- {model: m, since: 2026-01-01, input: 1, output: 1, chached: 1}", "chached"),
        (GOOD + b"- {model: m, since: 2026-07-01, input: 1, output: 1}", "two prices"),
        (b"\xff\xfe\x00", "list of prices"),
        (b"- [unclosed", "list of prices"),
    ],
)
def test_a_mistake_is_named(text: bytes, what: str) -> None:
    """What is no price is refused with the mistake, and never counts as free."""
    with pytest.raises(ValueError, match=what):
        read_prices(text)
