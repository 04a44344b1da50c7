"""The admin API: who may do what, and that nobody gets more by asking in another way."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.cluster.admin.app import AdminApp
from penstock.cluster.admin.guard import Guard
from penstock.cluster.state import ServiceState
from penstock.config.desired import DesiredState
from penstock.store.places import Opened, default_url, open_access
from penstock.store.representations import NewKey, NewTenant
from penstock.wire.errors import Problem

STATE = ServiceState(stage="serving", ready=True, desired=DesiredState(version=3), members=[])
TOKEN = "operators-token"


class Desk:
    """An admin listener over a store, without sockets."""

    def __init__(self, home: Path, *, state_is_open: bool = True, open_without_keys: bool = True) -> None:
        self.home = home
        self.hears_news = True
        self.opened: Opened = open_access(home, default_url(home))
        self.opened.store.prepare()
        counter = itertools.count(1)
        self.acts = self.opened.administration(lambda: 1000.0, lambda n: next(counter).to_bytes(n, "big"))
        self.guard = Guard(
            self.opened.secret, TOKEN, lambda: 1000.0, state_is_open=state_is_open, open_without_keys=open_without_keys
        )
        self.denied: list[tuple[str, str]] = []
        self.app = AdminApp(
            "1", lambda: STATE, _page, self.guard, self.acts, lambda address, why: self.denied.append((address, why))
        )

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and decoded body; the guard knows what the store says now, as its watcher would tell it."""
        if self.hears_news:
            self.guard.adopt(self.opened.store.read())
        sent: list[Any] = []
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"host": "127.0.0.1:8001", "content-type": "application/json"} | (headers or {})
        if key is not None:
            given["authorization"] = f"Bearer {key}"

        async def receive() -> Any:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": ("10.1.1.1", 5)}
        asyncio.run(self.app(scope, receive, send))
        text = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], json.loads(text) if text.startswith((b"{", b"[")) else text

    def close(self) -> None:
        self.opened.store.close()


async def _page() -> tuple[bytes, bytes]:
    return b"text/plain", b"page"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


@pytest.fixture
def admin(desk: Desk) -> str:
    return desk.acts.create_key(None, NewKey(role="admin")).secret


