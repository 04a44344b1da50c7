"""The life of an engine process: answer on the socket, load, serve, drain, end.

In: settings and a ``boot`` function; out: nothing, until ``stop`` is set.  A load that fails leaves the process up in
phase ``failed``, so that the controller can read why.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import msgspec

from penstock.asgi.server import bind_unix, serve_app
from penstock.config.settings import EngineSettings
from penstock.engine.server.app import EngineApp
from penstock.engine.server.booted import Booted, Progress
from penstock.engine.server.runner import Runner
from penstock.engine.server.service import Service
from penstock.wire.engine import failed
from penstock.wire.errors import Problem
from penstock.wire.load import Load

_log = logging.getLogger(__name__)
_DRAIN_POLL_S = 0.05

Boot = Callable[[EngineSettings, Progress], Booted]


class _Status:
    """What LOAD answers: the boot's progress first, the running engine's figures afterwards."""

    def __init__(self, model: str) -> None:
        self.load = Load(phase="starting", model=model)
        self.service: Service | None = None
        self.draining = False

    def __call__(self) -> Load:
        if self.service is None:
            return self.load
        return self.service.load("draining" if self.draining else "ready")

    def progress(self, share: float, detail: str) -> None:
        self.load = msgspec.structs.replace(self.load, phase="loading", progress=share, detail=detail)

    def failed(self, problem: Problem) -> None:
        self.load = msgspec.structs.replace(self.load, phase="failed", detail=problem.message, problem=failed(problem))

    def drain(self) -> None:
        self.draining = True


async def serve_engine(
    settings: EngineSettings,
    *,
    boot: Boot,
    samples: Callable[[], object],
    stop: asyncio.Event,
    drain_timeout_s: float = 30.0,
) -> None:
    """Serve until ``stop`` is set and what was running has ended, at most ``drain_timeout_s`` later.

    Raises whatever ends the step loop: that is a bug, and a process without steps must not look alive.
    """
    status = _Status(settings.served_name)
    app = EngineApp(status, samples, status.drain)
    closed = asyncio.Event()
    serving = asyncio.create_task(serve_app(app, bind_unix(settings.socket), closed))
    stopping = asyncio.create_task(stop.wait())
    working = asyncio.create_task(_boot_and_run(settings, boot, status, app))
    await asyncio.wait([serving, stopping, working], return_when=asyncio.FIRST_COMPLETED)
    status.drain()
    if status.service is not None and not working.done():
        await _wait_until_idle(status.service, drain_timeout_s)
    closed.set()
    await serving
    stopping.cancel()
    if working.done():
        await working
    working.cancel()


async def _boot_and_run(settings: EngineSettings, boot: Boot, status: _Status, app: EngineApp) -> None:
    begin = time.monotonic()
    try:
        booted = await _in_daemon_thread(lambda: boot(settings, status.progress))
    except Problem as problem:
        _log.error("%s: %s", problem.code, problem.message)
        status.failed(problem)
        await asyncio.Event().wait()
        return
    runner = Runner(booted.loop, booted.executor)
    service = Service(
        booted,
        runner,
        model=settings.served_name,
        max_waiting=settings.max_waiting,
        itl_target_s=settings.itl_target_ms / 1000 if settings.itl_target_ms is not None else None,
    )
    status.service = app.service = service
    _log.info("ready after %.1f s: %s", time.monotonic() - begin, status())
    await runner.run()


async def _wait_until_idle(service: Service, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while service.num_open:
                await asyncio.sleep(_DRAIN_POLL_S)
    except TimeoutError:
        _log.warning("%d requests were still running after %.0f s of draining", service.num_open, timeout_s)


async def _in_daemon_thread(work: Callable[[], Booted]) -> Booted:
    """Like ``asyncio.to_thread``, in a thread that a stop during a long load does not have to wait for."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Booted] = loop.create_future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:
            loop.call_soon_threadsafe(result.set_exception, error)
        else:
            loop.call_soon_threadsafe(result.set_result, value)

    threading.Thread(target=run, name="boot", daemon=True).start()
    return await result
