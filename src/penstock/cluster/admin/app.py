"""The routes of the admin listener, as one ASGI application.

In: a picture of the service and a way to gather metrics; out: JSON, or Prometheus' text format.
Reads only: nothing asked here changes the service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from penstock.asgi.respond import send_bytes, send_problem
from penstock.asgi.server import Receive, Scope, Send
from penstock.cluster.controller import ServiceState
from penstock.wire.errors import Problem

Page = tuple[bytes, bytes]
"""Content type and body."""

_JSON = b"application/json"


class AdminApp:
    """GET /health, /ready, /version, /metrics and /admin/state.  ``metrics()`` gives that page."""

    def __init__(self, version: str, state: Callable[[], ServiceState], metrics: Callable[[], Awaitable[Page]]) -> None:
        self._version = version
        self._state = state
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            content_type, body = await self._answer(scope["method"], scope["path"])
        except Problem as problem:
            await send_problem(send, problem)
        else:
            await send_bytes(send, body, content_type=content_type)

    async def _answer(self, method: str, path: str) -> Page:
        routes: dict[str, Callable[[], Awaitable[Page]]] = {
            "/health": self._health,
            "/ready": self._ready,
            "/version": self._say_version,
            "/metrics": self._page,
            "/admin/state": self._picture,
        }
        route = routes.get(path)
        if route is None:
            raise Problem("not_found", f"The admin listener has no route {path}; it has {', '.join(sorted(routes))}.")
        if method not in ("GET", "HEAD"):
            raise Problem("method_not_allowed", f"{path} answers GET, not {method}.")
        return await route()

    async def _health(self) -> Page:
        return _JSON, b'{"status":"ok"}'

    async def _ready(self) -> Page:
        state = self._state()
        if state.ready:
            return _JSON, b'{"status":"ready"}'
        if state.stage != "serving":
            raise Problem("draining", "The service is shutting down.")
        phases = ", ".join(f"{member.id} {member.phase}" for member in state.members)
        raise Problem("not_ready", f"Not ready yet: {phases}.")

    async def _say_version(self) -> Page:
        return _JSON, msgspec.json.encode({"version": self._version})

    async def _page(self) -> Page:
        return await self._metrics()

    async def _picture(self) -> Page:
        return _JSON, msgspec.json.encode(self._state())
