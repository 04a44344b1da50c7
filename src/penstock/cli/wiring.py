"""The one place that names every concrete class: what each kind of process is made of.

In: resolved settings; out: a running process.  Decides nothing.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import Coroutine
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from penstock import __version__
from penstock.asgi.proxies import TrustedProxies
from penstock.asgi.server import bind_unix, serve_app
from penstock.asgi.tls import server_context
from penstock.cli.mock_engine import SCHEME, settings_of
from penstock.cli.recording import Recording
from penstock.cluster.admin.app import AdminApp
from penstock.cluster.admin.gather import Gather
from penstock.cluster.admin.guard import Guard
from penstock.cluster.controller import Controller, EndRules, Member, ServiceState, Tell, gateway_name
from penstock.cluster.drivers.local import Launch, LocalDriver
from penstock.cluster.listen import is_loopback, listen
from penstock.cluster.reconcile import Rules
from penstock.cluster.rundir import RunDir, Service
from penstock.cluster.supervise import supervise
from penstock.config.issuers import Issuer
from penstock.config.mock import MockSettings
from penstock.config.settings import EngineSettings, GatewaySettings, ServeSettings
from penstock.engine.cpu.cores import available_cores
from penstock.observe import exposition
from penstock.observe.folds import Folds
from penstock.store.denials import Denials
from penstock.store.desired import DesiredStore
from penstock.store.places import Opened, default_url, open_access
from penstock.store.sources import Resolved, resolve
from penstock.store.spill import Spill
from penstock.wire import gateway as gateway_wire
from penstock.wire.engine import LOAD, METRICS, Load
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.tokens.verify import TokenVerifier

NO_MODEL_GIVEN = (
    "no model given: serving pydoc, a small demonstration model that knows what Python's standard library does; "
    "for a real one: penstock serve Qwen/Qwen3-0.6B"
)
OPEN = "is open: no key exists, and everybody who reaches it is answered; penstock keys create closes it"
CLOSED = "asks for keys"
CLOSED_WITHOUT_KEYS = "asks for keys, and none exists yet; penstock keys create makes one"
_END_S = 8.0
"""What a child gets for running requests after SIGTERM; less than the controller waits before it kills."""


class Monotonic:
    """The production clock."""

    def now(self) -> float:
        return time.monotonic()


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
        _tls(settings)  # a wrong certificate is told before anything starts
        if settings.source is None:
            display.note(NO_MODEL_GIVEN)
        access = open_access(home, settings.store or default_url(home))
        _prepare(access, display)
        run = RunDir.create(home, os.getpid())
        try:
            asyncio.run(_control(settings, resolved, home, run, access, data, admin, display))
        finally:
            run.remove()


def _prepare(access: Opened, display: Display) -> None:
    """A store that is lost keeps a service from starting only where nothing is known of its keys."""
    try:
        access.store.prepare()
    except Problem as problem:
        if access.store.last_known() is None or problem.code == "invalid_setting":
            raise
        display.note(f"{problem.message} Known keys go on, and so does the rest when it is back.")


async def gateway_process(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Answer on the data listener until ``stop``."""
    from penstock.gateway.http.serve import serve_gateway
    from penstock.gateway.identify import Identify

    folds = Folds()
    opened = open_access(Path(settings.home), settings.access_url)
    denials = Denials(opened.store.audit, time.time)
    tokens, fetching = _tokens(settings.issuers)
    identify = Identify(opened.secret, time.time, denials, open_without_keys=settings.open_without_keys, tokens=tokens)
    writer = f"{settings.gateway}-{secrets.token_hex(4)}"  # of this start: a later one recalls what this has written
    spill = Spill(opened.spill, writer, opened.ledger)
    recording = Recording(writer, folds, spill, opened.ledger)
    with closing(opened.store), closing(DesiredStore(settings.store_path)) as store:
        regular = (denials.write_regularly(), spill.move_regularly(), *fetching)
        beside = [asyncio.create_task(work) for work in regular]
        serving = asyncio.create_task(
            serve_gateway(
                settings,
                states=store.watch(),
                identify=identify,
                access=opened.store.watch(),
                acknowledge=store.acknowledge,
                emit=recording,
                samples=folds.samples,
                recall=recording.recall,
                stop=stop,
            )
        )
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        _, unfinished = await asyncio.wait([serving], timeout=_END_S)
        for task in unfinished:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        await _cancel(beside)
        await asyncio.to_thread(denials.write)
        await asyncio.to_thread(spill.close)


