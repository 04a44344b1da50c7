"""Signed tokens of other issuers: which are good, by which keys, and who shows them."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from penstock.config.issuers import Issuer, read_issuers
from penstock.config.tenants import TOP, Access, Rights, Tenant
from penstock.policy.keyring import Keyring
from penstock.tokens import jwks
from penstock.tokens.jwks import KeySet, source_of
from penstock.tokens.verify import TokenVerifier, _fingerprint
from penstock.wire.errors import Problem

NOW = 1_000_000.0
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
TENANTS = (
    Tenant(name=TOP, rights=Rights(role="admin")),
    Tenant(name="lab", parent=TOP, rights=Rights(models=frozenset("ab"))),
    Tenant(name="ops", parent=TOP, rights=Rights(role="admin")),
)
RING = Keyring(Access(version=1, tenants=TENANTS), b"s" * 32)
ISSUER = Issuer(issuer="https://idp", audience="penstock", jwks="jwks.json", tenant_claim="org", role_claim="groups",
                roles={"sre": "admin"}, models_claim="scope")  # fmt: skip
CLAIMS: dict[str, Any] = {"iss": "https://idp", "aud": "penstock", "sub": "ada", "exp": NOW + 60, "org": "lab",
                          "scope": "a c", "iat": NOW - 5}  # fmt: skip


def jwk(key: Any, algorithm: str, **fields: Any) -> dict[str, Any]:
    kind: Any = {"RS256": jwt.algorithms.RSAAlgorithm, "ES256": jwt.algorithms.ECAlgorithm}.get(
        algorithm, jwt.algorithms.OKPAlgorithm
    )
    return {**kind.to_jwk(key.public_key(), as_dict=True), "alg": algorithm, "use": "sig", **fields}


def document(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


ALL = document(jwk(RSA, "RS256", kid="r"), jwk(EC, "ES256", kid="e"), jwk(ED, "EdDSA", kid="o"))


def sign(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r", **changes: Any) -> bytes:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid} if kid else {}).encode()


class Door:
    """A verifier with a clock to set."""

    def __init__(self, *issuers: Issuer, keys: bytes | None = ALL) -> None:
        self.now = NOW
        self.sets = [KeySet(issuer) for issuer in issuers or (ISSUER,)]
        for one in self.sets:
            if keys is not None:
                one.adopt(keys)
        self.verifier = TokenVerifier(self.sets, lambda: self.now)

    def find(self, token: bytes) -> Any:
        return self.verifier.find(token, RING)

    def refusal(self, token: bytes) -> str:
        with pytest.raises(Problem) as refused:
            self.find(token)
        assert token.decode(errors="replace") not in refused.value.message
        return refused.value.code


@pytest.mark.parametrize(("key", "algorithm", "kid"), [(RSA, "RS256", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "o")])
def test_a_good_token_is_its_tenants_with_its_models(key, algorithm, kid):
    """By each algorithm; models are those of the claim that the tenant has, too."""
    who = Door().find(sign(key, algorithm, kid))
    assert (who.tenant, who.role, who.models, who.key_id) == ("lab", "user", frozenset("a"), "https://idp#ada")


def test_roles_come_from_a_claim_and_never_exceed_the_tenants():
    """A group that is mapped makes an administrator where the tenant may have one, and nowhere else."""
    door = Door()
    assert door.find(sign(org="ops", groups=["x", "sre"])).role == "admin"
    assert door.find(sign(org="lab", groups=["sre"])).role == "user"
    assert door.find(sign(org="ops", groups="admin")).role == "user"


@pytest.mark.parametrize("scope", [None, 7, {}, [1, None], ""])
def test_a_models_claim_that_is_missing_or_strange_names_no_model(scope):
    """Absence never widens."""
    assert Door().find(sign(scope=scope)).models == frozenset()


@pytest.mark.parametrize("org", [None, 5, "nowhere", ["lab"], "LAB"])
def test_a_token_of_no_tenant_is_403(org):
    """It is a good token, and nobody's here."""
    assert Door().refusal(sign(org=org)) == "permission_denied"


def test_values_of_the_claim_are_mapped_where_a_mapping_is_given():
    """What the mapping does not list is no tenant, even if one has that name."""
    door = Door(
        Issuer(issuer="https://idp", audience="penstock", jwks="x", tenant_claim="org", tenants={"acme": "lab"})
    )
    assert door.find(sign(org="acme")).tenant == "lab"
    assert door.refusal(sign(org="ops")) == "permission_denied"


def unsigned(header: dict[str, Any], claims: dict[str, Any] = CLAIMS, signature: bytes = b"") -> bytes:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)


PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)  # fmt: skip


def hs256_with_public_key() -> bytes:
    import hmac

    head = unsigned({"alg": "HS256", "kid": "r"}).rsplit(b".", 1)[0]
    return head + b"." + base64.urlsafe_b64encode(hmac.digest(PEM, head, "sha256")).rstrip(b"=")


