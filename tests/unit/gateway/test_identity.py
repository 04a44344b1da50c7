"""Who may ask the data listener, and what they see."""

from __future__ import annotations

import asyncio
import json
import time

import msgspec
import pytest

from penstock.config.tenants import TOP, Access, ApiKey, Rights, Tenant
from penstock.gateway.route import Router
from penstock.wire.credentials import digest_of
from penstock.wire.errors import Problem

SERVER_SECRET = b"s" * 32
BODY = {"model": "org/m", "messages": [{"role": "user", "content": "a b"}], "max_tokens": 2}
TENANTS = (
    Tenant(name=TOP, rights=Rights(role="admin")),
    Tenant(name="lab", parent=TOP, weight=3.0),
    Tenant(name="b", parent=TOP),
)


def key(secret: str, **fields) -> ApiKey:
    return ApiKey(
        **{
            "id": secret.replace("pk-", "id-"),
            "tenant": "lab",
            "digest": digest_of(secret.encode(), SERVER_SECRET),
            **fields,
        }
    )


def access(*keys: ApiKey, version: int = 2) -> Access:
    return Access(version=version, tenants=TENANTS, keys=keys)


async def ask(world, *headers: str, path: str = "/v1/chat/completions", body: dict | None = BODY):
    """Status, headers and body."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: x", "connection: close", *headers]
    lines.append(f"content-length: {len(content)}")
    raw = await world.exchange("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content)
    head, _, rest = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.lower(), rest


@pytest.fixture
async def guarded(start_world):
    return await start_world(1, access=access(key("pk-good"), key("pk-b", tenant="b")), open_without_keys=True)


@pytest.mark.parametrize(
    "header", ["authorization: Bearer pk-good", "authorization: bEARER  pk-good", "x-api-key: pk-good"]
)
async def test_a_known_key_is_answered(guarded, header):
    """As a bearer or as x-api-key, as OpenAI's and Anthropic's clients send it."""
    assert (await ask(guarded, header))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("authorization: Bearer pk-bad",),
        ("authorization: Bearer",),
        ("authorization: Bearer  ",),
        ("authorization: Basic cGstZ29vZA==",),
        ("authorization: pk-good",),
        ("x-api-key: ",),
        ("x-api-key: pk-bad",),
        ("authorization: Bearer pk-good", "x-api-key: pk-bad"),
        ("authorization: Bearer PK-GOOD",),
        ("authorization: Bearer pk-good pk-good",),
        ("authorization: Bearer pk-good,pk-good",),
        ("x-forwarded-authorization: Bearer pk-good",),
        ("cookie: authorization=pk-good",),
    ],
)
async def test_anything_else_is_401_in_openais_form(guarded, headers):
    """With the code, the challenge, and nothing of what was sent; and every such request ends as rejected."""
    status, head, body = await ask(guarded, *headers)
    assert status == 401 and b"www-authenticate: bearer" in head
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
    assert b"pk-" not in body
    [ended] = guarded.ended
    assert (ended.outcome, ended.code) == ("rejected", "invalid_api_key")
    assert guarded.denials == [("127.0.0.1", "invalid_api_key")] and not guarded.engines[0].requests


METACHARACTERS = [
    "' OR 1=1 --",
    '"; DROP TABLE api_keys; --',
    "{$ne: null}",
    "%00",
    "\\",
    "*",
    "$(id)",
    "{{7*7}}",
    "\xff\xfe",
    "A" * 9000,
]


@pytest.mark.parametrize("value", METACHARACTERS)
@pytest.mark.parametrize("header", ["authorization: Bearer {}", "x-api-key: {}"])
async def test_metacharacters_in_a_key_are_a_wrong_key(guarded, header, value):
    """They are hashed before anything looks at them."""
    assert (await ask(guarded, header.format(value)))[0] == 401


HEADERS = [
    "host",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-original-url",
    "x-rewrite-url",
    "forwarded",
    "x-request-id",
    "user-agent",
    "x-http-method-override",
]


@pytest.mark.parametrize("header", HEADERS)
async def test_no_other_header_opens_a_door(guarded, header):
    """Neither a path in a Host header nor a forwarded address or another method lets anybody in."""
    for value in ("/health", "127.0.0.1", "localhost", "GET", "' OR 1=1 --", "/ready?x=/v1/models"):
        assert (await ask(guarded, f"{header}: {value}"))[0] in (400, 401)
        assert (await ask(guarded, f"{header}: {value}", path="/v1/models", body=None))[0] in (400, 401)


PATHS = [
    "/health/../v1/models",
    "//v1/models",
    "/v1/models;x=/health",
    "/v1//models",
    "/v1/models/",
    "/v1/models/../models",
    "/%76%31/models",
    "/v1/models%2f",
    "/V1/models",
    "http://x/v1/models",
    "http://x/health/../v1/models",
    "/v1/models?/health",
    "/v1/models#/health",
]


@pytest.mark.parametrize("path", PATHS)
async def test_no_way_of_writing_a_path_leads_past_the_door(guarded, path):
    """Whatever a path is taken for, without a key it tells no model's name."""
    status, _, body = await ask(guarded, path=path, body=None)
    assert status in (400, 401, 404) and b"org/m" not in body.replace(b"org/m' is not", b"")