async def engine_process(settings: EngineSettings, stop: asyncio.Event) -> None:
    """Load the checkpoint and serve the engine protocol until ``stop``."""
    from penstock.cli.boot import boot
    from penstock.engine.server.booted import Booted, Progress
    from penstock.engine.server.serve import serve_engine

    folds = Folds()

    def booted(settings: EngineSettings, progress: Progress) -> Booted:
        return boot(settings, progress, folds)

    await serve_engine(settings, boot=booted, samples=folds.samples, stop=stop, drain_timeout_s=_END_S)


async def mock_process(settings: MockSettings, stop: asyncio.Event) -> None:
    """Answer the engine protocol as the script says until ``stop``."""
    from penstock.mock.http.serve import serve_mock

    await serve_mock(bind_mock(settings), model=settings.served_name, script=settings.script, stop=stop)


def bind_mock(settings: MockSettings) -> list[socket.socket]:
    """The sockets that a mock engine answers on."""
    listeners = [] if settings.socket is None else [bind_unix(settings.socket)]
    if settings.port is not None:
        listeners.append(listen(settings.host, settings.port, option="--port"))
    return listeners


def run_mock(settings: MockSettings, listeners: list[socket.socket]) -> None:
    """A mock engine by itself, until SIGTERM or Ctrl-C."""
    import uvloop

    from penstock.cli.open_files import allow_open_files
    from penstock.mock.http.serve import serve_mock

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_mock(listeners, model=settings.served_name, script=settings.script, stop=stop)

    allow_open_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def _control(
    settings: ServeSettings,
    resolved: Resolved,
    home: Path,
    run: RunDir,
    access: Opened,
    data: socket.socket,
    admin: socket.socket,
    display: Display,
) -> None:
    name = settings.served_name or resolved.name
    clock, folds = Monotonic(), Folds()
    gateways = [Member(id="gateway-0", kind="gateway", socket=str(run.sockets / "gateway-0.sock"))]
    engines = [
        Member(id=f"engine-{n}", kind="engine", socket=str(run.sockets / f"engine-{n}.sock"))
        for n in range(settings.replicas)
    ]
    store_path = run.path / "store.sqlite"
    controller = Controller(
        name,
        int(time.time()),
        [*gateways, *engines],
        rules=Rules(),
        end=EndRules(drain_timeout_s=settings.drain_timeout_s),
        balance=settings.balance,
        emit=folds,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, controller.request_stop)
    launches = {member.id: _gateway_launch(member, settings, home, store_path, data) for member in gateways}
    launches |= {member.id: _engine_launch(member, settings, name, resolved.directory) for member in engines}
    scrape = {member.id: (member.socket, gateway_wire.METRICS) for member in gateways}
    scrape |= {member.id: (member.socket, METRICS) for member in engines}
    page = Gather(scrape, folds.samples, exposition.render, exposition.CONTENT_TYPE)
    ended = asyncio.Event()
    tls = _tls(settings)
    with closing(access.store), closing(DesiredStore(store_path)) as store:
        tokens, fetching = _tokens(settings.issuers)
        guard = Guard(
            access.secret,
            secrets.token_urlsafe(32),
            time.time,
            state_is_open=_is_open_without_keys(settings, settings.admin_host),
            # Not with --insecure-no-auth: whoever reaches the port would be the operator.
            open_without_keys=is_loopback(settings.admin_host) and not settings.trusted_proxies,
            tokens=tokens,
        )
        administration = access.administration(time.time, secrets.token_bytes)
        denials = Denials(access.store.audit, time.time)

        def state() -> ServiceState:
            return msgspec.structs.replace(controller.state(), access=_access(settings, guard.has_keys))

        proxies = TrustedProxies(settings.trusted_proxies)
        app = AdminApp(__version__, state, page, guard, administration, denials, proxies)
        works = (access.store.keep(), guard.follow(access.store.watch()), denials.write_regularly(), *fetching)
        beside = [asyncio.create_task(work) for work in works]
        listening = asyncio.create_task(serve_app(app, admin, ended, parser="h11", tls=tls))
        service = Service(
            pid=os.getpid(),
            model=name,
            url=url_of(data, settings.host, is_tls=tls is not None),
            admin_url=url_of(admin, settings.admin_host, is_tls=tls is not None),
            started_at=time.time(),
            version=__version__,
            token=guard.token,
            tls_cert=settings.tls_cert,
        )
        run.describe(service)
        known = access.store.last_known()
        display.note(f"the API {_access(settings, known is not None and bool(known.keys))}")
        display.when_ready(service.model, service.url, service.admin_url)
        try:
            driver = LocalDriver(launches, run.path, clock)
            await supervise(controller, driver, store, clock=clock, tell=display.tell, show=display.show)
        finally:
            ended.set()
            await listening
            await _cancel(beside)
            await asyncio.to_thread(denials.write)


