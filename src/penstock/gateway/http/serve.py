"""A gateway process: data listener, control socket, and the watching of replicas, until it is told to stop.

In: settings and the ports it is wired with; out: nothing; it serves.
The one place where the gateway's machines meet their edges.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.asgi.proxies import TrustedProxies
from penstock.asgi.respond import send_json, send_problem
from penstock.asgi.server import Receive, Scope, Send, bind_unix, serve_app
from penstock.asgi.tls import server_context
from penstock.config.desired import Acknowledgement, DesiredState
from penstock.config.settings import GatewaySettings
from penstock.config.tenants import Access
from penstock.cost.money import Tariff
from penstock.gateway.explain import explain
from penstock.gateway.forward import Forwarder
from penstock.gateway.http.app import App
from penstock.gateway.http.data import HttpRules
from penstock.gateway.http.server import HttpServer
from penstock.gateway.identify import Identify
from penstock.gateway.limit import Limit
from penstock.gateway.limits import Limits
from penstock.gateway.meter import Meter, Running
from penstock.gateway.pipeline import Gateway, Stages
from penstock.gateway.replicas import Replicas
from penstock.gateway.route import Router
from penstock.gateway.shadow import Shadows
from penstock.gateway.shared import SharedLimits
from penstock.gateway.watch import Watcher
from penstock.policy.admit import AdmitRules
from penstock.policy.retry import RetryRules
from penstock.ports import Emit, Slices
from penstock.runtimes.upstream import HttpUpstream
from penstock.wire.errors import Problem
from penstock.wire.gateway import EXPLAIN, LOAD, METRICS, GatewayLoad

_RECALL_S = 3.0


class _SteadyClock:
    # The loop's own time is one of milliseconds, and asking for the loop costs a system call.
    now = staticmethod(time.monotonic)


async def serve_gateway(
    settings: GatewaySettings,
    *,
    states: AsyncIterator[DesiredState],
    identify: Identify,
    access: AsyncIterator[Access | Problem],
    acknowledge: Callable[[Acknowledgement], None],
    emit: Emit,
    samples: Callable[[], Sequence[Any]],
    running: Running | None = None,
    recall: Callable[[Limits], Coroutine[Any, Any, None]],
    stop: asyncio.Event,
    slices: Slices | None = None,
) -> None:
    """Serve until ``stop`` is set and the running requests have ended; the caller bounds that by cancelling.

    ``recall`` tells the limits what was used of the current day and month before this gateway began; ``slices``:
    limits are shared with other gateways through these.

    Raises whatever ends the watching of ``states`` or ``access``: a gateway that cannot follow them must not go on.
    """
    replicas = Replicas()
    upstream = HttpUpstream()
    clock = _SteadyClock()
    rules = RetryRules(max_resumes=settings.max_resumes, resume_timeout_s=settings.resume_timeout_s)
    tariff = Tariff(settings.prices)
    limits = Limits(clock, time.time, tariff)
    if slices is not None:
        limits = SharedLimits(clock, time.time, tariff, slices, emit)
    stages = Stages(
        identify=identify,
        limit=Limit(replicas, limits, clock, AdmitRules()),
        route=Router(replicas, clock),
        forward=Forwarder(replicas, upstream, rules, clock, emit, random.random),
        meter=Meter(clock, emit, lambda: secrets.token_hex(16), running),
    )
    once = Forwarder(replicas, upstream, RetryRules(max_resumes=0, first_wait_s=0.0), clock, emit)
    shadows = Shadows(once, replicas, stages.limit, clock, emit)
    gateway = Gateway(replicas, upstream, stages, shadows)
    http_rules = HttpRules(max_body_bytes=settings.max_body_bytes, body_timeout_s=settings.body_timeout_s)
    watcher = Watcher(settings.gateway, replicas, upstream, acknowledge, lambda: gateway.in_flight, time.time)
    tls = server_context(Path(settings.tls_cert), Path(settings.tls_key)) if settings.tls_cert else None
    data = HttpServer(App(gateway, http_rules, TrustedProxies(settings.trusted_proxies)), tls)
    keeping = asyncio.create_task(limits.keep(recall))
    # A store that is away for longer must not keep the service from starting: what it knows is told later.
    with suppress(TimeoutError):
        async with asyncio.timeout(_RECALL_S):
            await limits.informed.wait()
    await data.start(socket.socket(fileno=os.dup(settings.listen_fd)))
    control_stop = asyncio.Event()
    control = asyncio.create_task(
        serve_app(ControlApp(gateway, samples), bind_unix(settings.control_socket), control_stop)
    )
    following = asyncio.create_task(watcher.follow(states))
    heeding = asyncio.create_task(_follow_access(identify, access))
    background: list[asyncio.Task[None]] = [
        following,
        heeding,
        keeping,
        asyncio.create_task(watcher.acknowledge_regularly()),
        asyncio.create_task(stages.forward.stalls.watch()),
        asyncio.create_task(once.stalls.watch()),
    ]
    stopping: asyncio.Task[object] = asyncio.create_task(stop.wait())
    try:
        waiting = {stopping, *background}
        while not stop.is_set():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                # A finite sequence of states (a fixed set of replicas) may end; the last one stays in force.
                task.result()
        await data.stop()
        watcher.acknowledge()
    finally:
        await data.close()
        for task in (*background, stopping):
            task.cancel()
        await asyncio.gather(*background, stopping, return_exceptions=True)
        await shadows.close()
        await watcher.close()
        await upstream.close()
        control_stop.set()
        await control
        _unlink(settings.control_socket)


async def _follow_access(identify: Identify, access: AsyncIterator[Access | Problem]) -> None:
    async for news in access:
        identify.adopt(news)


class ControlApp:
    """The control socket's ASGI application: what the controller and ``penstock explain`` ask."""

    def __init__(self, gateway: Gateway, samples: Callable[[], Sequence[Any]]) -> None:
        self._gateway = gateway
        self._samples = samples

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == LOAD:
            load = GatewayLoad(
                version=self._gateway.replicas.version,
                in_flight=self._gateway.in_flight,
                ready=self._gateway.ready,
            )
            await send_json(send, load)
        elif path == METRICS:
            await send_json(send, self._samples())
        elif path.startswith(EXPLAIN):
            try:
                call = self._gateway.stages.meter.recent.find(path.removeprefix(EXPLAIN))
                await send_json(send, explain(call))
            except Problem as problem:
                await send_problem(send, problem)
        else:
            await send_problem(send, Problem("not_found", f"There is no {path[:200]!r} here."))


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)
