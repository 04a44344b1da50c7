"""Keys of a real service: made and revoked at the command line, followed by every process."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request

import jwt
import pytest
from certificates import write_certificate
from commands import penstock
from cryptography.hazmat.primitives.asymmetric import ed25519

from penstock.asgi.tls import client_context

BODY = {"model": "seeded-1", "prompt": "a", "max_tokens": 1}


def ask(service, key: str | None, path: str = "/v1/completions", body=BODY) -> int:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    content = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(service.url + path, content, headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def guarded(serve):
    """A service that was open, and its first key, which closed it."""
    service = serve()
    assert ask(service, None) == 200
    assert "no key" in service.state()["access"]
    assert "penstock keys create" in service.log.read_text()
    made = json.loads(penstock(service.home, "keys", "create", "--admin", "--json"))
    service.until(lambda: ask(service, None) == 401, "the first key closes the service")
    return service, made


def test_the_first_key_closes_an_open_service(guarded):
    """From then on only a key is answered, on both listeners, and the state says so."""
    service, made = guarded
    assert ask(service, made["secret"]) == 200 and ask(service, "pk-wrong") == 401
    service.until(lambda: "keys" in service.state()["access"], "the state tells that keys are asked for")
    service.until(lambda: service.get(f"{service.admin_url}/admin/keys")[0] == 401, "the admin listener knows the key")
    assert service.get(f"{service.url}/ready")[0] == 200


def test_a_revoked_key_is_refused_everywhere_within_a_second(guarded):
    """Measured from the commit of `penstock keys revoke` to the last answer that the key still got."""
    service, made = guarded
    victim = json.loads(penstock(service.home, "keys", "create", "--json"))
    service.until(lambda: ask(service, victim["secret"], "/v1/models", None) == 200, "the new key works")
    answered: list[tuple[float, int]] = []
    ended = threading.Event()

    def keep_asking() -> None:
        while not ended.is_set():
            status = ask(service, victim["secret"], "/v1/models", None)
            answered.append((time.time(), status))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    revoked_at = json.loads(penstock(service.home, "keys", "revoke", victim["id"], "--json"))["revoked_at"]
    service.until(lambda: answered[-1][1] == 401, "the revoked key is refused")
    ended.set()
    asking.join()
    last_good = max(at for at, status in answered if status == 200)
    assert last_good - revoked_at < 1.0, f"still answered {last_good - revoked_at:.2f} s later"
    assert ask(service, made["secret"], "/v1/models", None) == 200


def test_keys_survive_a_gateway_that_is_killed(guarded):
    """The next one asks for keys from its first answer on."""
    service, made = guarded
    [gateway] = [member for member in service.state()["members"] if member["kind"] == "gateway"]
    os.kill(gateway["pid"], signal.SIGKILL)
    found = set()

    def back() -> bool:
        found.add(service.get(f"{service.url}/v1/models")[0])
        return ask(service, made["secret"], "/v1/models", None) == 200

    service.until(back, "the restarted gateway knows the key")
    assert 200 not in found


def test_a_store_that_is_deleted_comes_back_by_itself(guarded):
    """Known keys are answered all along, the service stays ready, and new keys can be made afterwards."""
    service, made = guarded
    for path in service.home.glob("penstock.sqlite*"):
        path.unlink()
    answers = {ask(service, made["secret"], "/v1/models", None) for _ in range(5)}
    assert answers == {200} and service.get(f"{service.url}/ready")[0] == 200
    service.until((service.home / "penstock.sqlite").exists, "the store is made again")
    new = json.loads(penstock(service.home, "keys", "create", "--json"))
    service.until(lambda: ask(service, new["secret"], "/v1/models", None) == 200, "a key made afterwards works")
    assert ask(service, made["secret"]) == 200 and ask(service, None) == 401


def test_no_secret_is_in_a_log_or_on_the_page_of_metrics(guarded):
    """What was asked with, rightly or wrongly, stands nowhere in the service's files or pages."""
    service, made = guarded
    canary = "pk-canary-of-a-wrong-key"
    assert ask(service, canary) == 401
    text = service.log.read_text() + service.metrics() + json.dumps(service.state())
    text += "".join(path.read_text(errors="replace") for path in service.home.rglob("*.log"))
    text += penstock(service.home, "audit", "list", "--json")
    for secret in (made["secret"], canary):
        assert secret not in text


