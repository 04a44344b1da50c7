"""The routes of the admin listener, as one ASGI application.

In: a picture of the service, a way to gather metrics, and the acts on tenants and keys; out: JSON, or Prometheus' text.
Every route declares whom it answers; whoever that is, is decided before a body is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from penstock.asgi.body import ClientGoneError, read_body
from penstock.asgi.proxies import TrustedProxies
from penstock.asgi.respond import send_bytes, send_problem
from penstock.asgi.server import Receive, Scope, Send
from penstock.cluster.admin import openapi
from penstock.cluster.admin.guard import Guard
from penstock.cluster.state import ServiceState
from penstock.config.tenants import Principal, Role
from penstock.store.administer import Administration
from penstock.store.audit import Entry
from penstock.store.representations import IssuedKey, KeyView, NewKey, NewTenant, Rotation, TenantChange, TenantView
from penstock.wire.errors import Problem

Page = tuple[bytes, bytes]
"""Content type and body."""

_JSON = b"application/json"
_MAX_BODY_BYTES = 256 * 1024
_BODY_TIMEOUT_S = 10.0
_AUDIT_ROWS = 1000
_log = logging.getLogger(__name__)


class Deleted(msgspec.Struct, frozen=True):
    """What is gone."""

    deleted: str


class Asked(NamedTuple):
    """One request: who asks, the part of the path that the route leaves open, and the decoded body."""

    actor: Principal | None
    name: str
    body: Any


class AdminRoute(NamedTuple):
    """``role``: whom it answers, ``None``: anybody.  ``answer`` runs in a thread and gives what is sent as JSON.

    ``is_state``: it only tells how the service is, and asks for no key while only this machine can reach it.
    """

    words: str
    role: Role | None = "admin"
    answer: Callable[[Asked], Any] | None = None
    page: Callable[[], Awaitable[Page]] | None = None
    takes: type[msgspec.Struct] | None = None
    gives: Any = None
    status: int = 200
    is_state: bool = False


class AdminApp:
    """The ASGI application.  ``metrics()`` gives that page; ``denied(address, why)`` hears who was turned away.

    ``more``: routes of acts that are not about tenants and keys.
    """

    def __init__(
        self,
        version: str,
        state: Callable[[], ServiceState],
        metrics: Callable[[], Awaitable[Page]],
        guard: Guard,
        administration: Administration,
        denied: Callable[[str, str], None],
        proxies: TrustedProxies | None = None,
        more: Mapping[tuple[str, str], AdminRoute] | None = None,
    ) -> None:
        self._version = version
        self._state = state
        self._metrics = metrics
        self._guard = guard
        self._denied = denied
        self._proxies = proxies or TrustedProxies()
        self.routes = {**self._probes(), **_tenancy(administration), **(more or {})}
        self._document = msgspec.json.encode(openapi.document(version, self.routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            status, content_type, body = await self._answer(scope, receive)
        except ClientGoneError:
            return
        except Problem as problem:
            await send_problem(send, problem)
        except Exception:
            _log.exception("an administrative request ended by a bug")
            await send_problem(send, Problem("internal_error", "Something went wrong here; the log has the details."))
        else:
            await send_bytes(send, body, content_type=content_type, status=status)

    def _probes(self) -> dict[tuple[str, str], AdminRoute]:
        return {
            ("GET", "/health"): AdminRoute("200 while the process answers.", None, page=self._health),
            ("GET", "/ready"): AdminRoute("200 once requests are served.", None, page=self._ready),
            ("GET", "/version"): AdminRoute("The version of Penstock.", None, page=self._say_version),
            ("GET", "/metrics"): AdminRoute("All metrics.", page=self._metrics, is_state=True),
            ("GET", "/admin/state"): AdminRoute("The processes.", page=self._picture, is_state=True),
            ("GET", "/admin/openapi.json"): AdminRoute("This document.", None, page=self._openapi),
        }

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes, bytes]:
        route, name = self._match(scope["method"], scope["path"])
        try:
            actor = self._guard.admit(scope, route.role, is_state=route.is_state)
        except Problem as problem:
            self._denied(self._proxies.client(scope), f"{problem.code} at the admin listener")
            raise
        if route.page is not None:
            return 200, *await route.page()
        assert route.answer is not None
        body = None
        if scope["method"] != "GET":
            sent = await read_body(scope, receive, max_bytes=_MAX_BODY_BYTES, timeout_s=_BODY_TIMEOUT_S)
            _check_content_type(scope["headers"])
            body = _decoded(sent, route.takes) if route.takes is not None else None
        answer = await asyncio.to_thread(route.answer, Asked(actor, name, body))
        return route.status, _JSON, msgspec.json.encode(answer)

    def _match(self, method: str, path: str) -> tuple[AdminRoute, str]:
        """The route and what stands for ``{name}``; segments are compared as they are, nothing is normalised."""
        wanted = "GET" if method == "HEAD" else method
        other = []
        for (verb, template), route in self.routes.items():
            found, name = _fits(template, path)
            if found and verb == wanted:
                return route, name
            if found:
                other.append(verb)
        if other:
            raise Problem("method_not_allowed", f"{path[:200]} answers {', '.join(other)}, not {method[:20]}.")
        known = ", ".join(sorted({template for _, template in self.routes}))
        raise Problem("not_found", f"The admin listener has no route {path[:200]}; it has {known}.")

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

    async def _picture(self) -> Page:
        return _JSON, msgspec.json.encode(self._state())

    async def _openapi(self) -> Page:
        return _JSON, self._document


def _tenancy(acts: Administration) -> dict[tuple[str, str], AdminRoute]:
    return {
        ("GET", "/admin/keys"): AdminRoute(
            "The keys.", answer=lambda asked: acts.keys(asked.actor), gives=list[KeyView]
        ),
        ("POST", "/admin/keys"): AdminRoute(
            "A new key; its secret is shown this once.",
            answer=lambda asked: acts.create_key(asked.actor, asked.body),
            takes=NewKey,
            gives=IssuedKey,
            status=201,
        ),
        ("GET", "/admin/keys/{name}"): AdminRoute(
            "One key.", answer=lambda asked: acts.key(asked.actor, asked.name), gives=KeyView
        ),
        ("POST", "/admin/keys/{name}/rotate"): AdminRoute(
            "A new secret for a key.",
            answer=lambda asked: acts.rotate_key(asked.actor, asked.name, asked.body),
            takes=Rotation,
            gives=IssuedKey,
        ),
        ("DELETE", "/admin/keys/{name}"): AdminRoute(
            "Revokes a key.", answer=lambda asked: acts.revoke_key(asked.actor, asked.name), gives=KeyView
        ),
        ("GET", "/admin/tenants"): AdminRoute(
            "The tenants.", answer=lambda asked: acts.tenants(asked.actor), gives=list[TenantView]
        ),
        ("POST", "/admin/tenants"): AdminRoute(
            "A new tenant.",
            answer=lambda asked: acts.create_tenant(asked.actor, asked.body),
            takes=NewTenant,
            gives=TenantView,
            status=201,
        ),
        ("GET", "/admin/tenants/{name}"): AdminRoute(
            "One tenant.", answer=lambda asked: acts.tenant(asked.actor, asked.name), gives=TenantView
        ),
        ("PATCH", "/admin/tenants/{name}"): AdminRoute(
            "Changes a tenant; what is left out stays.",
            answer=lambda asked: acts.set_tenant(asked.actor, asked.name, asked.body),
            takes=TenantChange,
            gives=TenantView,
        ),
        ("DELETE", "/admin/tenants/{name}"): AdminRoute(
            "Deletes a tenant without keys.", answer=lambda asked: _delete_tenant(acts, asked), gives=Deleted
        ),
        ("GET", "/admin/audit"): AdminRoute(
            "The newest rows of the audit log.",
            answer=lambda asked: acts.audit(asked.actor, _AUDIT_ROWS),
            gives=list[Entry],
        ),
    }


def _delete_tenant(acts: Administration, asked: Asked) -> Deleted:
    acts.delete_tenant(asked.actor, asked.name)
    return Deleted(deleted=asked.name)


def _fits(template: str, path: str) -> tuple[bool, str]:
    """Whether a path is of this form, and its ``{name}``."""
    wanted, given = template.split("/"), path.split("/")
    if len(wanted) != len(given):
        return False, ""
    name = ""
    for part, segment in zip(wanted, given, strict=True):
        if part == "{name}" and segment:
            name = segment
        elif part != segment:
            return False, ""
    return True, name


def _check_content_type(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Only JSON: a page in a browser can send any other type here without asking first."""
    sent = next((value for key, value in headers if key == b"content-type"), b"")
    if sent.split(b";")[0].strip().lower() != _JSON:
        raise Problem("unsupported_media_type", "The content type has to be application/json.")


def _decoded(body: bytes, kind: type[msgspec.Struct]) -> msgspec.Struct:
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise Problem("invalid_value", f"{str(error)[:500]}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem("invalid_json", f"The body is not JSON: {str(error)[:200]}.") from None
