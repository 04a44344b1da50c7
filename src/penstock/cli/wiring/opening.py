"""The first moments of ``penstock serve``: its listeners, its run directory, and an engine process that imports.

In: settings; out: nothing; the controller takes over.  An engine imports for longer than the controller does, and the
same for every model, so its process is there before anybody has looked what it will serve.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.wiring.commands import FIRST_ENGINE, command
from penstock.cluster.drivers.process import discard, open_log, spawn
from penstock.cluster.listen import listen
from penstock.cluster.rundir import RunDir
from penstock.config.mock import is_mock
from penstock.config.settings import ServeSettings

if TYPE_CHECKING:
    from penstock.cli.wiring.controller import Display


def serve_process(settings: ServeSettings, home: Path, display: Display) -> None:
    """Serve until asked to stop.  Binds both listeners before anything is downloaded or loaded.

    Raises ``Problem`` for whatever keeps the service from running.
    """
    # Until the event loop takes over, nothing serves: ending at once is the whole drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with (
        closing(listen(settings.host, settings.port, option="--port")) as data,
        closing(listen(settings.admin_host, settings.admin_port, option="--admin-port")) as admin,
        _run_dir(home) as run,
        _waiting(settings, run) as waiting,
    ):
        from penstock.cli.wiring.controller import control

        control(settings, home, run, data, admin, display, waiting)


@contextmanager
def _run_dir(home: Path) -> Iterator[RunDir]:
    run = RunDir.create(home, os.getpid())
    try:
        yield run
    finally:
        run.remove()


@contextmanager
def _waiting(settings: ServeSettings, run: RunDir) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The first engine's process, which waits for its settings; none for a model that is only pretended,
    nor where it cannot be started."""
    process = None if settings.source is not None and is_mock(settings.source) else _ahead(run)
    try:
        yield {} if process is None else {FIRST_ENGINE: process}
    finally:
        if process is not None:
            discard(process)


def _ahead(run: RunDir) -> subprocess.Popen[bytes] | None:
    """``None``: not now.  The driver starts it then, tells what is in the way and tries again."""
    try:
        with open_log(run.path / f"{FIRST_ENGINE}.log") as log:
            return spawn(command("engine"), log)
    except OSError:  # no memory, no process slots, no disk
        return None
