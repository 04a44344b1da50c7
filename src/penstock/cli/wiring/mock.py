"""A mock engine: where its script is, and running it by itself or as a child of the controller.

In: ``mock://[SCRIPT]``, a script's file, or settings; out: settings, or a process that answers until it is stopped.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import msgspec

from penstock.asgi.server import bind_unix
from penstock.cli.wiring.clock import Monotonic
from penstock.cluster.listen import listen
from penstock.config.mock import SCHEME, MockScript, MockSettings
from penstock.config.yaml_file import read_yaml
from penstock.mock.script import checked
from penstock.wire.errors import Problem


def mock_settings_of(source: str, served_name: str, socket: str) -> MockSettings:
    """What ``mock://[SCRIPT]`` asks for.  Raises ``Problem`` ``invalid_setting``."""
    place = source.removeprefix(SCHEME)
    script = read_script(Path(place).expanduser() if place else None)
    return MockSettings(served_name=served_name, socket=socket, script=script)


def read_script(path: Path | None) -> MockScript:
    """The script in a file, the default one without.  Raises ``Problem`` ``invalid_setting``."""
    if path is None:
        return MockScript()
    try:
        return checked(msgspec.convert(read_yaml(path.read_bytes()) or {}, MockScript, strict=False))
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise Problem("invalid_setting", f"script {path}: {error}", param="--script") from None


def bind_mock(settings: MockSettings) -> list[socket.socket]:
    """The sockets that a mock engine answers on."""
    listeners = [] if settings.socket is None else [bind_unix(settings.socket)]
    if settings.port is not None:
        listeners.append(listen(settings.host, settings.port, option="--port"))
    return listeners


async def mock_process(settings: MockSettings, stop: asyncio.Event) -> None:
    """Answer the engine protocol as the script says until ``stop``."""
    await _serve(settings, bind_mock(settings), stop)


def run_mock(settings: MockSettings, listeners: list[socket.socket]) -> None:
    """A mock engine by itself, until SIGTERM or Ctrl-C."""
    import uvloop

    from penstock.cli.open_files import allow_open_files

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await _serve(settings, listeners, stop)

    allow_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def _serve(settings: MockSettings, listeners: list[socket.socket], stop: asyncio.Event) -> None:
    from penstock.mock.http.serve import serve_mock

    await serve_mock(listeners, model=settings.served_name, script=settings.script, clock=Monotonic(), stop=stop)