BAD = {
    "alg none": unsigned({"alg": "none"}),
    "alg None": unsigned({"alg": "nOnE", "kid": "r"}),
    "no alg": unsigned({}),
    "alg of another type": unsigned({"alg": 5}),
    "HS256 with the public key": hs256_with_public_key(),
    "RS512": sign(algorithm="RS512"),
    "PS256": sign(algorithm="PS256"),
    "another key": sign(OTHER),
    "a key in the header": jwt.encode(CLAIMS, OTHER, "RS256", headers={"jwk": jwk(OTHER, "RS256")}).encode(),
    "a URL in the header": jwt.encode(CLAIMS, OTHER, "RS256", headers={"jku": "http://evil/", "kid": "r"}).encode(),
    "an unknown critical header": jwt.encode(
        CLAIMS, RSA, "RS256", headers={"kid": "r", "crit": ["x"], "x": 1}
    ).encode(),
    "an unknown key id": sign(kid="zzz"),
    "the id of another kind of key": sign(kid="e"),
    "a key id of another type": unsigned({"alg": "RS256", "kid": ["r"]}),
    "another issuer": sign(iss="https://idp/"),
    "no issuer": sign(iss=None),
    "another audience": sign(aud="other"),
    "no audience": sign(aud=None),
    "no expiry": sign(exp=None),
    "expired": sign(exp=NOW - 30),
    "not yet": sign(nbf=NOW + 31),
    "issued in the future": sign(iat=NOW + 3600),
    "expiry true": sign(exp=True),
    "expiry infinite": jwt.encode(CLAIMS | {"exp": 1e400}, RSA, "RS256", headers={"kid": "r"}).encode(),
    "deep": unsigned({"alg": "RS256"}).split(b".")[0] + b"." + base64.urlsafe_b64encode(b"[" * 9000) + b".x",
    "not JSON": b"eyJ.eyJ.eyJ",
    "empty signature": sign().rsplit(b".", 1)[0] + b".",
    "claims that are a list": unsigned({"alg": "RS256", "kid": "r"}, []),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_a_token_that_is_not_good_is_refused(name):
    """With invalid_api_key, and without repeating the token."""
    assert Door().refusal(BAD[name]) == "invalid_api_key"


def test_one_changed_character_anywhere_is_refused():
    """Also right after the unchanged token was let in: nothing is remembered by a part of it."""
    door, token = Door(), sign()
    assert door.find(token) is not None
    for place in range(0, len(token) - 2, 7):
        if token[place : place + 1] != b".":
            changed = token[:place] + (b"A" if token[place : place + 1] != b"A" else b"B") + token[place + 1 :]
            assert door.refusal(changed) == "invalid_api_key"


def test_clocks_may_be_apart_by_the_leeway():
    """Before and after, to the second."""
    door = Door()
    assert door.find(sign(exp=NOW - 29)) and door.find(sign(nbf=NOW + 29)) and door.find(sign(iat=NOW + 29))


def test_a_remembered_token_still_expires():
    """What was good a minute ago is looked at again."""
    door, token = Door(), sign()
    assert door.find(token) is not None
    door.now = NOW + 90
    assert door.refusal(token) == "invalid_api_key"


def test_a_rotated_key_ends_what_it_signed_and_begins_what_it_signs():
    """A remembered token is void once its key is not listed any more; unchanged keys are not looked at again."""
    door, token = Door(), sign()
    assert door.find(token) is not None
    door.sets[0].adopt(document(jwk(OTHER, "RS256", kid="new")))
    assert door.refusal(token) == "invalid_api_key"
    assert door.find(sign(OTHER, kid="new")) is not None


def test_a_remembered_token_follows_the_tenants():
    """With the next version of tenants its rights are those."""
    door, token = Door(), sign()
    assert door.find(token).models == frozenset("a")
    narrower = (TENANTS[0], Tenant(name="lab", parent=TOP, rights=Rights(models=frozenset("b"))))
    ring = Keyring(Access(version=2, tenants=narrower), b"s" * 32)
    who = door.verifier.find(token, ring)
    assert who is not None and who.models == frozenset()


def test_without_the_issuers_keys_a_token_waits():
    """503 and not 401: nobody can tell yet."""
    assert Door(keys=None).refusal(sign()) == "issuer_unavailable"


@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits long")  # signing with it is what is tried
def test_a_key_set_of_which_some_keys_are_of_no_use():
    """Short keys, secrets, keys for encryption, other curves and nonsense are passed over; so are private parts."""
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    private = jwt.algorithms.OKPAlgorithm.to_jwk(ED, as_dict=True)
    keys = document(
        jwk(short, "RS256", kid="short"), {"kty": "oct", "k": "c2VjcmV0", "kid": "h"}, jwk(RSA, "RS256", use="enc"),
        {"kty": "RSA"}, {"kty": "EC", "crv": "P-256", "x": "!", "y": "!"}, 7, {**private, "kid": "o"},  # type: ignore[arg-type]
    )  # fmt: skip
    door = Door(keys=keys)
    assert door.refusal(sign(short, kid="short")) == "invalid_api_key"
    assert door.refusal(sign(kid=None)) == "invalid_api_key"
    assert door.find(sign(ED, "EdDSA", "o")) is not None and door.find(sign(ED, "EdDSA", None)) is not None


def test_one_issuer_with_two_audiences():
    """Each audience has its own tenant, and a token is judged by the entry of its own."""
    first = Issuer(issuer="https://idp", audience="one", jwks="x", tenant="lab")
    second = Issuer(issuer="https://idp", audience="two", jwks="x", tenant="ops", algorithms=("ES256",))
    door = Door(first, second)
    assert door.find(sign(aud=["zero", "one"])).tenant == "lab"
    assert door.refusal(sign(aud="two")) == "invalid_api_key"
    assert door.find(sign(EC, "ES256", "e", aud="two")).tenant == "ops"


@given(st.lists(st.tuples(st.binary(max_size=6), st.text(max_size=4), st.text(max_size=4)), max_size=8, unique=True))
def test_no_two_tokens_issuers_and_audiences_share_a_name(triples):
    """However nearly they are equal, and wherever one part ends and the next begins."""
    names = set()
    for token, issuer, audience in triples:
        names.add(_fingerprint(token, Issuer(issuer=issuer + "i", audience=audience + "a", jwks="x")))
    assert len(names) == len(triples)


@pytest.mark.parametrize("shown", [b"pk-abc", b"a.b", b"a.b.c.d", b"a b.c.d", b"\xff.\xff.\xff"])
def test_what_has_not_the_form_of_a_token_is_left_to_the_keys(shown):
    """It is none."""
    assert Door().find(shown) is None


def test_a_file_of_issuers():
    """YAML with every field; mistakes are named."""
    text = b"- {issuer: https://a, audience: b, jwks: https://a/jwks, tenant_claim: org, tenants: {x: lab}}\n"
    [issuer] = read_issuers(text)
    assert issuer.tenants == {"x": "lab"} and issuer.algorithms == ("RS256", "ES256", "EdDSA")
    for wrong, words in [
        (b"- {issuer: a, audience: b, jwks: 'http://a/jwks'}", "https"),
        (b"- {issuer: a, audience: b, jwks: 'file:///etc/passwd'}", "https"),
        (b"- {issuer: a, audience: b, jwks: x, algorithms: [HS256]}", "HS256"),
        (b"- {issuer: a, audience: b, jwks: x, algorithms: [none]}", "algorithms"),
        (b"- {issuer: a, audience: b, jwks: x, admin: true}", "admin"),
        (b"- {issuer: a, audience: '', jwks: x}", "empty"),
        (text + text, "twice"),
        (b"a: {", "no list"),
    ]:
        with pytest.raises(ValueError, match=words):
            read_issuers(wrong)


async def test_keys_are_fetched_again_soon_after_an_unknown_one_was_asked_for(monkeypatch):
    """Not on the request's path, not in close succession, and an issuer that is away keeps its keys in force."""
    monkeypatch.setattr(jwks, "_AT_MOST_EVERY_S", 0.01)
    answers: list[Any] = [ALL, OSError("away"), document(jwk(OTHER, "RS256", kid="new"))]
    fetched = asyncio.Event()
    keys = KeySet(ISSUER)

    async def fetch() -> bytes:
        fetched.set()
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return bytes(answer)

    keeping = asyncio.create_task(keys.keep(fetch))
    async with asyncio.timeout(5):
        while keys.generation == 0:
            await asyncio.sleep(0)
        assert keys.find("new", "RS256") is None and keys.find("r", "RS256") is not None
        while keys.generation == 1:
            await asyncio.sleep(0.001)
    assert keys.find("new", "RS256") is not None and keys.find("r", "RS256") is None
    keeping.cancel()


@pytest.mark.parametrize(("path", "words"), [("/redirect", "302"), ("/large", "bytes"), ("/error", "500")])
async def test_a_fetch_has_bounds(path, words):
    """No redirects, no more bytes than bounds allow, nothing but 200."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/redirect":
            raise web.HTTPFound("/keys")
        if request.path == "/large":
            return web.Response(body=b" " * 300_000)
        return web.Response(status=500 if request.path == "/error" else 200, body=ALL)

    app = web.Application()
    app.router.add_get("/{any}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        assert await source_of(f"http://127.0.0.1:{port}/keys")() == ALL
        with pytest.raises(ValueError, match=words):
            await source_of(f"http://127.0.0.1:{port}{path}")()
    finally:
        await runner.cleanup()


async def test_keys_from_a_file(tmp_path):
    """Its content; a file that is not there is an error that the keeper survives."""
    (tmp_path / "jwks.json").write_bytes(ALL)
    assert await source_of(str(tmp_path / "jwks.json"))() == ALL
    with pytest.raises(OSError, match="missing"):
        await source_of(str(tmp_path / "missing"))()
