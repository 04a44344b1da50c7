"""The processes that ``penstock bench gateway`` measures: mock engines, and our gateway in front of one of them.

In: where they may put their sockets; out: running processes that end with the block they were started in.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import secrets
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from penstock.cli.wiring.commands import command
from penstock.cluster.listen import listen
from penstock.config.desired import Model, Replica
from penstock.config.mock import MockScript, MockSettings
from penstock.config.prices import Price
from penstock.config.settings import GatewaySettings
from penstock.config.tenants import Limit
from penstock.loadgen.doorbench import Door
from penstock.store.desired import DesiredStore
from penstock.store.places import default_url, open_access
from penstock.store.representations import NewKey, NewTenant
from penstock.wire.errors import Problem

HOST = "127.0.0.1"
MODEL = "mock"
_READY_S = 60.0
_END_S = 2.0
_LAST_LINES = 8
_SCRIPTS = {
    "whole": MockScript(tokens_per_delta=4096),
    "tokens": MockScript(ttft_s=0.02, gap_s=0.01, jitter=0.2, output_tokens=100_000),
    "slow": MockScript(gap_s=3.0, jitter=0.5, output_tokens=100_000, context_tokens=1_000_000),
}
"""Whole answers at once, tokens at a steady pace, and streams that stay open."""


_LIMITS = (
    Limit(unit="requests", amount=1e9, window="minute"),
    Limit(unit="tokens", amount=1e12, window="minute"),
    Limit(unit="usd", amount=1e9, window="month"),
    Limit(unit="concurrency", amount=1e6),
)


@dataclass(slots=True)
class MockEngines:
    """Implements ``loadgen.doorbench.Upstreams``."""

    whole: Door
    tokens: Door
    slow: Door


@asynccontextmanager
async def mock_engines(directory: Path) -> AsyncIterator[MockEngines]:
    """One for each script: on a Unix socket for our gateway, on a port for the lanes and for others."""
    async with AsyncExitStack() as stack:
        doors = {}
        for name, script in _SCRIPTS.items():
            doors[name] = await stack.enter_async_context(mock_engine(directory, script))
        yield MockEngines(**doors)


def mock_engine(directory: Path, script: MockScript) -> AbstractAsyncContextManager[Door]:
    """A mock engine's process, on a port and on its ``engine_socket``."""
    port = free_port()
    path = str(engine_socket(directory, port))
    settings = MockSettings(served_name=MODEL, socket=path, host=HOST, port=port, script=script)
    return process(command("mock"), port, "/health", stdin=msgspec.json.encode(settings) + b"\n")


@asynccontextmanager
async def our_gateway(upstream: Door, directory: Path) -> AsyncIterator[Door]:
    """The production gateway process, routing to one mock engine, with a key, limits and prices to watch over."""
    url = default_url(directory)
    # Limits that are all counted and never reached.
    key = issue_key(directory, url, NewTenant(name=f"bench-{secrets.token_hex(4)}", limits=_LIMITS))
    with (
        closing(listen(HOST, 0, option="--port")) as data,
        closing(DesiredStore(directory / f"store-{upstream.port}.sqlite")) as store,
    ):
        replica = Replica(id="mock-0", socket=str(engine_socket(directory, upstream.port)))
        store.publish([Model(name=MODEL, replicas=[replica])])
        settings = GatewaySettings(
            gateway="bench",
            control_socket=str(directory / f"gateway-{upstream.port}.sock"),
            store_path=str(directory / f"store-{upstream.port}.sqlite"),
            listen_fd=data.fileno(),
            home=str(directory),
            access_url=url,
            prices=(Price(model=MODEL, since=dt.date(2026, 1, 1), input=0.1, output=0.4),),
        )
        port = data.getsockname()[1]
        line = msgspec.json.encode(settings) + b"\n"
        async with process(command("gateway"), port, "/ready", stdin=line, pass_fds=(data.fileno(),)) as door:
            yield msgspec.structs.replace(door, key=key)


def issue_key(home: Path, url: str, tenant: NewTenant) -> str:
    """The first key of a new tenant, in the store at ``url``."""
    opened = open_access(home, url)
    with closing(opened.store):
        opened.store.prepare()
        acts = opened.administration(time.time, secrets.token_bytes)
        acts.create_tenant(None, tenant)
        return acts.create_key(None, NewKey(tenant=tenant.name)).secret


@asynccontextmanager
async def process(
    command: Sequence[str],
    port: int,
    ready: str,
    *,
    stdin: bytes = b"",
    pass_fds: tuple[int, ...] = (),
    env: dict[str, str] | None = None,
    within_s: float = _READY_S,
) -> AsyncIterator[Door]:
    """A process that is ready once ``GET ready`` on ``port`` answers 200; ended with all that it started.

    Raises ``Problem`` ``endpoint_error`` with its last words when it ends before that, or takes too long.
    """
    begin = time.monotonic()
    # A group of its own, so that what it starts ends with it.
    running = subprocess.Popen(  # noqa: ASYNC220 - forks once, before anything is measured
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=pass_fds,
        env=env,
        process_group=0,
    )
    assert running.stdin is not None and running.stdout is not None
    # A thread of its own for each: the loop's few would all be reading when another is needed to wait for an end.
    reader = ThreadPoolExecutor(1)
    said = asyncio.get_running_loop().run_in_executor(reader, _last_words, running.stdout)
    try:
        running.stdin.write(stdin)
        running.stdin.flush()
        while not await _answers(port, ready):
            if running.poll() is not None or time.monotonic() - begin > within_s:
                await _end(running)
                raise Problem("endpoint_error", f"{command[0]} did not become ready: {await said}")
            await asyncio.sleep(0.005)
        yield Door(HOST, port, running.pid, time.monotonic() - begin, MODEL)
    finally:
        await _end(running)
        running.stdin.close()
        await said
        reader.shutdown()
        running.stdout.close()


def free_port() -> int:
    """A port that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def engine_socket(directory: Path, port: int) -> Path:
    """Where the mock engine on this port speaks to our gateway."""
    return directory / f"mock-{port}.sock"


async def _answers(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n".encode())
        async with asyncio.timeout(5.0):
            return (await reader.read(12)).endswith(b" 200")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


async def _end(running: subprocess.Popen[bytes]) -> None:
    """Ask, then insist; what it has started goes with it."""
    if running.poll() is None:
        running.terminate()
        try:
            await asyncio.to_thread(running.wait, _END_S)
        except subprocess.TimeoutExpired:
            running.kill()
            await asyncio.to_thread(running.wait)
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)


def _last_words(output: IO[bytes]) -> str:
    """Reads to the end, so that it never waits for a reader, and keeps the last lines."""
    return b" | ".join(line.strip() for line in deque(output, maxlen=_LAST_LINES)).decode("utf-8", "replace")
