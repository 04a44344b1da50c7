"""An engine process: a checkpoint, its executor, and the engine protocol on a Unix socket.

In: settings; out: nothing; it serves.
"""

from __future__ import annotations

import asyncio

from penstock.cli.wiring.lifetime import END_S
from penstock.config.settings import EngineSettings
from penstock.observe.folds import Folds


async def engine_process(settings: EngineSettings, stop: asyncio.Event) -> None:
    """Load the checkpoint and serve the engine protocol until ``stop``."""
    from penstock.cli.boot import boot
    from penstock.engine.server.booted import Booted, Progress
    from penstock.engine.server.serve import serve_engine

    folds = Folds()

    def booted(settings: EngineSettings, progress: Progress) -> Booted:
        return boot(settings, progress, folds)

    await serve_engine(settings, boot=booted, samples=folds.samples, stop=stop, drain_timeout_s=END_S)
