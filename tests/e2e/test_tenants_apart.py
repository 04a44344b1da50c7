"""Tenants before one real engine: what one has sent is no cached prefix of another's."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest
from commands import penstock

MODEL = "seeded-1"
NUM_WORDS = 200


class Tenants:
    """Two tenants, the first with two keys."""

    def __init__(self, service: Any) -> None:
        self.service = service
        for name in ("a", "b"):
            penstock(service.home, "tenants", "create", name)
        self.keys = {
            name: json.loads(penstock(service.home, "keys", "create", "--tenant", name[0], "--json"))["secret"]
            for name in ("a", "a2", "b")
        }
        service.until(lambda: service.get(f"{service.url}/v1/models")[0] == 401, "the keys are known")

    def ask(self, who: str, prompt: str, **fields: Any) -> int:
        """How many of its tokens were found cached."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 1} | fields
        headers = {"authorization": f"Bearer {self.keys[who]}", "content-type": "application/json"}
        url = f"{self.service.url}/v1/completions"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
            usage = json.load(answer)["usage"]
        cached: int = usage["prompt_tokens_details"]["cached_tokens"]
        return cached


@pytest.fixture(scope="module")
def tenants(serve: Any) -> Tenants:
    return Tenants(serve())


def prompt(name: str) -> str:
    return f"{name} " + " ".join(f"word{number}" for number in range(NUM_WORDS))


def test_no_count_tells_one_tenant_what_another_has_sent(tenants: Tenants) -> None:
    """A second key of the same tenant finds its prefix; another tenant finds nothing, whatever it says of itself."""
    sent = prompt("one")
    assert tenants.ask("a", sent) == 0
    found = tenants.ask("a2", sent)
    assert found > 100
    assert tenants.ask("b", sent) == 0
    for fields in ({"cache_salt": "tenant:a"}, {"user": "a"}, {"metadata": {"tenant": "a"}}):
        other = prompt(json.dumps(fields))
        tenants.ask("a", other)
        assert tenants.ask("b", other, **fields) == 0
    assert tenants.ask("b", sent) == found
