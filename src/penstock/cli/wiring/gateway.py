"""A gateway process: the pipeline over HTTP, who may ask from the store, and what was used into the ledger.

In: settings; out: nothing; it serves.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import time
from contextlib import closing
from pathlib import Path

from penstock.cli.recording import Recording
from penstock.cli.wiring.answered import tokens_of
from penstock.cli.wiring.clock import Monotonic
from penstock.cli.wiring.lifetime import beside, serve_until
from penstock.config.settings import GatewaySettings
from penstock.observe.folds import Folds
from penstock.store.denials import Denials
from penstock.store.desired import DesiredStore
from penstock.store.places import open_access
from penstock.store.running import Running
from penstock.store.slices import RedisSlices
from penstock.store.spill import Spill

_YOUNG_OBJECTS = 20_000
"""So many more objects before the collector looks for cycles: every request makes some hundred, and next to none."""


async def gateway_process(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Answer on the data listener until ``stop``."""
    from penstock.gateway.http.serve import serve_gateway
    from penstock.gateway.identify import Identify

    gc.freeze()  # what was imported stays; looking through it again and again would be paid by requests
    gc.set_threshold(_YOUNG_OBJECTS)
    gc.enable()
    folds = Folds()
    opened = open_access(Path(settings.home), settings.access_url)
    denials = Denials(opened.store.audit, time.time)
    tokens, fetching = tokens_of(settings.issuers)
    identify = Identify(opened.secret, time.time, denials, open_without_keys=settings.open_without_keys, tokens=tokens)
    writer = f"{settings.gateway}-{secrets.token_hex(4)}"  # of this start: a later one recalls what this has written
    spill = Spill(opened.spill, writer, opened.ledger)
    running = Running(opened.spill, writer)
    recording = Recording(writer, folds, spill, running, opened.ledger)
    slices = RedisSlices(settings.redis, opened.secret, writer) if settings.redis else None
    with closing(opened.store), closing(DesiredStore(settings.store_path)) as store:
        try:
            async with beside(denials.write_regularly(), spill.move_regularly(), *fetching):
                serving = serve_gateway(
                    settings,
                    clock=Monotonic(),
                    states=store.watch(),
                    identify=identify,
                    access=opened.store.watch(),
                    acknowledge=store.acknowledge,
                    emit=recording,
                    samples=folds.samples,
                    running=recording,
                    recall=recording.recall,
                    stop=stop,
                    slices=slices,
                )
                await serve_until(stop, serving)
        finally:
            if slices is not None:
                await slices.close()
            await asyncio.to_thread(denials.write)
            await asyncio.to_thread(spill.close)
            running.close()
