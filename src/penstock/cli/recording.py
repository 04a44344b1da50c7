"""What a gateway process does with its events, and what it knows of the usage before it.

In: events; out: samples in the folds, and a row of usage for every request that an engine worked for, also for those
that were running when a gateway was killed.
"""

from __future__ import annotations

import asyncio
import time

from penstock.config.tenants import Window
from penstock.cost.money import Rate
from penstock.events.list import Event, RequestEnded
from penstock.gateway.limits import Limits, Used
from penstock.observe.folds import Folds
from penstock.policy.account import begin_of, window_of
from penstock.policy.limit import Amounts
from penstock.store.ledger import Ledger, row_of
from penstock.store.running import Running, recover
from penstock.store.spill import Spill
from penstock.wire.errors import Problem

_RETRY_S = 1.0
_WINDOWS: tuple[Window, ...] = ("minute", "day", "month")
_MINUTE_S = 61


class Recording:
    """Callable as ``ports.Emit``; implements ``gateway.meter.Running``."""

    def __init__(self, gateway: str, folds: Folds, spill: Spill, running: Running, ledger: Ledger) -> None:
        self._gateway = gateway
        self._folds = folds
        self._spill = spill
        self._running = running
        self.count = running.count
        self.count_output = running.count_output
        self.end = running.end
        self._ledger = ledger

    def __call__(self, event: Event, /) -> None:
        self._folds(event)
        if isinstance(event, RequestEnded):
            row = row_of(event, self._gateway, time.time())
            if row is not None:
                self._spill.add(row)

    def begin(self, so_far: RequestEnded, rate: Rate) -> int | None:
        row = row_of(so_far, self._gateway, time.time())
        return None if row is None else self._running.begin(row, rate)

    async def recall(self, limits: Limits) -> None:
        """Tell the limits what the ledger knows of this minute, day and month, as soon as it can be read."""
        while True:
            try:
                # What a killed gateway left behind is in the ledger before it is asked, whoever is moving it.
                await asyncio.to_thread(self._spill.move, wait=True)
                await asyncio.to_thread(recover, self._spill.directory, self._ledger)
                for window in _WINDOWS:
                    now = limits.wall()
                    begin = now - _MINUTE_S if window == "minute" else begin_of(window, window_of(window, now))
                    limits.recall(window, await asyncio.to_thread(self._used, begin))
                return
            except Problem:
                await asyncio.sleep(_RETRY_S)

    def _used(self, since: float) -> list[Used]:
        return [
            Used(
                spent.gateway,
                spent.scope,
                spent.model,
                Amounts(requests=spent.requests, tokens=spent.tokens, usd=spent.nusd),
            )
            for spent in self._ledger.spent(since, without=self._gateway)
        ]
