"""The engine protocol over HTTP: routes, and the life of one stream.

In: ASGI; out: NDJSON streams and JSON.  Knows no torch: what the verbs do is :mod:`penstock.engine.server.service`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from penstock.asgi.body import ClientGoneError, read_body
from penstock.asgi.respond import send_json, send_problem
from penstock.asgi.server import Receive, Scope, Send
from penstock.engine.server.service import Opened, Service
from penstock.engine.server.stream import is_terminal
from penstock.wire import engine as protocol
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.errors import Problem
from penstock.wire.load import Load, ProgressRequest
from penstock.wire.tokenization import DetokenizeRequest, TokenizeRequest

_log = logging.getLogger(__name__)
_MAX_BODY_BYTES = 64 * 1024 * 1024
_BODY_TIMEOUT_S = 30.0
_LINES = [(b"content-type", b"application/x-ndjson")]

T = TypeVar("T", bound=msgspec.Struct)


class EngineApp:
    """ASGI application of one engine.  ``status`` tells how it is; ``service`` is set once it is ready."""

    def __init__(self, status: Callable[[], Load], samples: Callable[[], object], drain: Callable[[], None]):
        self.service: Service | None = None
        self._status = status
        self._samples = samples
        self._drain = drain
        self._routes: dict[tuple[str, str], Callable[[Scope, Receive, Send], Awaitable[None]]] = {
            ("POST", protocol.GENERATE): self._generate,
            ("POST", protocol.EMBED): self._embed,
            ("POST", protocol.ABORT): self._abort,
            ("POST", protocol.PROGRESS): self._progress,
            ("POST", protocol.DRAIN): self._start_drain,
            ("POST", protocol.TOKENIZE): self._tokenize,
            ("POST", protocol.DETOKENIZE): self._detokenize,
            ("POST", protocol.LOAD_ADAPTER): self._load_adapter,
            ("POST", protocol.UNLOAD_ADAPTER): self._unload_adapter,
            ("GET", protocol.LOAD): self._load,
            ("GET", protocol.METRICS): self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"]))
        try:
            if route is None:
                raise Problem("not_found", f"There is no route {scope['method']} {scope['path']} here.")
            await route(scope, receive, send)
        except Problem as problem:
            await send_problem(send, problem)
        except ClientGoneError:
            _log.debug("a client left before its request was complete")
        except Exception:
            _log.exception("%s raised", scope["path"])
            await send_problem(send, Problem("internal_error", "The engine could not handle this request."))

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _decoded(scope, receive, protocol.GenerateRequest)
        service = self._ready(new_work=True)
        opened = await service.generate(request)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": _LINES,
            }
        )
        watching = asyncio.create_task(_close_when_gone(receive, service, request.id, opened))
        try:
            ended = False
            while not ended:
                events = await opened.stream.drain()
                ended = is_terminal(events[-1])
                body = b"".join(map(protocol.encode_line, events))
                await send({"type": "http.response.body", "body": body, "more_body": not ended})
        finally:
            watching.cancel()
            service.close(request.id, opened)

    async def _embed(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _decoded(scope, receive, EmbedRequest)
        begun = False

        async def accept(accepted: protocol.Accepted) -> None:
            nonlocal begun
            begun = True
            await send({"type": "http.response.start", "status": 200, "headers": _LINES})
            await send({"type": "http.response.body", "body": protocol.encode_line(accepted), "more_body": True})

        working = asyncio.create_task(self._ready(new_work=True).embed(request, accept))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGoneError
            event: Embedded | protocol.Failed = working.result()
        except Problem as problem:
            if not begun:
                raise
            event = protocol.failed(problem)
        finally:
            leaving.cancel()
            working.cancel()
        await send({"type": "http.response.body", "body": protocol.encode_line(event), "more_body": False})

    async def _abort(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _decoded(scope, receive, protocol.AbortRequest)
        self._ready().abort(request.id)
        await send_json(send, {})

    async def _progress(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _decoded(scope, receive, ProgressRequest)
        await send_json(send, self._ready().progress(request))

    async def _start_drain(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._drain()
        await send_json(send, self._status())

    async def _tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _decoded(scope, receive, TokenizeRequest)
        await send_json(send, await self._ready().tokenize(request))

    async def _detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _decoded(scope, receive, DetokenizeRequest)
        await send_json(send, await self._ready().detokenize(request))

    async def _load_adapter(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _decoded(scope, receive, protocol.LoadAdapter)
        await send_json(send, await self._ready().load_adapter(request))

    async def _unload_adapter(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _decoded(scope, receive, protocol.UnloadAdapter)
        self._ready().unload_adapter(request)
        await send_json(send, {})

    async def _load(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, self._status())

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, self._samples())

    def _ready(self, *, new_work: bool = False) -> Service:
        phase = self._status().phase
        if phase == "draining" and new_work:
            raise Problem("draining", "This engine takes no new requests.", retry_after_s=1)
        if self.service is None:
            raise Problem("not_ready", f"This engine is {phase}.", retry_after_s=1)
        return self.service


async def _decoded(scope: Scope, receive: Receive, kind: type[T]) -> T:
    body = await read_body(scope, receive, max_bytes=_MAX_BODY_BYTES, timeout_s=_BODY_TIMEOUT_S)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("invalid_json", f"This is not the engine protocol: {error}.") from None


async def _close_when_gone(receive: Receive, service: Service, request_id: str, opened: Opened) -> None:
    await _until_gone(receive)
    service.close(request_id, opened)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