async def test_a_model_that_a_key_may_not_use_does_not_exist_for_it(start_world):
    """It gets the same words as one that nobody serves, and neither listing shows it."""
    narrow = key("pk-narrow", rights=Rights(models=frozenset(["other"])))
    world = await start_world(1, access=access(narrow, key("pk-wide")))
    shown = "authorization: Bearer pk-narrow"
    status, _, hidden = await ask(world, shown)
    missing = await ask(world, shown, body=BODY | {"model": "org/x"})
    assert status == missing[0] == 404
    assert hidden.replace(b"org/m", b"org/x") == missing[2]
    assert json.loads((await ask(world, shown, path="/v1/models", body=None))[2])["data"] == []
    assert (await ask(world, shown, path="/v1/models/org/m", body=None))[0] == 404
    assert (await ask(world, "x-api-key: pk-wide", path="/v1/models/org/m", body=None))[0] == 200
    # Without a name the only visible model is meant; there is none.
    assert (await ask(world, shown, path="/tokenize", body={"prompt": "a"}))[0] == 400


async def test_revoked_and_expired_keys_are_refused(start_world):
    """A key ends at its time, and an earlier secret with its grace."""
    now = time.time()
    gone = key("pk-revoked", revoked_at=now)
    expired = key("pk-expired", expires_at=now - 1)
    rotated = key("pk-new", old_digest=digest_of(b"pk-old", SERVER_SECRET), old_until=now - 1)
    grace = key("pk-new2", old_digest=digest_of(b"pk-old2", SERVER_SECRET), old_until=now + 600)
    world = await start_world(1, access=access(gone, expired, rotated, grace))
    found = {}
    for secret in ("pk-revoked", "pk-expired", "pk-new", "pk-old", "pk-new2", "pk-old2"):
        found[secret] = (await ask(world, f"x-api-key: {secret}"))[0]
    assert found == {
        "pk-revoked": 401, "pk-expired": 401, "pk-new": 200, "pk-old": 401, "pk-new2": 200, "pk-old2": 200
    }  # fmt: skip


async def test_without_any_key_an_open_service_answers_everybody(start_world):
    """Also with the made-up key that OpenAI's clients insist on; the first key that is made closes it."""
    world = await start_world(1)
    assert (await ask(world))[0] == (await ask(world, "authorization: Bearer sk-none"))[0] == 200
    world.news.put_nowait(access(key("pk-good")))
    while (await ask(world))[0] != 401:
        await asyncio.sleep(0)
    assert (await ask(world, "x-api-key: pk-good"))[0] == 200


async def test_revoking_the_last_key_does_not_open_a_service(start_world):
    """Open is what never had a key, not what has none left."""
    world = await start_world(1, access=access(key("pk-gone", revoked_at=1.0)))
    assert (await ask(world))[0] == (await ask(world, "x-api-key: pk-gone"))[0] == 401


async def test_a_service_that_others_can_reach_asks_for_keys_from_the_first_moment(start_world):
    """Without a single key nobody is answered; its health still is."""
    world = await start_world(1, open_without_keys=False)
    assert (await ask(world))[0] == 401
    for path in ("/health", "/ready", "/version"):
        assert (await ask(world, path=path, body=None))[0] == 200


