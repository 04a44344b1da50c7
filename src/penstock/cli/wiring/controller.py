"""The controller: the processes of the service, and what they should be.

In: settings, listeners and a run directory; out: nothing; it supervises until it is asked to stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol

import msgspec

from penstock import __version__
from penstock.cli.wiring.admin import admin_listener
from penstock.cli.wiring.answered import OPEN, access_of, tls_of, url_of
from penstock.cli.wiring.clock import Monotonic
from penstock.cli.wiring.engines import (
    Source,
    check_adapters,
    first_adapters,
    given_source,
    name_of,
    source_of,
    with_draft_model,
)
from penstock.cli.wiring.hangup import at_hang_up
from penstock.cli.wiring.launches import Fleet, fleet_of, store_path
from penstock.cli.wiring.lifetime import beside
from penstock.cluster.actions import Tell
from penstock.cluster.adapters import Adapters
from penstock.cluster.admin.adapting import adapter_routes
from penstock.cluster.admin.gather import Gather
from penstock.cluster.admin.naming import names_routes
from penstock.cluster.admin.upgrading import upgrade_routes
from penstock.cluster.controller import Controller, EndRules
from penstock.cluster.drivers.local import LocalDriver
from penstock.cluster.naming import Naming
from penstock.cluster.reconcile import Rules
from penstock.cluster.rundir import RunDir, Service
from penstock.cluster.state import ServiceState
from penstock.cluster.supervise import supervise
from penstock.cluster.upgrade import Upgrades
from penstock.config.desired import Model
from penstock.config.settings import ServeSettings
from penstock.observe import exposition
from penstock.observe.folds import Folds
from penstock.ports import Emit
from penstock.runtimes.upstream import HttpUpstream
from penstock.store.audit import Act
from penstock.store.declare import declare
from penstock.store.desired import DesiredStore
from penstock.store.places import Opened, default_url, open_access
from penstock.store.upgraded import read_upgraded, upgraded_path
from penstock.wire.errors import Problem

NO_MODEL_GIVEN = (
    "no model given: serving pydoc, a small demonstration model that knows what Python's standard library does; "
    "for a real one: penstock serve Qwen/Qwen3-0.6B"
)


class Display(Protocol):
    """Where ``penstock serve`` shows what happens: a terminal or plain lines."""

    def note(self, line: str) -> None: ...

    def when_ready(self, model: str, url: str, admin_url: str, *, is_open: bool) -> None: ...

    def show(self, state: ServiceState) -> None: ...

    def tell(self, message: Tell) -> None: ...


def control(
    settings: ServeSettings,
    home: Path,
    run: RunDir,
    data: socket.socket,
    admin: socket.socket,
    display: Display,
    waiting: Mapping[str, subprocess.Popen[bytes]],
) -> None:
    """Serve until asked to stop.  ``waiting``: processes that members may take over instead of starting their own.

    Raises ``Problem`` for whatever keeps the service from running.
    """
    name, source = _named(settings, home, display)
    settings = with_draft_model(settings)
    if name in settings.also:
        raise Problem("invalid_setting", f"{name!r} is served twice: as MODEL and by --config.", param="--config")
    sources = {name: source} | {
        other: _named(msgspec.structs.replace(settings, source=model.source, served_name=other), home, display)[1]
        for other, model in settings.also.items()
    }
    check_adapters(first_adapters(settings, name), sources, settings.max_lora_rank)
    tls_of(settings)  # a wrong certificate is told before anything starts
    if settings.source is None:
        display.note(NO_MODEL_GIVEN)
    access = open_access(home, settings.store or default_url(home))
    _prepare(access, display)
    _declare(settings, access, display)
    fleet = fleet_of(settings, name, sources, home, run, data)
    driver = LocalDriver(fleet.launches, run.path, Monotonic(), waiting)
    asyncio.run(_control(settings, name, home, run, access, fleet, driver, data, admin, display))


def _declare(settings: ServeSettings, access: Opened, display: Display) -> None:
    """The tenants of the service's file; a store that is lost keeps no service from starting."""
    if not settings.tenants:
        return
    try:
        declare(access.store, settings.tenants, time.time())
    except Problem as problem:
        if problem.code != "store_unavailable":
            raise
        display.note("The tenants of the file are as they were: the store is not there to take them.")


