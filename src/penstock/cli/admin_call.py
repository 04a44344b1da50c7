"""One request to the admin listener of a service on this machine, as its operator.

In: a running service, a method, a path and a body; out: the decoded answer, or the ``Problem`` that was answered.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from penstock.wire.engine import Failed, problem_of
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.cluster.rundir import Service

T = TypeVar("T")


class _ErrorMember(msgspec.Struct, frozen=True):
    message: str
    code: str


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorMember


def call_admin(
    service: Service, method: str, path: str, kind: type[T], body: msgspec.Struct | None = None, *, timeout_s: float
) -> T:
    """Raises ``Problem``: ``server_unreachable`` where nobody answers as a service does, else the answer's own."""
    import urllib.error
    import urllib.request

    # Without the environment's proxies: the address is this machine's own.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if service.tls_cert:
        from penstock.asgi.tls import client_context

        handlers.append(urllib.request.HTTPSHandler(context=client_context(Path(service.tls_cert))))
    headers = {"authorization": f"Bearer {service.token}", "content-type": "application/json"}
    content = None if body is None else msgspec.json.encode(body)
    question = urllib.request.Request(f"{service.admin_url}{path}", content, headers, method=method)
    try:
        with urllib.request.build_opener(*handlers).open(question, timeout=timeout_s) as response:
            return msgspec.json.decode(response.read(), type=kind)
    except urllib.error.HTTPError as error:
        raise _problem_of(error.read(), service) from None
    except (OSError, msgspec.MsgspecError):
        raise _unreachable(service) from None


def _problem_of(body: bytes, service: Service) -> Problem:
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.MsgspecError:
        return _unreachable(service)
    return problem_of(Failed(code=error.code, message=error.message))


def _unreachable(service: Service) -> Problem:
    return Problem("server_unreachable", f"The admin listener {service.admin_url} of {service.model} does not answer.")