def test_denials_reach_the_audit_log(guarded):
    """A wrong key leaves a row within seconds."""
    service, _ = guarded
    assert ask(service, "pk-wrong") == 401

    def written() -> bool:
        rows = json.loads(penstock(service.home, "audit", "list", "--json"))
        return any(row["action"] == "request" and row["verdict"] == "denied" for row in rows)

    service.until(written, "the denial is written")


def test_a_restored_backup_of_before_the_first_key_opens_nothing(serve, tmp_path):
    """The service asks for keys ever since the first one, and its gateways' answers with the next key are as before."""
    service = serve()
    penstock(service.home, "store", "backup", str(tmp_path / "open"))
    lost = json.loads(penstock(service.home, "keys", "create", "--json"))
    service.until(lambda: ask(service, None) == 401, "the first key closes the service")
    penstock(service.home, "store", "restore", str(tmp_path / "open"), "--replace")
    answers = set()

    def forgotten() -> bool:
        answers.add(ask(service, None))
        return ask(service, lost["secret"]) == 401

    service.until(forgotten, "the restored store is followed")
    assert answers | {ask(service, None)} == {401}
    assert service.get(f"{service.admin_url}/admin/keys")[0] == 401
    new = json.loads(penstock(service.home, "keys", "create", "--json"))
    service.until(lambda: ask(service, new["secret"]) == 200, "a key made afterwards works")


def test_a_service_for_other_machines(serve, tmp_path):
    """Bound to every address it asks for keys from the start, speaks TLS, and takes an issuer's tokens."""
    cert, key = write_certificate(tmp_path)
    signing = ed25519.Ed25519PrivateKey.generate()
    jwk = jwt.algorithms.OKPAlgorithm.to_jwk(signing.public_key(), as_dict=True)
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [jwk]}))
    issuer = {"issuer": "https://idp", "audience": "penstock", "jwks": str(tmp_path / "jwks.json")}
    (tmp_path / "issuers.yaml").write_text(json.dumps([issuer]))
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    service = serve("--host", "0.0.0.0", "--issuers", str(tmp_path / "issuers.yaml"), *tls, wait=False)
    context = client_context(cert)

    def status(shown: str | None, url: str) -> int:
        headers = {"authorization": f"Bearer {shown}"} if shown else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=context) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    api, admin = f"https://127.0.0.1:{service.port}", f"https://127.0.0.1:{service.admin_port}"
    service.until(lambda: status(None, f"{api}/ready") == 200, "readiness over TLS")
    assert status(None, f"{api}/v1/models") == 401 and status(None, f"{admin}/admin/keys") == 401
    claims = {"iss": "https://idp", "aud": "penstock", "exp": time.time() + 60, "sub": "ada"}
    token = jwt.encode(claims, signing, "EdDSA")
    service.until(lambda: status(token, f"{api}/v1/models") == 200, "the token is taken")
    assert status(token, f"{admin}/admin/keys") == 403
    made = json.loads(penstock(service.home, "keys", "create", "--admin", "--json"))
    service.until(lambda: status(made["secret"], f"{api}/v1/models") == 200, "the key works")
    service.until(lambda: status(made["secret"], f"{admin}/admin/keys") == 200, "the admin listener knows it, too")
    [row] = json.loads(penstock(service.home, "ps", "--json"))
    assert row["phase"] == "ready" and row["admin_url"].startswith("https://")
    assert service.stop() == 0