def _resolved(settings: ServeSettings) -> Resolved:
    """Where the model is.  A mock engine has none; its script is read here, so that a wrong one is told at once."""
    if settings.source is None or not settings.source.startswith(SCHEME):
        return resolve(settings.source)
    settings_of(settings.source, "mock", "")
    return Resolved(directory=Path(), name="mock")


def _tokens(issuers: tuple[Issuer, ...]) -> tuple[TokenVerifier | None, list[Coroutine[Any, Any, None]]]:
    """Who verifies tokens, and what keeps fetching the issuers' keys; nobody where there are no issuers."""
    if not issuers:
        return None, []
    from penstock.tokens.jwks import KeySet, source_of
    from penstock.tokens.verify import TokenVerifier

    key_sets = [KeySet(issuer) for issuer in issuers]
    return TokenVerifier(key_sets, time.time), [keys.keep(source_of(keys.issuer.jwks)) for keys in key_sets]


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _access(settings: ServeSettings, has_keys: bool) -> str:
    """Who is answered on the data listener, in words."""
    if has_keys or settings.issuers:
        return CLOSED
    return OPEN if _is_open_without_keys(settings, settings.host) else CLOSED_WITHOUT_KEYS


def _is_open_without_keys(settings: ServeSettings, host: str) -> bool:
    # Behind a proxy everybody comes from loopback.
    return settings.insecure_no_auth or (is_loopback(host) and not settings.trusted_proxies)


def _tls(settings: ServeSettings) -> ssl.SSLContext | None:
    return server_context(Path(settings.tls_cert), Path(settings.tls_key)) if settings.tls_cert else None


def _gateway_launch(member: Member, serve: ServeSettings, home: Path, store_path: Path, data: socket.socket) -> Launch:
    def settings(incarnation: int) -> bytes:
        return msgspec.json.encode(
            GatewaySettings(
                gateway=gateway_name(member.id, incarnation),
                control_socket=member.socket,
                store_path=str(store_path),
                listen_fd=data.fileno(),
                prices=serve.prices,
                home=str(home),
                access_url=serve.store or default_url(home),
                open_without_keys=_is_open_without_keys(serve, serve.host),
                issuers=serve.issuers,
                tls_cert=serve.tls_cert,
                tls_key=serve.tls_key,
                trusted_proxies=serve.trusted_proxies,
            )
        )

    def answers(body: bytes) -> Load:
        said = gateway_wire.decode_load(body)
        return Load(phase="ready" if said.ready else "loading", running=said.in_flight)

    return Launch(
        argv=_command("gateway"),
        settings=settings,
        socket=member.socket,
        route=gateway_wire.LOAD,
        answers=answers,
        pass_fds=(data.fileno(),),
    )


def _engine_launch(member: Member, serve: ServeSettings, name: str, directory: Path) -> Launch:
    if serve.source is not None and serve.source.startswith(SCHEME):
        pretended = msgspec.json.encode(settings_of(serve.source, name, member.socket))
        return Launch(argv=_command("mock"), settings=lambda _: pretended, socket=member.socket, route=LOAD)
    settings = EngineSettings(
        replica=member.id,
        socket=member.socket,
        model_dir=str(directory),
        served_name=name,
        dtype=serve.dtype,
        exact=serve.exact,
        max_model_len=serve.max_model_len,
        kv_memory_bytes=serve.kv_memory_bytes,
        kv_share=1.0 / serve.replicas,
        max_step_tokens=serve.max_step_tokens,
        max_num_seqs=serve.max_num_seqs,
        prefix_caching=serve.prefix_caching,
        threads=serve.threads or _threads_each(serve.replicas),
        reasoning_parser=serve.reasoning_parser,
        tool_parser=serve.tool_parser,
    )
    line = msgspec.json.encode(settings)
    return Launch(argv=_command("engine"), settings=lambda _: line, socket=member.socket, route=LOAD)


def _command(kind: str) -> list[str]:
    # -P: a folder named like one of our modules in the working directory must not be imported.
    return [sys.executable, "-P", "-m", "penstock", kind]


def _threads_each(replicas: int) -> int | None:
    """One replica chooses by itself; several would each take every core."""
    return None if replicas == 1 else max(1, available_cores() // replicas)


def url_of(listener: socket.socket, host: str, *, is_tls: bool = False) -> str:
    """Where this machine reaches ``listener``."""
    address, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, host)
    return f"{'https' if is_tls else 'http'}://{f'[{shown}]' if ':' in shown else shown}:{port}"
