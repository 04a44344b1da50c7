"""Errors: the right status, OpenAI's body, the field's name, and nothing of what is inside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from penstock.conformance.check import Check, NotApplicable, demand, error_of, hides_internals
from penstock.conformance.endpoint import Endpoint, Reply

_CHAT = "/chat/completions"
_LARGE_BYTES = 16 * 1024 * 1024
_DEPTH = 20_000


def _refused(status: int, method: str, path: str, make: Callable[[Endpoint], Any] | None, names: str = "") -> Any:
    """A check that a request is refused with this status, naming the field."""

    async def check(endpoint: Endpoint) -> str:
        body = None if make is None else make(endpoint)
        return _refusal(await endpoint.ask(method, path, body), status, names)

    return check


def _refusal(reply: Reply, status: int, names: str = "") -> str:
    demand(reply.status == status, f"instead of {status} the answer is {reply}")
    error = error_of(reply)
    hides_internals(reply.body)
    if names:
        told = names in (error.get("param") or "") or names in error["message"]
        demand(told, f"{names} is not named: {reply}")
    return f"{status} {error.get('code')}"


async def a_large_body(endpoint: Endpoint) -> str:
    large = endpoint.chat_body(messages=[{"role": "user", "content": "a " * (_LARGE_BYTES // 2)}])
    reply = await endpoint.ask("POST", _CHAT, large)
    if reply.status == 200:
        raise NotApplicable(f"a body of {_LARGE_BYTES >> 20} MiB is taken")
    return _refusal(reply, 413)


async def a_deep_body(endpoint: Endpoint) -> str:
    deep = b'{"model":1,"messages":' + b"[" * _DEPTH + b"]" * _DEPTH + b"}"
    told = _refusal(await endpoint.ask("POST", _CHAT, deep), 400)
    after = await endpoint.ask("GET", "/models")
    demand(after.status == 200, f"afterwards /models answers {after}")
    return told


async def a_missing_key(endpoint: Endpoint) -> str:
    return await _with_key(endpoint, {"authorization": ""})


async def a_wrong_key(endpoint: Endpoint) -> str:
    return await _with_key(endpoint, {"authorization": "Bearer not-a-key-of-anybody"})


async def _with_key(endpoint: Endpoint, headers: dict[str, str]) -> str:
    if not endpoint.api_key:
        raise NotApplicable("no key was given, so the endpoint is taken to be open")
    return _refusal(await endpoint.ask("POST", _CHAT, endpoint.chat_body(), headers), 401)


async def has_a_request_id(endpoint: Endpoint) -> str:
    good = await endpoint.chat()
    bad = await endpoint.ask("POST", _CHAT, b"{")
    ids = [reply.headers.get("x-request-id") for reply in (good, bad)]
    demand(all(ids) and ids[0] != ids[1], f"x-request-id of a good and a bad request: {ids}")
    return f"{ids[0]}, {ids[1]}"


def _unknown_model(endpoint: Endpoint) -> Any:
    return endpoint.chat_body(model="no-such-model-anywhere")


def _without_messages(endpoint: Endpoint) -> Any:
    return {"model": endpoint.model}


def _warm_words(endpoint: Endpoint) -> Any:
    return endpoint.chat_body(temperature="warm")


def _too_warm(endpoint: Endpoint) -> Any:
    return endpoint.chat_body(temperature=99)


def _no_role(endpoint: Endpoint) -> Any:
    return endpoint.chat_body(messages=[{"role": "nobody", "content": "x"}])


_Run = Callable[[Endpoint], Awaitable[str]]
_MALFORMED: _Run = _refused(400, "POST", _CHAT, lambda _: b'{"model": "m", ')
_NOT_UTF8: _Run = _refused(400, "POST", _CHAT, lambda _: b'{"model": "\xff\xfe"}')
_LIST: _Run = _refused(400, "POST", _CHAT, lambda _: b"[1, 2]")

CHECKS = (
    Check("error-model", "An unknown model is 404.", _refused(404, "POST", _CHAT, _unknown_model)),
    Check("error-json", "A body that is no JSON is 400.", _MALFORMED),
    Check("error-utf8", "A body that is no UTF-8 is 400.", _NOT_UTF8),
    Check("error-object", "A body that is no object is 400.", _LIST),
    Check("error-depth", "A body nested 20,000 deep is 400, and the endpoint goes on.", a_deep_body),
    Check(
        "error-missing",
        "A missing field is 400 and named.",
        _refused(400, "POST", _CHAT, _without_messages, "messages"),
    ),
    Check(
        "error-type",
        "A field of a wrong type is 400 and named.",
        _refused(400, "POST", _CHAT, _warm_words, "temperature"),
    ),
    Check(
        "error-range", "A value out of range is 400 and named.", _refused(400, "POST", _CHAT, _too_warm, "temperature")
    ),
    Check(
        "error-role", "A message of an unknown role is 400 and named.", _refused(400, "POST", _CHAT, _no_role, "role")
    ),
    Check("error-method", "A wrong method is 405.", _refused(405, "GET", _CHAT, None)),
    Check("error-route", "An unknown route is 404.", _refused(404, "GET", "/no/such/route", None)),
    Check("error-large", "A body that is too large is 413.", a_large_body),
    Check("error-no-key", "A request without its key is 401.", a_missing_key),
    Check("error-wrong-key", "A request with a wrong key is 401.", a_wrong_key),
    Check("error-request-id", "Every answer, good or bad, has an x-request-id of its own.", has_a_request_id),
)