def code(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


def test_keys_are_created_listed_rotated_and_revoked(desk: Desk, admin: str) -> None:
    """The secret is in the answers that make it and in no other."""
    status, made = desk.ask("POST", "/admin/keys", {"name": "ci", "expires_in_s": 60}, admin)
    assert status == 201 and made["secret"].startswith("pk-") and made["expires_at"] == 1060.0
    _, rotated = desk.ask("POST", f"/admin/keys/{made['id']}/rotate", {"grace_s": 5}, admin)
    assert rotated["id"] == made["id"] and rotated["secret"] != made["secret"]
    assert desk.ask("DELETE", f"/admin/keys/{made['id']}", key=admin)[1]["revoked_at"] == 1000.0
    everything = json.dumps([desk.ask("GET", path, key=admin) for path in ("/admin/keys", f"/admin/keys/{made['id']}")])
    for hidden in (made["secret"], rotated["secret"], admin, *(key.digest for key in desk.opened.store.read().keys)):
        assert hidden not in everything


def test_tenants_are_created_changed_listed_and_deleted(desk: Desk, admin: str) -> None:
    """What a change leaves out stays."""
    assert desk.ask("POST", "/admin/tenants", {"name": "lab", "models": ["a"], "weight": 2}, admin)[0] == 201
    limit = {"unit": "requests", "amount": 5, "window": "minute"}
    _, lab = desk.ask("PATCH", "/admin/tenants/lab", {"limits": [limit]}, admin)
    assert (lab["models"], lab["weight"]) == (["a"], 2.0) and lab["limits"][0]["amount"] == 5
    assert {tenant["name"] for tenant in desk.ask("GET", "/admin/tenants", key=admin)[1]} == {"default", "lab"}
    assert desk.ask("DELETE", "/admin/tenants/lab", key=admin) == (200, {"deleted": "lab"})
    assert code(desk.ask("GET", "/admin/tenants/lab", key=admin)) == (404, "not_found")
    assert [row["action"] for row in desk.ask("GET", "/admin/audit", key=admin)[1]] == [
        "keys.create", "tenants.create", "tenants.set", "tenants.delete"
    ]  # fmt: skip


def test_every_route_declares_whom_it_answers(desk: Desk) -> None:
    """Probes and the document answer anybody; all else is an administrator's."""
    anybody = {path for (_, path), route in desk.app.routes.items() if route.role is None}
    assert anybody == {"/health", "/ready", "/version", "/admin/openapi.json"}
    assert all(route.role == "admin" for (_, path), route in desk.app.routes.items() if path not in anybody)
    readable = {path for (_, path), route in desk.app.routes.items() if route.is_state}
    assert readable == {"/metrics", "/admin/state"}


def guarded_routes() -> list[tuple[str, str]]:
    paths = ["/admin/keys", "/admin/keys/k", "/admin/tenants", "/admin/tenants/t", "/admin/audit"]
    methods = {"/admin/keys": "GET POST", "/admin/tenants": "GET POST", "/admin/audit": "GET"}
    methods |= {"/admin/keys/k": "GET DELETE", "/admin/tenants/t": "GET PATCH DELETE", "/admin/keys/k/rotate": "POST"}
    return [(method, path) for path in [*paths, "/admin/keys/k/rotate"] for method in methods[path].split()]


@pytest.mark.parametrize(("method", "path"), guarded_routes())
def test_once_there_is_a_key_only_an_administrators_is_answered(desk: Desk, method: str, path: str) -> None:
    """Without one 401, with a user's 403, and the denial is noted; a wrong one is 401 as well."""
    user = desk.acts.create_key(None, NewKey()).secret
    assert code(desk.ask(method, path, {})) == (401, "invalid_api_key")
    assert code(desk.ask(method, path, {}, "pk-wrong")) == (401, "invalid_api_key")
    assert code(desk.ask(method, path, {}, user)) == (403, "permission_denied")
    assert [why.split()[0] for _, why in desk.denied] == ["invalid_api_key", "invalid_api_key", "permission_denied"]


def test_the_operators_token_opens_everything(desk: Desk, admin: str) -> None:
    """Whoever can read the run directory is the operator."""
    assert desk.ask("GET", "/admin/keys", key=TOKEN)[0] == 200
    assert desk.ask("GET", "/admin/keys", key=TOKEN[:-1])[0] == 401


def test_bound_to_another_address_it_asks_for_a_key_from_the_first_moment(tmp_path: Path) -> None:
    """Metrics and state included; the probes stay open."""
    desk = Desk(tmp_path, state_is_open=False, open_without_keys=False)
    for path in ("/metrics", "/admin/state", "/admin/keys"):
        assert code(desk.ask("GET", path)) == (401, "invalid_api_key")
    for path in ("/health", "/ready", "/version"):
        assert desk.ask("GET", path)[0] == 200
    desk.close()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8001", "127.0.0.1.evil.example", "", "[evil]", "1"])
def test_an_open_listener_on_loopback_answers_to_no_foreign_name(desk: Desk, host: str) -> None:
    """A web page whose name was turned to 127.0.0.1 can create no key."""
    assert code(desk.ask("POST", "/admin/keys", {}, headers={"host": host})) == (403, "permission_denied")
    assert not desk.opened.store.read().keys


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "localhost:8001", "localhost", "[::1]:8001", "127.0.0.1"])
def test_an_open_listener_on_loopback_answers_to_this_machines_names(desk: Desk, host: str) -> None:
    """With and without the port."""
    assert desk.ask("GET", "/admin/keys", headers={"host": host})[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_a_web_page_is_not_taken(desk: Desk, kind: str) -> None:
    """What a browser sends without asking first is refused, as is what says nothing of its type."""
    assert code(desk.ask("POST", "/admin/keys", {}, headers={"content-type": kind})) == (415, "unsupported_media_type")


PATHS = [
    "/health/../admin/keys", "//admin/keys", "/admin//keys", "/admin/keys/", "/admin/keys;/health", "/ADMIN/keys",
    "/admin/keys%2f", "/admin/./keys", "/admin/openapi.json/../keys", "/admin/openapi.json/", "/admin/keys\x00",
    "/admin/keys/x/rotate/", "/admin/tenants//", "admin/keys", "",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_way_of_writing_a_path_leads_past_the_door(desk: Desk, admin: str, path: str) -> None:
    """A path is a route as it stands, or no route."""
    assert desk.ask("GET", path)[0] in (401, 404, 405)


WRONG: list[tuple[str, bytes]] = [
    ("invalid_json", b"{"),
    ("invalid_json", b"\xff"),
    ("invalid_value", b"[]"),
    ("invalid_value", b"[" * 100_000),
    ("invalid_value", b'{"name": 1}'),
    ("invalid_value", b'{"expires_in_s": -1}'),
    ("invalid_value", b'{"expires_in_s": 1e999}'),
    ("invalid_value", b'{"tenant": "a b"}'),
    ("invalid_value", b'{"tenant": "../x"}'),
    ("invalid_value", b'{"role": "root"}'),
    ("body_too_large", b'{"name": "' + b"x" * 300_000 + b'"}'),
]


@pytest.mark.parametrize(("expected", "body"), WRONG)
def test_a_wrong_body_changes_nothing(desk: Desk, admin: str, expected: str, body: bytes) -> None:
    """It is a problem with a code, however deep, long or strange it is."""
    status, answer = desk.ask("POST", "/admin/keys", body, admin)
    assert answer["error"]["code"] == expected and status < 500
    assert len(desk.opened.store.read().keys) == 1


FIELDS = [
    *("id", "digest", "secret", "created_at", "revoked_at", "expires_at", "old_digest", "old_until", "rights"),
    *("parent", "weight", "admin", "is_admin", "tenant", "name", "role", "models", "limits", "actor", "__class__"),
]
values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
)
values |= st.lists(st.text(max_size=3), max_size=3) | st.sampled_from(["admin", "default", "lab", "other"])
bodies = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), values, max_size=6)
ROUTES = ["POST /admin/keys", "POST /admin/tenants", "PATCH /admin/tenants/lab", "PATCH /admin/tenants/default",
          "PATCH /admin/tenants/team", "POST /admin/keys/{top}/rotate", "DELETE /admin/keys/{top}",
          "DELETE /admin/tenants/other", "GET /admin/audit"]  # fmt: skip


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(asked=st.lists(st.tuples(st.sampled_from(ROUTES), bodies), min_size=1, max_size=6))
def test_no_field_and_no_sequence_of_requests_raises_a_tenants_rights(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, dict[str, Any]]]
) -> None:
    """An administrator of `lab` sends whatever they like: nothing outside changes, nothing inside exceeds `lab`."""
    desk = Desk(tmp_path_factory.mktemp("d"))
    try:
        desk.acts.create_tenant(None, NewTenant(name="lab", role="admin", models=frozenset({"a"})))
        desk.acts.create_tenant(None, NewTenant(name="team", parent="lab"))
        desk.acts.create_tenant(None, NewTenant(name="other"))
        top = desk.acts.create_key(None, NewKey(role="admin"))
        lab = desk.acts.create_key(None, NewKey(tenant="lab", role="admin"))
        before = desk.opened.store.read()
        for route, body in asked:
            method, path = route.replace("{top}", top.id).split()
            assert desk.ask(method, path, body, lab.secret)[0] < 500
        after = desk.opened.store.read()
        inside = {"lab", "team"} | {tenant.name for tenant in after.tenants if tenant.parent in ("lab", "team")}
        assert [one for one in after.tenants if one.name in ("default", "other", "lab")] == [
            one for one in before.tenants if one.name != "team"
        ]
        new = [key for key in after.keys if key.id not in (top.id, lab.id)]
        assert [key for key in after.keys if key.id == top.id] == [key for key in before.keys if key.id == top.id]
        assert all(key.tenant in inside for key in new)
        keyring = desk.guard._keyring
        assert keyring is not None
        for _, _, who in keyring._known.values():
            assert who.tenant == "default" or (who.models is not None and who.models <= {"a"})
    finally:
        desk.close()


