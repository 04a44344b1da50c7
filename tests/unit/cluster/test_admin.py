"""The admin listener's routes, and metrics gathered from processes that may be in trouble."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.asgi.respond import send_bytes
from penstock.asgi.server import Receive, Scope, Send, bind_unix, serve_app
from penstock.cluster.admin.app import AdminApp
from penstock.cluster.admin.gather import Gather
from penstock.cluster.admin.guard import Guard
from penstock.cluster.state import MemberState, ServiceState
from penstock.config.desired import DesiredState
from penstock.observe import exposition, samples
from penstock.observe.samples import Sample
from penstock.wire.load import Load

STATE = ServiceState(
    stage="serving",
    ready=True,
    desired=DesiredState(version=3),
    members=[
        MemberState(
            id="engine-0", kind="engine", phase="ready", why="ready", pid=5, restarts=1, load=Load(phase="ready")
        )
    ],
)

GUARD = Guard(b"s" * 32, "token", lambda: 0.0, state_is_open=True, open_without_keys=True)
NO_ACTS: Any = None


def get(path: str, state: ServiceState = STATE, method: str = "GET") -> tuple[int, str, bytes]:
    sent: list[MutableMapping[str, Any]] = []

    async def metrics() -> tuple[bytes, bytes]:
        return b"text/plain", b"page"

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    app = AdminApp("1.2.3", lambda: state, metrics, GUARD, NO_ACTS, lambda address, why: None)
    asyncio.run(app({"type": "http", "method": method, "path": path, "headers": []}, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"])[b"content-type"].decode(), body


def test_health_is_about_the_process_and_readiness_about_the_service() -> None:
    """/health is 200 whatever the engines do; /ready is 503 with the phases until the service is ready."""
    loading = msgspec.structs.replace(STATE, ready=False)
    assert get("/health", loading)[0] == 200
    assert get("/ready")[0] == 200
    status, _, body = get("/ready", loading)
    assert status == 503
    assert msgspec.json.decode(body)["error"]["code"] == "not_ready"
    assert b"engine-0 ready" in body


def test_a_draining_service_is_not_ready() -> None:
    """Its code says that it will not come back."""
    status, _, body = get("/ready", msgspec.structs.replace(STATE, ready=False, stage="draining"))
    assert (status, msgspec.json.decode(body)["error"]["code"]) == (503, "draining")


def test_the_state_has_replicas_with_phase_restarts_and_pid() -> None:
    """/admin/state decodes into the same picture."""
    status, content_type, body = get("/admin/state")
    assert (status, content_type) == (200, "application/json")
    assert msgspec.json.decode(body, type=ServiceState) == STATE


def test_version_and_metrics() -> None:
    """/version has the release, /metrics the page with its own content type."""
    assert get("/version")[2] == b'{"version":"1.2.3"}'
    assert get("/metrics") == (200, "text/plain", b"page")


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/nope", "GET", 404), ("/metrics/", "GET", 404), ("/ready", "POST", 405)]
)
def test_other_paths_and_methods_get_openai_errors(path: str, method: str, status: int) -> None:
    """404 lists the routes there are; 405 names the method."""
    answered, content_type, body = get(path, method=method)
    assert (answered, content_type) == (status, "application/json")
    assert "message" in msgspec.json.decode(body)["error"]


def test_metrics_come_from_every_process_that_answers_and_wait_for_none() -> None:
    """One process answers, one is silent, one talks nonsense, one is gone: the page has the first and the own."""

    async def healthy(scope: Scope, receive: Receive, send: Send) -> None:
        body = samples.encode([Sample(name="penstock_test_value", value=7.0)])
        await send_bytes(send, body, content_type=b"application/json")

    async def nonsense(scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(send, b'{"a": 1}', content_type=b"application/json")

    async def check(home: str) -> bytes:
        stop = asyncio.Event()
        sockets = {name: f"{home}/{name}.sock" for name in ("healthy", "nonsense", "silent", "gone")}
        servers = [
            asyncio.create_task(serve_app(app, bind_unix(sockets[app.__name__]), stop)) for app in (healthy, nonsense)
        ]
        silent = socket.socket(socket.AF_UNIX)
        silent.bind(sockets["silent"])
        silent.listen()
        gather = Gather(
            {name: (path, "/metrics") for name, path in sockets.items()},
            lambda: [Sample(name="penstock_own_value", value=1.0)],
            exposition.render,
            exposition.CONTENT_TYPE,
            timeout_s=0.3,
        )
        began = time.monotonic()
        _, page = await gather()
        assert time.monotonic() - began < 5.0
        silent.close()
        stop.set()
        await asyncio.gather(*servers)
        return page

    with tempfile.TemporaryDirectory(prefix="pk") as home:
        page = asyncio.run(check(str(Path(home))))
    assert b'penstock_test_value{process="healthy"} 7.0' in page
    assert b'penstock_own_value{process="controller"} 1.0' in page
    for absent in (b"silent", b"nonsense", b"gone"):
        assert absent not in page


def test_a_head_without_end_is_not_kept() -> None:
    """With the bounding parser a listener ends the connection of a client whose head grows and grows."""

    async def flood() -> None:
        app = AdminApp("1", lambda: STATE, _no_page, GUARD, NO_ACTS, lambda address, why: None)
        listener, stop = socket.create_server(("127.0.0.1", 0)), asyncio.Event()
        serving = asyncio.create_task(serve_app(app, listener, stop, parser="h11"))
        _, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(200):
                writer.write(b"x-a: " + b"b" * 65_536 + b"\r\n")
                await writer.drain()
        writer.close()
        stop.set()
        await serving

    asyncio.run(flood())


async def _no_page() -> tuple[bytes, bytes]:
    return b"text/plain", b""
