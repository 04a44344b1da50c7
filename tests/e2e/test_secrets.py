"""A scan for canaries: whatever a service says, writes or shows of itself, no secret is in it."""

from __future__ import annotations

import gzip
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import penstock

CANARY = "pk-canary-of-a-wrong-key"
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
NAME = re.compile(r"\{[a-z_]+\}")


def ask(url: str, method: str, headers: dict[str, str], body: bytes | None) -> tuple[str, str]:
    """All that comes back, headers included; and the request's id."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=30) as answer:
            return f"{answer.status}{answer.headers}{answer.read().decode()}", answer.headers.get("x-request-id", "")
    except urllib.error.HTTPError as error:
        return f"{error.code}{error.headers}{error.read().decode()}", ""


def routes(document_url: str) -> Iterator[tuple[str, str]]:
    """Every method and path that a listener's own document has."""
    with urllib.request.urlopen(document_url, timeout=10) as answer:
        for path, operations in json.load(answer)["paths"].items():
            for method in operations:
                yield method.upper(), path


def shown_by_the_system(pid: int) -> str:
    """What other users of the machine can see of a process and of its children: their command lines."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    return own + "".join(shown_by_the_system(int(child)) for child in children)


@pytest.fixture(scope="module")
def guarded(serve: Any) -> tuple[Any, dict[str, str]]:
    service = serve(model="mock://")
    admin = json.loads(penstock(service.home, "keys", "create", "--admin", "--json"))
    user = json.loads(penstock(service.home, "keys", "create", "--json"))
    secrets = {"admin": admin["secret"], "user": user["secret"]}
    service.wait_known(*secrets.values())
    return service, secrets


def hidden(service: Any, secrets: dict[str, str]) -> list[str]:
    """What must be nowhere: keys, the wrong one that was tried, the operator's token, and the servers' secret."""
    token = json.loads(next(service.home.rglob("controller.json")).read_text())["token"]
    return [*secrets.values(), CANARY, token, (service.home / "secret").read_bytes().hex()]


def everything_said(service: Any, secrets: dict[str, str]) -> str:
    """Every route of both listeners, as anybody, with good and wrong keys in every place where one could be put."""
    said, ids = [], []
    for base, document in ((service.url, "/openapi.json"), (service.admin_url, "/admin/openapi.json")):
        found = list(routes(base + document))
        assert len(found) > 8
        for method, path in found:
            for secret in (None, CANARY, *secrets.values()):
                heads = [
                    {},
                    {"authorization": f"Bearer {secret}"},
                    {"x-api-key": f"{secret}"},
                    {"cookie": f"k={secret}"},
                ]
                for shown in heads[: 1 if secret is None else None]:
                    headers = {"content-type": "application/json"} | shown
                    bodies: list[bytes | None] = [None]
                    if method not in ("GET", "HEAD", "DELETE"):
                        wrong = {"model": CANARY, "api_key": CANARY, "name": CANARY}
                        bodies = [json.dumps(CHAT).encode(), json.dumps(wrong).encode(), b"{"]
                    for body in bodies:
                        place = NAME.sub(CANARY if secret == CANARY else "nothing", path)
                        answer, id = ask(f"{base}{place}", method, headers, body)
                        said.append(answer)
                        ids.append(id if path.startswith("/v1/chat") else "")
    answered = next(id for id in reversed(ids) if id)
    return "".join(said) + penstock(service.home, "explain", answered)


@pytest.mark.slow
def test_no_secret_is_in_anything_that_a_service_says_or_writes(guarded: tuple[Any, dict[str, str]], tmp_path) -> None:
    """Answers and their headers, logs, metrics, states, explanations, listings, the audit log, the store, its backup,
    its snapshot, the usage, and the command lines of its processes.
    """
    service, secrets = guarded
    for key in secrets.values():
        for _ in range(3):
            ask(f"{service.url}/v1/chat/completions", "POST", {"x-api-key": key}, json.dumps(CHAT).encode())
    text = everything_said(service, secrets)
    # A name that was sent comes back in the words of an error; that is what the next test is about.
    text = text.replace(f"'{CANARY}'", "")
    text += service.metrics() + json.dumps(service.state()) + shown_by_the_system(service.process.pid)
    for words in (("keys", "list"), ("tenants", "list"), ("usage",), ("audit", "list", "--newest", "10000"), ("ps",)):
        text += penstock(service.home, *words, "--json")
    penstock(service.home, "store", "backup", str(tmp_path / "backup"))
    text += gzip.decompress((tmp_path / "backup").read_bytes()).decode()
    for path in service.home.rglob("*"):
        # The operator's token and the servers' secret are where their owner alone can read them.
        if path.is_file() and path.name not in ("secret", "controller.json"):
            text += path.read_bytes().decode("latin-1")
    for secret in hidden(service, secrets):
        assert secret not in text
    for name in ("secret", "controller.json"):
        [path] = service.home.rglob(name)
        assert path.stat().st_mode & 0o077 == 0


def test_the_scan_would_find_one(guarded: tuple[Any, dict[str, str]]) -> None:
    """A name that is not served is repeated to whoever sent it, and to nobody else: neither log nor audit has it."""
    service, secrets = guarded
    body = json.dumps(CHAT | {"model": CANARY}).encode()
    headers = {"authorization": f"Bearer {secrets['user']}", "content-type": "application/json"}
    assert CANARY in ask(f"{service.url}/v1/chat/completions", "POST", headers, body)[0]
    assert CANARY not in service.log.read_text() + penstock(
        service.home, "audit", "list", "--newest", "10000", "--json"
    )
