"""The data listener: an ASGI application of a dozen routes.

In: HTTP; out: OpenAI's bodies, streams and errors.  Decides nothing: the pipeline does.
Every data route goes through ``_data``, and that through ``Gateway.open``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from penstock import __version__
from penstock.asgi.proxies import TrustedProxies
from penstock.asgi.respond import JSON, Header, retry_after
from penstock.asgi.server import Receive, Scope, Send
from penstock.config.tenants import Role
from penstock.gateway.call import ClientGone
from penstock.gateway.http import data, openapi
from penstock.gateway.http.body import header, read_data_body, refuse_unread
from penstock.gateway.http.data import Exchange, Handler, HttpRules, while_connected
from penstock.gateway.http.embeddings import embeddings
from penstock.gateway.http.pipe import PIPE, Pipe
from penstock.gateway.http.presence import PRESENCE
from penstock.gateway.identify import REFUSALS, Credentials
from penstock.gateway.pipeline import Gateway
from penstock.gateway.replicas import not_served
from penstock.gateway.route import Offer
from penstock.wire.errors import Problem
from penstock.wire.openai import listing

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")
_MODEL_PREFIX = "/v1/models/"
_NOT_READY_RETRY_S = 1.0
_BODY_PROBLEMS = frozenset({"body_too_large", "request_timeout"})
_BEFORE_BODY = frozenset({"draining", *REFUSALS, "not_found", "method_not_allowed"})
"""Problems that are known before the body is read."""


class Route(NamedTuple):
    """``data`` routes are POST and go through the pipeline; the others are GET, given the path, and answer JSON.

    ``role``: whom it answers; ``None``: anybody, because it says nothing that is anybody's.
    """

    path: str
    role: Role | None
    data: Handler | None = None
    plain: Callable[[str, Credentials], bytes] | None = None


class App:
    """The ASGI application."""

    def __init__(self, gateway: Gateway, rules: HttpRules, proxies: TrustedProxies | None = None) -> None:
        self._gateway = gateway
        self._rules = rules
        self._proxies = proxies or TrustedProxies()
        routes = [
            Route("/v1/chat/completions", "user", data=data.chat_completions),
            Route("/v1/completions", "user", data=data.text_completions),
            Route("/v1/embeddings", "user", data=embeddings),
            Route("/tokenize", "user", data=data.tokenize),
            Route("/detokenize", "user", data=data.detokenize),
            Route("/v1/models", "user", plain=self._models),
            Route(_MODEL_PREFIX, "user", plain=self._model),
            Route("/health", None, plain=self._health),
            Route("/ready", None, plain=self._ready),
            Route("/version", None, plain=self._version),
            Route("/openapi.json", None, plain=openapi.page),
        ]
        self.routes = {route.path: route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]
        headers, pipe = self._headers(scope), scope["extensions"][PIPE]
        try:
            route = self._match(scope, headers)
            if route.data is not None:
                await self._data(route.path, route.data, scope, receive, pipe, headers)
            elif route.plain is not None:
                await pipe.answer([JSON, *headers], route.plain(scope["path"], self._credentials(scope)))
        except Problem as problem:
            await self._answer_problem(problem, scope, receive, send, headers)

    def _match(self, scope: Scope, headers: list[Header]) -> Route:
        """The route, or ``Problem``; a wrong method gets its ``allow`` header."""
        path: str = scope["path"]
        route = self.routes.get(path)
        if route is None and path.startswith(_MODEL_PREFIX):
            route = self.routes[_MODEL_PREFIX]
        if route is None:
            raise Problem("not_found", f"There is no {path[:200]!r} here.")
        allowed = ("POST",) if route.data else ("GET", "HEAD")
        if scope["method"] not in allowed:
            headers.append((b"allow", ", ".join(allowed).encode()))
            raise Problem("method_not_allowed", f"{route.path} takes {' and '.join(allowed)} only.")
        return route

    async def _data(
        self, path: str, handle: Handler, scope: Scope, receive: Receive, pipe: Pipe, headers: list[Header]
    ) -> None:
        """One data request.  A client that goes away cancels whatever is done for it, and gets nothing."""
        exchange: Exchange | None = None
        try:
            with self._gateway.open(path, self._credentials(scope)) as call:
                call.request_id = headers[0][1].decode("ascii")  # it is the first that every response has
                call.session = (header(scope, b"x-session-id") or b"").decode("latin-1")
                exchange = Exchange(self._gateway, call, self._rules, pipe, headers)
                rules = self._rules
                body = await read_data_body(scope, receive, pipe, rules.max_body_bytes, rules.body_timeout_s)
                await while_connected(exchange, scope["extensions"][PRESENCE], handle, body)
            return
        except ClientGone:
            return
        except Problem as raised:
            problem = raised
        except Exception:
            _log.exception("request %s ended by a bug", exchange and exchange.call.id)
            problem = Problem("internal_error", "Something went wrong here; the log has the details.")
        finally:
            if exchange is not None and exchange.stream is not None:
                exchange.stream.stop()
        if exchange is None or exchange.stream is None or not exchange.stream.begun:
            headers += exchange.limits() if exchange is not None else []
            raise problem
        await exchange.stream.fail(problem)

    async def _answer_problem(
        self, problem: Problem, scope: Scope, receive: Receive, send: Send, headers: list[Header]
    ) -> None:
        """The error as a response; the unread rest of a body is read and dropped, and the connection ends."""
        if problem.code == "invalid_api_key":
            headers.append((b"www-authenticate", b"Bearer"))
        declared = header(scope, b"content-length")
        has_body = declared not in (None, b"0") or header(scope, b"transfer-encoding") is not None
        if problem.code in _BODY_PROBLEMS or (has_body and problem.code in _BEFORE_BODY):
            await refuse_unread(send, receive, problem, [*headers, *retry_after(problem)])
        else:
            pipe, body = scope["extensions"][PIPE], msgspec.json.encode(problem.body())
            await pipe.answer([JSON, *headers, *retry_after(problem)], body, problem.spec.status)

    def _headers(self, scope: Scope) -> list[Header]:
        """Headers of every response: the request's id, the caller's own if it is a sane one."""
        sent = header(scope, b"x-request-id")
        request_id = sent if sent and _REQUEST_ID.fullmatch(sent) else b"req-" + os.urandom(16).hex().encode()
        headers = [(b"x-request-id", request_id)]
        if self._gateway.draining:
            headers.append((b"connection", b"close"))
        return headers

    def _credentials(self, scope: Scope) -> Credentials:
        return Credentials(
            authorization=header(scope, b"authorization"),
            api_key=header(scope, b"x-api-key"),
            address=self._proxies.client(scope),
        )

    def _models(self, _path: str, credentials: Credentials) -> bytes:
        return listing.encode_models([_card(offer) for offer in self._gateway.visible(credentials)])

    def _model(self, path: str, credentials: Credentials) -> bytes:
        name = path.removeprefix(_MODEL_PREFIX)
        for offer in self._gateway.visible(credentials):
            if offer.name == name:
                return listing.encode_model(_card(offer))
        raise not_served(name)

    def _health(self, _path: str, _credentials: Credentials) -> bytes:
        return b'{"status":"ok"}'

    def _ready(self, _path: str, _credentials: Credentials) -> bytes:
        if not self._gateway.ready:
            what = "is draining" if self._gateway.draining else "has a model without a ready replica"
            raise Problem("not_ready", f"This server {what}.", retry_after_s=_NOT_READY_RETRY_S)
        return b'{"status":"ready"}'

    def _version(self, _path: str, _credentials: Credentials) -> bytes:
        return msgspec.json.encode({"version": __version__})


def _card(offer: Offer) -> listing.ModelCard:
    state = offer.state
    return listing.ModelCard(
        id=offer.name,
        created=state.model.created,
        max_model_len=state.context_tokens,
        quantization=state.quantization,
        parent=state.model.parent or None,
    )
