"""Metrics of every process of the service, on one page.

In: where to ask, and the controller's own samples; out: the page.  A process that does not answer in time is left out:
a scrape must not wait for the very process that is in trouble.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import msgspec

from penstock.cluster.drivers.probe import ask
from penstock.observe import samples
from penstock.observe.samples import Sample

Render = Callable[[Mapping[str, Sequence[Sample]]], bytes]


class Gather:
    """Asks all of ``sources`` (label -> socket, route) at once.  Samples count only when they decode."""

    def __init__(
        self,
        sources: Mapping[str, tuple[str, str]],
        own: Callable[[], Sequence[Sample]],
        render: Render,
        content_type: str,
        *,
        timeout_s: float = 1.0,
    ) -> None:
        self._sources = dict(sources)
        self._own = own
        self._render = render
        self._content_type = content_type
        self._timeout_s = timeout_s

    def know(self, label: str, socket: str, route: str) -> None:
        """Another process to ask from now on."""
        self._sources[label] = (socket, route)

    async def __call__(self) -> tuple[bytes, bytes]:
        """Content type and page."""
        sources = dict(self._sources)
        answers = await asyncio.gather(*(ask(socket, route, self._timeout_s) for socket, route in sources.values()))
        known: dict[str, Sequence[Sample]] = {"controller": self._own()}
        for label, body in zip(sources, answers, strict=True):
            if body is not None:
                try:
                    known[label] = samples.decode(body)
                except msgspec.MsgspecError:
                    continue  # shown by its absence, as a process that is silent
        return self._content_type.encode(), self._render(known)