def _prepare(access: Opened, display: Display) -> None:
    """A store that is lost keeps a service from starting only where nothing is known of its keys."""
    try:
        access.store.prepare()
    except Problem as problem:
        if access.store.last_known() is None or problem.code == "invalid_setting":
            raise
        display.note(f"{problem.message} Known keys go on, and so does the rest when it is back.")


async def _control(
    settings: ServeSettings,
    name: str,
    home: Path,
    run: RunDir,
    access: Opened,
    fleet: Fleet,
    driver: LocalDriver,
    data: socket.socket,
    admin: socket.socket,
    display: Display,
) -> None:
    clock, folds = Monotonic(), Folds()
    controller = _controller(settings, name, fleet, folds)
    _stop_when_signalled(controller)
    page = Gather(fleet.scrapes, folds.samples, exposition.render, exposition.CONTENT_TYPE)
    fleet.engines.driver, fleet.engines.page = driver, page
    with closing(access.store), closing(DesiredStore(store_path(run))) as store:

        def write_down(act: Act) -> None:
            access.store.audit.append([act], time.time())

        upgrades = Upgrades(controller, fleet.engines, clock, settings.drain_timeout_s, write_down)
        engines = HttpUpstream()
        adapters = Adapters(
            controller,
            engines,
            Path(settings.lora_dir) if settings.lora_dir else home / "lora",
            write_down,
            lambda id, words: display.tell(Tell(id, words)),
            first_adapters(settings, name),
            time.time,
        )
        routes = (
            names_routes(Naming(controller.catalogue, write_down)) | upgrade_routes(upgrades) | adapter_routes(adapters)
        )
        async with (
            admin_listener(settings, admin, access, controller.state, page, routes) as guard,
            beside(upgrades.run(), adapters.run(), at_hang_up(controller.request_stop)),
        ):
            service = _service(settings, name, data, admin, guard.token)
            run.describe(service)
            known = access.store.last_known()
            access_words = access_of(settings, known is not None and known.asks_for_keys)
            display.note(f"the API {access_words}")
            display.when_ready(service.model, service.url, service.admin_url, is_open=access_words == OPEN)
            try:
                await supervise(controller, driver, store, clock=clock, tell=display.tell, show=display.show)
            finally:
                await engines.close()


def _controller(settings: ServeSettings, name: str, fleet: Fleet, emit: Emit) -> Controller:
    """Of the model ``name`` and of those beside it, all since now."""
    created = int(time.time())
    return Controller(
        name,
        created,
        fleet.members,
        rules=Rules(),
        end=EndRules(drain_timeout_s=settings.drain_timeout_s),
        balance=settings.balance,
        max_concurrent=settings.max_concurrent,
        also=[
            Model(name=other, replicas=[], created=created, balance=model.balance, max_concurrent=model.max_concurrent)
            for other, model in settings.also.items()
        ],
        names=settings.names,
        emit=emit,
    )


def _stop_when_signalled(controller: Controller) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # of a nohup, which wants it to go on
            asyncio.get_running_loop().add_signal_handler(number, controller.request_stop)


def _service(settings: ServeSettings, name: str, data: socket.socket, admin: socket.socket, token: str) -> Service:
    """What other commands of this user find it by."""
    is_tls = bool(settings.tls_cert)
    return Service(
        pid=os.getpid(),
        model=name,
        url=url_of(data, settings.host, is_tls=is_tls),
        admin_url=url_of(admin, settings.admin_host, is_tls=is_tls),
        started_at=time.time(),
        version=__version__,
        token=token,
        tls_cert=settings.tls_cert,
    )


def _named(settings: ServeSettings, home: Path, display: Display) -> tuple[str, Source]:
    """The model's name, and where it is: what the command says, or what that was upgraded to."""
    given = given_source(settings)
    upgraded = read_upgraded(home, settings.served_name or "", given)
    if upgraded is None:
        source = source_of(settings.source)
        return name_of(settings, source), source
    display.note(
        f"serving {upgraded.source} since the upgrade of {given}; penstock upgrade {upgraded.model} {given} goes back"
    )
    try:
        return upgraded.model, source_of(upgraded.source)
    except Problem as problem:
        path = upgraded_path(home, settings.served_name or "", given)
        message = f"{problem.message} {given} was upgraded to it; remove {path} to serve {given} again."
        raise Problem(problem.code, message, param=problem.param) from problem
