"""A scripted OpenAI-compatible server on a real socket, in its own thread, with delays and faults to order."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from aiohttp import web


@dataclass(frozen=True)
class Behaviour:
    """How one request is answered.  ``*_after`` counts tokens; ``tokens`` overrides max_tokens."""

    first_s: float = 0.0
    gap_s: float = 0.0
    tokens: int | None = None
    text: str = "word "
    thoughts: int = 0
    """So many of the tokens are reasoning, and come first."""
    status: int = 200
    reply: bytes = b'{"error": {"message": "try later", "type": "server_error", "code": "overloaded"}}'
    usage: bool = True
    fail_after: int | None = None
    truncate_after: int | None = None
    drop_after: int | None = None
    garbage: bool = False


@dataclass
class ScriptedServer:
    """``behave(number, body)`` decides each answer; ``requests`` has the bodies, ``aborted`` the broken-off answers."""

    behave: Callable[[int, dict[str, Any]], Behaviour] = lambda number, body: Behaviour()
    models: list[str] = field(default_factory=lambda: ["scripted", "other"])
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    aborted: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for(self, true: Callable[[], bool], timeout_s: float = 10.0) -> bool:
        """Wait until ``true()``, which is looked at whenever a request comes, advances or ends."""
        with self.changed:
            return self.changed.wait_for(true, timeout_s)

    def note(self) -> None:
        with self.changed:
            self.changed.notify_all()


@pytest.fixture
def scripted_server() -> Iterator[ScriptedServer]:
    """A running server; set ``behave`` before sending."""
    pytest.importorskip("aiohttp")
    server = ScriptedServer()
    loop = asyncio.new_event_loop()
    runner = loop.run_until_complete(_start(server))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield server
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


async def _start(server: ScriptedServer) -> Any:
    from aiohttp import web

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in server.models]})

    async def generate(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        behaviour = server.behave(len(server.requests), body)
        server.headers.append(dict(request.headers))
        server.requests.append(body)
        server.note()
        if behaviour.status != 200:
            return web.Response(status=behaviour.status, body=behaviour.reply)
        try:
            return await _stream(server, request, body, behaviour)
        except (asyncio.CancelledError, ConnectionError):
            server.aborted += 1
            server.note()
            raise

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/completions", generate)
    app.router.add_post("/v1/chat/completions", generate)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    return runner


async def _stream(
    server: ScriptedServer, request: Any, body: dict[str, Any], behaviour: Behaviour
) -> web.StreamResponse:
    from aiohttp import web

    reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await reply.prepare(request)
    chat = "messages" in body

    async def send(event: dict[str, Any] | str) -> None:
        payload = event if isinstance(event, str) else json.dumps(event)
        await reply.write(f"data: {payload}\n\n".encode())
        server.note()

    if chat:
        await send({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    if behaviour.garbage:
        await send("{not json")
        return reply
    tokens = behaviour.tokens if behaviour.tokens is not None else body.get("max_tokens", 4)
    for i in range(tokens):
        if behaviour.fail_after == i:
            await send({"error": {"message": "the engine is gone", "type": "server_error", "code": "engine_lost"}})
            await send("[DONE]")
            return reply
        if behaviour.truncate_after == i:
            return reply
        if behaviour.drop_after == i:
            request.transport.abort()
            return reply
        await asyncio.sleep(behaviour.gap_s if i else behaviour.first_s)
        finish = "length" if i == tokens - 1 else None
        field = "content" if i >= behaviour.thoughts else "reasoning_content"
        part = {"delta": {field: behaviour.text}} if chat else {"text": behaviour.text}
        await send({"choices": [{"index": 0, **part, "finish_reason": finish}]})
    if behaviour.usage and body.get("stream_options", {}).get("include_usage"):
        prompt = body.get("prompt")
        num_prompt = len(prompt) if isinstance(prompt, list) else 7
        usage = {
            "prompt_tokens": num_prompt,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": 1},
        }
        await send({"choices": [], "usage": usage})
    await send("[DONE]")
    return reply


@pytest.fixture
def behaviour() -> type[Behaviour]:
    """The class, since test files cannot import this one."""
    return Behaviour
