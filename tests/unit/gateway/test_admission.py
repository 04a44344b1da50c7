"""No data route is reached but through the one admission function."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest

from penstock.asgi.server import Scope
from penstock.gateway.http.app import App
from penstock.gateway.http.data import HttpRules
from penstock.gateway.http.pipe import PIPE
from penstock.wire.errors import Problem

OPEN_TO_ALL = {"/health", "/ready", "/version", "/openapi.json"}


class Closed:
    """A gateway that admits nobody, and notes what it was asked."""

    draining = False

    def __init__(self) -> None:
        self.opened: list[str] = []

    def open(self, route: str, credentials: Any) -> AbstractContextManager[Any]:
        self.opened.append(route)
        raise Problem("draining", "closed")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a refused request reached gateway.{name}")


class Answered:
    """A pipe that remembers the status of its answer."""

    status = 0

    async def answer(self, headers: Any, body: bytes, status: int = 200) -> None:
        self.status = status


async def ask(app: App, path: str) -> int:
    async def send(message: Any) -> None:
        raise AssertionError("nothing was left unread")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    pipe = Answered()
    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": [], "client": ("127.0.0.1", 1)}
    scope["extensions"] = {PIPE: pipe}
    await app(scope, receive, send)
    return pipe.status


def routes() -> list[Any]:
    return list(App(Closed(), HttpRules()).routes.values())  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [route.path for route in routes() if route.data is not None])
async def test_every_data_route_goes_through_open(path: str) -> None:
    """What ``open`` refuses is refused on every data route, before anything else of the gateway is touched."""
    gateway = Closed()
    assert await ask(App(gateway, HttpRules()), path) == 503  # type: ignore[arg-type]
    assert gateway.opened == [path]


def test_every_route_declares_whom_it_answers() -> None:
    """All but the probes are for users; a route without a role is a probe that was listed as one."""
    assert {route.path for route in routes() if route.role is None} == OPEN_TO_ALL
    assert all(route.role == "user" for route in routes() if route.data is not None)