def test_the_document_says_what_the_routes_do(desk: Desk, admin: str) -> None:
    """Each route is in it with its types, its references lead somewhere, and a real answer fits its schema."""
    document = desk.ask("GET", "/admin/openapi.json")[1]
    told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert told == set(desk.app.routes)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    operation = document["paths"]["/admin/keys"]["post"]
    schema = operation["responses"]["201"]["content"]["application/json"]["schema"]
    made = desk.ask("POST", "/admin/keys", {}, admin)[1]
    jsonschema.validate(made, schema | {"components": document["components"]})
    assert operation["security"] == [{"key": []}] and document["paths"]["/health"]["get"]["security"] == []


def test_no_answer_and_no_log_line_holds_a_secret(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Canaries: the servers' secret, the operator's token, keys and digests, on every route, right or wrong."""
    caplog.set_level(logging.DEBUG)
    admin = desk.acts.create_key(None, NewKey(role="admin", name="canary")).secret
    user = desk.acts.create_key(None, NewKey()).secret
    wrong = "pk-canary-of-a-wrong-key"
    hidden = [admin, user, wrong, TOKEN, desk.opened.secret.hex()]
    hidden += [key.digest for key in desk.opened.store.read().keys]
    said = []
    for method, path in desk.app.routes:
        for name in ("x", wrong):
            for key in (None, admin, user, wrong, TOKEN):
                if method in ("GET", "DELETE"):
                    said.append(desk.ask(method, path.replace("{name}", "nothing"), None, key))
                else:
                    said.append(desk.ask(method, path.replace("{name}", "nothing"), {"nonsense": name}, key))
    text = json.dumps(said, default=str) + caplog.text + json.dumps(desk.denied)
    for secret in hidden:
        assert secret not in text


def test_while_the_store_is_lost_an_unknown_key_is_not_called_wrong(desk: Desk, admin: str) -> None:
    """It is told to wait; a known administrator is let in, and told that nothing can be changed now."""
    desk.ask("GET", "/admin/keys", key=admin)
    desk.hears_news = False
    desk.guard.adopt(Problem("store_unavailable", "gone"))
    desk.opened.store.close()
    for path in desk.home.glob("penstock.sqlite*"):
        path.unlink()
    assert code(desk.ask("POST", "/admin/keys", {}, "pk-unknown")) == (503, "store_unavailable")
    status, answer = desk.ask("POST", "/admin/keys", {}, admin)
    assert status == 503 and "is gone" in answer["error"]["message"]


def test_where_something_else_guards_the_port_state_is_told_and_nobody_is_the_operator(tmp_path: Path) -> None:
    """With --insecure-no-auth metrics and state need no key; keys are made at the command line or with one."""
    desk = Desk(tmp_path, state_is_open=True, open_without_keys=False)
    assert desk.ask("GET", "/metrics")[0] == desk.ask("GET", "/admin/state")[0] == 200
    assert code(desk.ask("POST", "/admin/keys", {})) == (401, "invalid_api_key")
    desk.close()
