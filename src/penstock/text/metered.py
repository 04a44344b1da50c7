"""A sandboxed Jinja2 environment with a meter, which its filters and its calls both report to.

In: values as a template makes them; out: the same, accounted for, or :class:`~penstock.text.bounds.BoundError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import runtime, sandbox

from penstock.text.bounds import Meter

_FRESH_ITEM_BYTES = 64


class MeteredEnvironment(sandbox.ImmutableSandboxedEnvironment):
    """``meter`` is set anew for each rendering, by whoever renders."""

    meter: Meter

    def hold(self, value: Any) -> Any:
        """Account for an expression's value; an iterator keeps reporting while it is consumed."""
        held = self.meter.hold(value)
        if isinstance(held, Iterator) and not isinstance(held, runtime.LoopContext):
            return self._reporting(held)
        return held

    def countable(self, items: Any) -> Any:
        """An iterable that a filter is about to walk in one go."""
        if hasattr(items, "__len__"):
            self.meter.items(len(items))
        if isinstance(items, str | range):
            self.meter.charge(_FRESH_ITEM_BYTES * len(items))  # walking them makes their items
        return items

    def _reporting(self, items: Iterator[Any]) -> Iterator[Any]:
        for count, item in enumerate(items):
            self.meter.tick()
            self.meter.items(count)
            self.meter.weigh(item)
            yield item
