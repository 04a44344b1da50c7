"""The admin listener of a service: its picture, its metrics, and the acts on tenants and keys.

In: settings, a listener, and what there is to show; out: nothing; it answers beside the block it is started in.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec

from penstock import __version__
from penstock.asgi.proxies import TrustedProxies
from penstock.asgi.server import serve_app
from penstock.cli.wiring.answered import access_of, is_open_without_keys, tls_of, tokens_of
from penstock.cli.wiring.lifetime import beside
from penstock.cluster.admin.app import AdminApp, AdminRoute
from penstock.cluster.admin.gather import Gather
from penstock.cluster.admin.guard import Guard
from penstock.cluster.listen import is_loopback
from penstock.cluster.state import ServiceState
from penstock.config.desired import DesiredState
from penstock.config.settings import ServeSettings
from penstock.cost.money import Tariff
from penstock.store.denials import Denials
from penstock.store.places import Opened
from penstock.store.served import Served


@asynccontextmanager
async def admin_listener(
    settings: ServeSettings,
    listener: socket.socket,
    access: Opened,
    state: Callable[[], ServiceState],
    page: Gather,
    more: Mapping[tuple[str, str], AdminRoute],
) -> AsyncIterator[Guard]:
    """Answer until the block ends, follow the keys, and keep the store.  Gives who guards the listener."""
    tokens, fetching = tokens_of(settings.issuers)
    guard = Guard(
        access.secret,
        secrets.token_urlsafe(32),
        time.time,
        state_is_open=is_open_without_keys(settings, settings.admin_host),
        # Not with --insecure-no-auth: whoever reaches the port would be the operator.
        open_without_keys=is_loopback(settings.admin_host) and not settings.trusted_proxies,
        tokens=tokens,
    )

    tariff = Tariff(settings.prices)

    def unpriced(desired: DesiredState) -> list[str]:
        now = time.time()
        return [model.name for model in desired.models if tariff.rate(model.name, now) is None]

    def served() -> Served:
        desired = state().desired
        models = frozenset(model.name for model in desired.models)
        return Served(models, frozenset(desired.names), frozenset(unpriced(desired)))

    administration = access.administration(time.time, secrets.token_bytes, served)
    denials = Denials(access.store.audit, time.time)

    def picture() -> ServiceState:
        now = state()
        words = access_of(settings, guard.has_keys)
        return msgspec.structs.replace(now, access=words, unpriced=unpriced(now.desired))

    proxies = TrustedProxies(settings.trusted_proxies)
    app = AdminApp(__version__, picture, page, guard, administration, denials, proxies, more)
    ended = asyncio.Event()
    works = (access.store.keep(), guard.follow(access.store.watch()), denials.write_regularly(), *fetching)
    try:
        async with beside(*works):
            listening = asyncio.create_task(serve_app(app, listener, ended, parser="h11", tls=tls_of(settings)))
            try:
                yield guard
            finally:
                ended.set()
                await listening
    finally:
        await asyncio.to_thread(denials.write)
