"""The controller process: both listeners, the processes of the service, and what they should be.

In: settings; out: nothing; it supervises until it is asked to stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Protocol

import msgspec

from penstock import __version__
from penstock.cli.wiring.admin import admin_listener
from penstock.cli.wiring.answered import access_of, tls_of, url_of
from penstock.cli.wiring.clock import Monotonic
from penstock.cli.wiring.launches import fleet_of, name_of, store_path
from penstock.cli.wiring.mock import is_mock, mock_settings_of
from penstock.cluster.admin.gather import Gather
from penstock.cluster.admin.naming import names_routes
from penstock.cluster.controller import Controller, EndRules, ServiceState, Tell
from penstock.cluster.drivers.local import LocalDriver
from penstock.cluster.listen import listen
from penstock.cluster.naming import Naming
from penstock.cluster.reconcile import Rules
from penstock.cluster.rundir import RunDir, Service
from penstock.cluster.supervise import supervise
from penstock.config.desired import Model
from penstock.config.settings import ServeSettings
from penstock.observe import exposition
from penstock.observe.folds import Folds
from penstock.store.declare import declare
from penstock.store.desired import DesiredStore
from penstock.store.places import Opened, default_url, open_access
from penstock.store.sources import Resolved, resolve
from penstock.wire.errors import Problem

NO_MODEL_GIVEN = (
    "no model given: serving pydoc, a small demonstration model that knows what Python's standard library does; "
    "for a real one: penstock serve Qwen/Qwen3-0.6B"
)


class Display(Protocol):
    """Where ``penstock serve`` shows what happens: a terminal or plain lines."""

    def note(self, line: str) -> None: ...

    def when_ready(self, model: str, url: str, admin_url: str) -> None: ...

    def show(self, state: ServiceState) -> None: ...

    def tell(self, message: Tell) -> None: ...


def controller_process(settings: ServeSettings, home: Path, display: Display) -> None:
    """Serve until asked to stop.  Binds both listeners before anything is downloaded or loaded.

    Raises ``Problem`` for whatever keeps the service from running.
    """
    # Until the event loop takes over, nothing serves: ending at once is the whole drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with (
        closing(listen(settings.host, settings.port, option="--port")) as data,
        closing(listen(settings.admin_host, settings.admin_port, option="--admin-port")) as admin,
    ):
        resolved = _resolved(settings)
        if name_of(settings, resolved) in settings.also:
            message = f"{name_of(settings, resolved)!r} is served twice: as MODEL and by --config."
            raise Problem("invalid_setting", message, param="--config")
        also = {
            name: _resolved(msgspec.structs.replace(settings, source=model.source))
            for name, model in settings.also.items()
        }
        tls_of(settings)  # a wrong certificate is told before anything starts
        if settings.source is None:
            display.note(NO_MODEL_GIVEN)
        access = open_access(home, settings.store or default_url(home))
        _prepare(access, display)
        _declare(settings, access, display)
        run = RunDir.create(home, os.getpid())
        try:
            asyncio.run(_control(settings, resolved, also, home, run, access, data, admin, display))
        finally:
            run.remove()


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
    resolved: Resolved,
    also: dict[str, Resolved],
    home: Path,
    run: RunDir,
    access: Opened,
    data: socket.socket,
    admin: socket.socket,
    display: Display,
) -> None:
    clock, folds = Monotonic(), Folds()
    fleet = fleet_of(settings, resolved, also, home, run, data)
    created = int(time.time())
    controller = Controller(
        name_of(settings, resolved),
        created,
        fleet.members,
        rules=Rules(),
        end=EndRules(drain_timeout_s=settings.drain_timeout_s),
        balance=settings.balance,
        max_concurrent=settings.max_concurrent,
        also=[
            Model(name=name, replicas=[], created=created, balance=model.balance, max_concurrent=model.max_concurrent)
            for name, model in settings.also.items()
        ],
        names=settings.names,
        emit=folds,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, controller.request_stop)
    page = Gather(fleet.scrapes, folds.samples, exposition.render, exposition.CONTENT_TYPE)
    with closing(access.store), closing(DesiredStore(store_path(run))) as store:
        naming = Naming(controller, lambda act: access.store.audit.append([act], time.time()))
        routes = names_routes(naming)
        async with admin_listener(settings, admin, access, controller.state, page, routes) as guard:
            is_tls = bool(settings.tls_cert)
            service = Service(
                pid=os.getpid(),
                model=name_of(settings, resolved),
                url=url_of(data, settings.host, is_tls=is_tls),
                admin_url=url_of(admin, settings.admin_host, is_tls=is_tls),
                started_at=time.time(),
                version=__version__,
                token=guard.token,
                tls_cert=settings.tls_cert,
            )
            run.describe(service)
            known = access.store.last_known()
            display.note(f"the API {access_of(settings, known is not None and bool(known.keys))}")
            display.when_ready(service.model, service.url, service.admin_url)
            driver = LocalDriver(fleet.launches, run.path, clock)
            await supervise(controller, driver, store, clock=clock, tell=display.tell, show=display.show)


def _resolved(settings: ServeSettings) -> Resolved:
    """Where the model is.  A mock engine has none; its script is read here, so that a wrong one is told at once."""
    if settings.source is None or not is_mock(settings.source):
        return resolve(settings.source)
    mock_settings_of(settings.source, "mock", "")
    return Resolved(directory=Path(), name="mock")
