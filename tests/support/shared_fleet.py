"""Gateway processes before one mock engine, sharing a store and a Redis, as several hosts would.

In: limits of a tenant, a script; out: gateways that are killed and started again on their ports, and who asks them.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from penstock.cli.bench_rig import MODEL, engine_socket, issue_key, mock_engine
from penstock.cluster.listen import listen
from penstock.config.desired import Model, Replica
from penstock.config.mock import MockScript
from penstock.config.prices import Price
from penstock.config.settings import GatewaySettings
from penstock.config.tenants import Limit
from penstock.runtimes.upstream import HttpUpstream
from penstock.store.desired import DesiredStore
from penstock.store.places import default_url
from penstock.store.representations import NewTenant


@dataclass(frozen=True)
class Answer:
    """One exchange.  Times are of the monotonic clock; ``life``: which process answered."""

    began: float
    ended: float
    life: str
    status: int
    code: str = ""
    message: str = ""
    tokens: int = 0
    retry_after: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class GatewayLife:
    """A gateway's place: one port, one process after another."""

    name: str
    fleet: SharedFleet
    port: int
    fd: int
    process: subprocess.Popen[bytes] | None = None
    lives: int = 0
    env: dict[str, str] = field(default_factory=dict)

    @property
    def life(self) -> str:
        return f"{self.name}.{self.lives}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.lives += 1
        fleet = self.fleet
        settings = GatewaySettings(
            gateway=self.life,
            control_socket=str(fleet.home / f"{self.name}.sock"),
            store_path=str(fleet.home / "store.sqlite"),
            listen_fd=self.fd,
            home=str(fleet.home),
            access_url=fleet.access_url,
            redis=fleet.redis_url,
            prices=(Price(model=MODEL, since=dt.date(2026, 1, 1), input=0.1, output=0.4),),
        )
        log = (fleet.home / f"{self.name}.log").open("ab")
        command = [sys.executable, "-P", "-m", "penstock.cli.children", "gateway"]
        env = os.environ | self.env
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, pass_fds=(self.fd,), env=env)
        log.close()
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(settings) + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


class SharedFleet:
    """The whole; ``redis_url`` and ``access_url`` are for gateways that start from now on."""

    def __init__(self, home: Path, redis_url: str) -> None:
        self.home = home
        self.redis_url = redis_url
        self.access_url = default_url(home)
        self.gateways: list[GatewayLife] = []
        self.keys: dict[str, str] = {}
        self.answers: list[Answer] = []
        self.most_running = 0
        self.session: aiohttp.ClientSession
        self.engine_socket: str

    def issue(self, tenant: str, *limits: Limit, weight: float = 1.0) -> str:
        """A key of a new tenant with these limits."""
        self.keys[tenant] = issue_key(self.home, self.access_url, NewTenant(name=tenant, limits=limits, weight=weight))
        return self.keys[tenant]

    async def ask(
        self, gateway: GatewayLife, key: str, *, max_tokens: int = 10, content: str = "a", **fields: Any
    ) -> Answer:
        """One plain completion; a gateway that is gone answers with status 0."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens} | fields
        life, began = gateway.life, time.monotonic()
        status, code, message, tokens, retry_after, headers = 0, "", "", 0, None, {}
        with suppress(aiohttp.ClientError, OSError):
            head = {"authorization": f"Bearer {key}"}
            async with self.session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=head) as answer:
                said = json.loads(await answer.read())
                status, retry_after, headers = answer.status, answer.headers.get("retry-after"), dict(answer.headers)
                if status == 200:
                    tokens = said["usage"]["total_tokens"]
                else:
                    code, message = said["error"]["code"], said["error"]["message"]
        found = Answer(began, time.monotonic(), life, status, code, message, tokens, retry_after, headers)
        self.answers.append(found)
        return found

    async def ready(self, gateway: GatewayLife, within_s: float = 60.0) -> None:
        deadline = time.monotonic() + within_s
        while True:
            with suppress(aiohttp.ClientError, OSError):
                async with self.session.get(f"{gateway.url}/ready") as answer:
                    if answer.status == 200:
                        return
            log = self.home / f"{gateway.name}.log"
            assert time.monotonic() < deadline, log.read_text()
            await asyncio.sleep(0.05)

    async def watch_engine(self) -> None:
        """Note the most sequences that the engine ever had at a time."""
        upstream = HttpUpstream()
        try:
            while True:
                load = await upstream.load(self.engine_socket)
                self.most_running = max(self.most_running, load.running + load.waiting)
                await asyncio.sleep(0.02)
        finally:
            await upstream.close()

    def over(self, amount: int, weigh: Any) -> int:
        """By how much certainly more than ``amount`` was answered within some 60 s; negative: so much was left."""
        good = sorted((answer for answer in self.answers if answer.status == 200), key=lambda answer: answer.began)
        most = 0
        for first in good:
            end = first.began + 60
            most = max(
                most, sum(weigh(answer) for answer in good if first.began <= answer.began and answer.ended <= end)
            )
        return most - amount


@asynccontextmanager
async def shared_fleet(
    home: Path,
    redis_url: str,
    *,
    gateways: int = 3,
    script: MockScript | None = None,
    env: dict[str, str] | None = None,
) -> AsyncIterator[SharedFleet]:
    """A fleet whose gateways are not started yet.  ``env`` is for the first one."""
    fleet = SharedFleet(home, redis_url)
    async with AsyncExitStack() as stack:
        fleet.session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(90))
        )
        engine = await stack.enter_async_context(mock_engine(home, script or MockScript()))
        fleet.engine_socket = str(engine_socket(home, engine.port))
        with closing(DesiredStore(home / "store.sqlite")) as store:
            store.publish([Model(name=MODEL, replicas=[Replica(id="mock-0", socket=fleet.engine_socket)])])
        listeners = [listen("127.0.0.1", 0, option="--port") for _ in range(gateways)]
        for number, listener in enumerate(listeners):
            life = GatewayLife(f"g{number}", fleet, listener.getsockname()[1], listener.fileno())
            life.env = (env or {}) if number == 0 else {}
            fleet.gateways.append(life)
        try:
            yield fleet
        finally:
            for gateway in fleet.gateways:
                if gateway.process is not None and gateway.process.poll() is None:
                    gateway.kill()
            for listener in listeners:
                listener.close()
