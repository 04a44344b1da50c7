"""Runs of several gateways in turns, until all are done, the time is over or somebody stops it.

In: how each is started, how often and within which time; out: the figures of every run that was completed, and why
there are not more.  In turns, so that whatever else the machine does meets them all.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec

from penstock.loadgen.doorbench import Figures, Pair, Sizes, Start, Upstreams, hold_open, measure, running
from penstock.ports import Clock
from penstock.wire.errors import Problem

_SLOW_START_S = 3.0
"""A gateway that takes longer is started once for all of its runs."""


class Rounds:
    """``each``: the completed runs, by gateway; ``skipped``: what ended a gateway's runs early; ``partial``: what
    ended them all, if anything did; ``signal``: the one that did.

    Only the first gateway is asked to hold thousands of streams, and once.
    """

    def __init__(
        self, starts: dict[str, Start], runs: int, sizes: Sizes, clock: Clock, tell: Callable[[str], None]
    ) -> None:
        self.each: dict[str, list[Figures]] = {name: [] for name in starts}
        self.skipped: dict[str, str] = {}
        self.partial = ""
        self.signal = 0
        self._starts = starts
        self._runs = runs
        self._sizes = sizes
        self._clock = clock
        self._tell = tell
        self._kept: dict[str, Pair] = {}

    async def take(self, upstreams: Upstreams, within_s: float) -> None:
        """Returns also when SIGINT or SIGTERM comes; a run that is cut short is not counted.

        Raises the first gateway's ``Problem``; another one's only ends its own runs.
        """
        task, loop = asyncio.ensure_future(self._take(upstreams)), asyncio.get_running_loop()

        def stop(number: int) -> None:
            self.signal, self.partial = number, f"stopped by {signal.Signals(number).name}"
            task.cancel()

        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        try:
            async with asyncio.timeout(within_s):
                await task
        except TimeoutError:
            self.partial = f"{within_s:g} s were over"
        except asyncio.CancelledError:
            if not self.signal:
                raise
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def _take(self, upstreams: Upstreams) -> None:
        first = next(iter(self._starts))
        async with AsyncExitStack() as stack:
            for run in range(self._runs):
                for name in [name for name in self._starts if name not in self.skipped]:
                    self._tell(f"{name}, run {run + 1} of {self._runs}")
                    try:
                        figures = await self._run(name, upstreams, stack)
                        if name == first and run == 0 and self._sizes.open_streams:
                            figures = await self._with_open_streams(figures, self._starts[name], upstreams)
                    except Problem as problem:
                        if name == first:
                            raise
                        self.skipped[name] = problem.message
                        self._tell(f"{name}: {problem.message}")
                    else:
                        self.each[name].append(figures)
                        self._tell(f"{name}, run {run + 1} of {self._runs}: {in_words(figures)}")

    async def _run(self, name: str, upstreams: Upstreams, stack: AsyncExitStack) -> Figures:
        if name in self._kept:
            return await measure(self._kept[name], upstreams, self._sizes, self._clock)
        async with AsyncExitStack() as own:
            pair = await own.enter_async_context(running(self._starts[name], upstreams))
            figures = await measure(pair, upstreams, self._sizes, self._clock)
            if pair.whole.start_s > _SLOW_START_S:
                self._kept[name] = pair
                stack.push_async_exit(own.pop_all())
            return figures

    async def _with_open_streams(self, figures: Figures, start: Start, upstreams: Upstreams) -> Figures:
        async with start(upstreams.slow) as door:
            opened = await hold_open(door, self._sizes, self._clock)
        return msgspec.structs.replace(figures, open_streams=opened)


def in_words(figures: Figures) -> str:
    """The figures that matter most, in one line."""
    parts = [
        f"{figures.cpu_ms_per_request:.3f} ms per request",
        f"{figures.cpu_ms_per_request_alone:.3f} alone",
        f"{figures.cpu_ms_per_chunk:.3f} ms per chunk",
        f"{figures.cpu_ms_per_chunk_alone:.3f} alone",
        f"started in {figures.start_s:.2f} s",
    ]
    if (opened := figures.open_streams) is not None:
        parts.append(f"{opened.count} streams of {opened.bytes_per_stream / 1e3:.1f} kB")
    return ", ".join(parts)
