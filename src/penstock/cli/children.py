"""Entry points of the processes that the controller starts: ``python -m penstock.cli.children KIND``.

In: settings as one JSON line on standard input, which then stays open; out: an exit code, and on a problem one
marked line on standard error.  When standard input ends the controller is gone: the child finishes within bounds.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from penstock.wire.errors import Problem

_ORPHAN_LIMIT_S = 5.0
"""What an orphan may take to finish: nobody is left to kill it."""

_Settings = TypeVar("_Settings", bound=msgspec.Struct)


def main() -> None:
    """Run the process that the command line names."""
    {"engine": engine, "gateway": gateway, "mock": mock}[sys.argv[1]]()


def engine() -> None:
    """One replica: loads a checkpoint and serves the engine protocol on a Unix socket."""
    from penstock.cli.boot import import_ahead

    # Its settings may be long in coming, and most of what loads is the same for all.
    threading.Thread(target=import_ahead, name="import", daemon=True).start()
    from penstock.cli.wiring.engine import engine_process
    from penstock.config.settings import EngineSettings

    _run(EngineSettings, engine_process)


def gateway() -> None:
    """One gateway: answers on the inherited data listener."""
    gc.disable()  # until it serves: imports leave nothing to collect, and looking for it is a tenth of the start
    from penstock.cli.wiring.gateway import gateway_process
    from penstock.config.settings import GatewaySettings

    _run(GatewaySettings, gateway_process)


def mock() -> None:
    """One replica that pretends: answers the engine protocol on a Unix socket as its script says."""
    from penstock.cli.wiring.mock import mock_process
    from penstock.config.mock import MockSettings

    _run(MockSettings, mock_process)


def _run(kind: type[_Settings], serve: Callable[[_Settings, asyncio.Event], Awaitable[None]]) -> None:
    import uvloop

    from penstock.cli.open_files import allow_open_files

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    line = sys.stdin.buffer.readline()
    if not line:  # whoever started this has no use for it
        os._exit(0)  # at once: another thread may be importing
    settings = msgspec.json.decode(line, type=kind)
    allow_open_files()

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        threading.Thread(target=_watch_lifeline, args=(loop, stop), name="lifeline", daemon=True).start()
        await serve(settings, stop)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    _ending_well(run)


def _watch_lifeline(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # os.read and not sys.stdin: a daemon thread inside a buffered read aborts the interpreter's exit.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    try:
        loop.call_soon_threadsafe(stop.set)
    except RuntimeError:
        return  # the loop is closed: the process is ending anyway
    timer = threading.Timer(_ORPHAN_LIMIT_S, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


def _ending_well(run: Callable[[], None]) -> None:
    """Run; a problem becomes the marked line that the controller looks for."""
    try:
        run()
    except Problem as problem:
        # Only now: the driver brings an HTTP client along, which a gateway does without.
        from penstock.cluster.drivers.local import EXIT_PROBLEM, PROBLEM_MARK
        from penstock.wire import engine as protocol

        print(PROBLEM_MARK + protocol.encode(protocol.failed(problem)).decode(), file=sys.stderr, flush=True)
        sys.exit(EXIT_PROBLEM)


if __name__ == "__main__":
    main()
