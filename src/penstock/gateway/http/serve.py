"""A gateway process: data listener, control socket, and the watching of replicas, until it is told to stop.

In: settings and the ports it is wired with; out: nothing; it serves.
The one place where the gateway's machines meet their edges.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

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
from penstock.ports import Clock, Emit, Slices
from penstock.runtimes.upstream import HttpUpstream
from penstock.wire.errors import Problem
from penstock.wire.gateway import EXPLAIN, LOAD, METRICS, GatewayLoad

_RECALL_S = 3.0


class _Machines(NamedTuple):
    """What decides and remembers in this process; ``watching``: what has to go on beside it."""

    gateway: Gateway
    shadows: Shadows
    upstream: HttpUpstream
    limits: Limits
    watcher: Watcher
    watching: list[Callable[[], Coroutine[Any, Any, None]]]


async def serve_gateway(
    settings: GatewaySettings,
    *,
    clock: Clock,
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
    made = _machines(settings, clock, identify, emit, acknowledge, running, slices)
    rules = HttpRules(max_body_bytes=settings.max_body_bytes, body_timeout_s=settings.body_timeout_s)
    tls = server_context(Path(settings.tls_cert), Path(settings.tls_key)) if settings.tls_cert else None
    data = HttpServer(App(made.gateway, rules, TrustedProxies(settings.trusted_proxies)), tls)
    keeping = asyncio.create_task(made.limits.keep(recall))
    # A store that is away for longer must not keep the service from starting: what it knows is told later.
    with suppress(TimeoutError):
        async with asyncio.timeout(_RECALL_S):
            await made.limits.informed.wait()
    await data.start(socket.socket(fileno=os.dup(settings.listen_fd)))
    control_stop = asyncio.Event()
    control_app = ControlApp(made.gateway, samples)
    control = asyncio.create_task(serve_app(control_app, bind_unix(settings.control_socket), control_stop))
    works = (made.watcher.follow(states), _follow_access(identify, access), *(watch() for watch in made.watching))
    background = [keeping, *map(asyncio.create_task, works)]
    try:
        await _until(stop, background)
        await data.stop()
        made.watcher.acknowledge()
    finally:
        await data.close()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await made.shadows.close()
        await made.watcher.close()
        await made.upstream.close()
        control_stop.set()
        await control
        _unlink(settings.control_socket)


def _machines(
    settings: GatewaySettings,
    clock: Clock,
    identify: Identify,
    emit: Emit,
    acknowledge: Callable[[Acknowledgement], None],
    running: Running | None,
    slices: Slices | None,
) -> _Machines:
    replicas, upstream, tariff = Replicas(), HttpUpstream(), Tariff(settings.prices)
    limits = Limits(clock, time.time, tariff)
    if slices is not None:
        limits = SharedLimits(clock, time.time, tariff, slices, emit)
    rules = RetryRules(max_resumes=settings.max_resumes, resume_timeout_s=settings.resume_timeout_s)
    stages = Stages(
        identify=identify,
        limit=Limit(replicas, limits, clock, AdmitRules()),
        route=Router(replicas, clock),
        forward=Forwarder(replicas, upstream, rules, clock, emit, random.random),
        meter=Meter(clock, emit, lambda: os.urandom(16).hex(), running),
    )
    once = Forwarder(replicas, upstream, RetryRules(max_resumes=0, first_wait_s=0.0), clock, emit)
    shadows = Shadows(once, replicas, stages.limit, clock, emit)
    gateway = Gateway(replicas, upstream, stages, shadows)
    watcher = Watcher(settings.gateway, replicas, upstream, acknowledge, lambda: gateway.in_flight, time.time)
    watching = [watcher.acknowledge_regularly, stages.forward.stalls.watch, once.stalls.watch]
    return _Machines(gateway, shadows, upstream, limits, watcher, watching)


async def _until(stop: asyncio.Event, background: Sequence[asyncio.Task[None]]) -> None:
    """Until ``stop``, or until one of the tasks raises."""
    stopping: asyncio.Task[object] = asyncio.create_task(stop.wait())
    waiting: set[asyncio.Task[Any]] = {stopping, *background}
    try:
        while not stop.is_set():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                # A finite sequence of states (a fixed set of replicas) may end; the last one stays in force.
                task.result()
    finally:
        stopping.cancel()


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