async def test_while_the_store_is_lost_known_keys_go_on_and_unknown_ones_wait(guarded):
    """503 and not 401: it may be a good key that was made just before.  Readiness stays; it mends by itself."""
    guarded.news.put_nowait(Problem("store_unavailable", "gone"))
    while (await ask(guarded, "x-api-key: pk-unknown"))[0] != 503:
        await asyncio.sleep(0)
    status, head, body = await ask(guarded, "x-api-key: pk-unknown")
    assert b"retry-after: 1" in head and json.loads(body)["error"]["code"] == "store_unavailable"
    assert (await ask(guarded, "x-api-key: pk-good"))[0] == 200
    assert (await ask(guarded))[0] == 401
    assert (await ask(guarded, path="/ready", body=None))[0] == 200
    guarded.news.put_nowait(access(key("pk-good"), version=3))
    while (await ask(guarded, "x-api-key: pk-unknown"))[0] != 401:
        await asyncio.sleep(0)


async def test_the_prefix_cache_is_salted_by_tenant_and_never_by_the_caller(guarded):
    """Two tenants never share a salt, two keys of one do, and what a body says of it changes nothing."""
    for secret in ("pk-good", "pk-b", "pk-good"):
        assert (await ask(guarded, f"x-api-key: {secret}"))[0] == 200
    await ask(guarded, "x-api-key: pk-good", body=BODY | {"cache_salt": "tenant:b"})
    await ask(guarded, "x-api-key: pk-b", path="/v1/embeddings", body={"model": "org/m", "input": "a"})
    salts = [request.cache_salt for request in guarded.engines[0].requests]
    assert salts[0] == salts[2] != salts[1] and all(salts) and set(salts[3:]) <= {salts[0]}
    assert [request.cache_salt for request in guarded.engines[0].embedded] == [salts[1]]


async def test_a_request_is_its_keys_tenants_whatever_it_says(guarded):
    """The engine shares itself out by the tenant and the weight of the key; a body cannot name others."""
    claim = {"tenant": "b", "weight": 1000.0}
    for secret in ("pk-good", "pk-b"):
        await ask(guarded, f"x-api-key: {secret}", body=BODY | claim)
        assert (await ask(guarded, f"x-api-key: {secret}"))[0] == 200
    await ask(guarded, "x-api-key: pk-b", path="/v1/embeddings", body={"model": "org/m", "input": "a"})
    seen = [(request.tenant, request.weight) for request in guarded.engines[0].requests]
    assert set(seen) == {("lab", 3.0), ("b", 1.0)}
    assert [(request.tenant, request.weight) for request in guarded.engines[0].embedded] == [("b", 1.0)]


async def test_the_priority_that_was_allowed_reaches_the_engine(guarded):
    """As the body asked; without a word of it, it is the usual class."""
    await ask(guarded, "x-api-key: pk-good", body=BODY | {"priority": 2})
    await ask(guarded, "x-api-key: pk-good")
    assert [request.priority for request in guarded.engines[0].requests] == [2, 0]


async def test_a_key_of_a_tenant_that_is_gone_may_nothing(start_world):
    """It is known, and no model exists for it."""
    world = await start_world(1, access=access(key("pk-lost", tenant="nowhere")))
    assert (await ask(world, "x-api-key: pk-lost"))[0] == 404


async def test_a_refused_body_is_not_read(guarded):
    """Whoever has no key gets the answer before their body is there, and costs no memory."""
    raw = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\n\r\n"
    assert b" 401 " in await guarded.exchange(raw, until=b"\r\n")


async def test_the_principal_is_on_the_call(guarded, monkeypatch):
    """Later stages see who asks: tenant, key and scopes."""
    seen = []
    find = Router.find

    def noting(self, call, *asked):
        seen.append(call.principal)
        return find(self, call, *asked)

    monkeypatch.setattr(Router, "find", noting)
    assert (await ask(guarded, "x-api-key: pk-good"))[0] == 200
    assert [(who.tenant, who.key_id) for who in seen] == [("lab", "id-good")]
    assert b"pk-good" not in msgspec.json.encode(guarded.events)
