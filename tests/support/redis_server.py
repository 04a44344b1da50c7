"""The system's own redis-server, without persistence, and a proxy in front of it that can be slow or cut.

In: a directory; out: a server that is started, killed and started again, with nothing in its memory, on one port.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

REDIS = shutil.which("redis-server")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """``arguments``: more of its settings."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.port = free_port()
        self.directory = directory
        self.arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        assert REDIS is not None
        command = [REDIS, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self.directory), *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 20
        while True:
            assert self.process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.listens_on), 1):
                return
            time.sleep(0.01)

    @property
    def listens_on(self) -> int:
        if "--tls-port" in self.arguments:
            return int(self.arguments[self.arguments.index("--tls-port") + 1])
        return self.port

    def kill(self) -> None:
        """As by SIGKILL: all that it knew is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def redis_server(directory: Path, *arguments: str) -> Iterator[RedisServer]:
    if REDIS is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(directory, *arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class SlowProxy:
    """TCP between a gateway and Redis.  ``delay_s``: each way; ``cut`` ends all connections."""

    def __init__(self, target_port: int) -> None:
        self.delay_s = 0.0
        self._target = target_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        for one, other in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pump(one, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    await asyncio.sleep(self.delay_s)
                    writer.write(data)
        finally:
            writer.transport.abort()
