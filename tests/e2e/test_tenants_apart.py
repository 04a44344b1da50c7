"""Tenants before one real engine: what one has sent is no cached prefix of another's, by count or by time."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import pytest
from commands import penstock

from penstock.runtimes.upstream import HttpUpstream
from penstock.wire.engine import Delta, Event, Finished, GenerateRequest, Sampling

MODEL = "seeded-1"
NUM_WORDS = 100


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
        service.wait_known(*self.keys.values())

    def ask(self, who: str, prompt: str, **fields: Any) -> int:
        """How many of its tokens were found cached."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 1} | fields
        headers = {"authorization": f"Bearer {self.keys[who]}", "content-type": "application/json"}
        url = f"{self.service.url}/v1/completions"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
            usage = json.load(answer)["usage"]
        cached: int = usage["prompt_tokens_details"]["cached_tokens"]
        return cached

    def ttft_s(self, who: str, prompt: str) -> float:
        """Until the first byte of a streamed answer."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 1, "stream": True}
        headers = {"authorization": f"Bearer {self.keys[who]}", "content-type": "application/json"}
        request = urllib.request.Request(f"{self.service.url}/v1/completions", json.dumps(body).encode(), headers)
        began = time.perf_counter()
        with urllib.request.urlopen(request) as answer:
            answer.readline()
            seconds = time.perf_counter() - began
            answer.read()
        return seconds


@pytest.fixture(scope="module")
def tenants(serve: Any) -> Tenants:
    return Tenants(serve())


def prompt(name: str) -> str:
    return f"{name} " + " ".join(f"word{number}" for number in range(NUM_WORDS))


def are_first_quicker(pairs: Iterable[tuple[float, float]]) -> bool:
    """Whether the first of a pair takes less than half as long as the second, as somebody would guess who waits.

    Each pair is measured in turns, so that a busy machine slows both down alike, and is a step of a walk that decides
    as soon as it is eight steps to one side.  Where a fifth of the pairs mislead, it errs once in 65,000 times.
    """
    walk = 0
    for first, second in pairs:
        walk += 1 if first < second / 2 else -1
        if abs(walk) == 8:
            break
    return walk > 0


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


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("who", "is_quicker"), [("a2", True), ("b", False)], ids=["its own", "another tenant's"])
def test_no_time_tells_one_tenant_what_another_has_sent(tenants: Tenants, who: str, is_quicker: bool) -> None:
    """Another tenant waits for what was sent before as long as for a new prompt; a tenant's own other key does not."""

    def pairs() -> Iterator[tuple[float, float]]:
        for number in count():
            sent = prompt(f"sent {who} {number}")
            tenants.ask("a", sent)
            yield tenants.ttft_s(who, sent), tenants.ttft_s("b", prompt(f"new {who} {number}"))

    assert are_first_quicker(pairs()) is is_quicker


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_salts_the_time_would_tell(tenants: Tenants) -> None:
    """As the gateway would send them if it set no salt, prompts of another tenant are answered at once."""
    [socket] = tenants.service.engine_sockets()

    def pairs() -> Iterator[tuple[float, float]]:
        for number in count():
            sent = prompt(f"without salt {number}")
            unsalted_ttft_s(socket, f"a{number}", "a", sent)
            seen_s = unsalted_ttft_s(socket, f"b{number}", "b", sent)
            yield seen_s, unsalted_ttft_s(socket, f"new{number}", "b", prompt(f"new without salt {number}"))

    assert are_first_quicker(pairs())


def unsalted_ttft_s(socket: str, id: str, tenant: str, text: str) -> float:
    """Until the first token, at the engine itself."""
    request = GenerateRequest(id=id, tenant=tenant, text=text, max_tokens=1, sampling=Sampling(seed=1))
    times: list[float] = []

    async def ask() -> None:
        upstream = HttpUpstream()
        began = time.perf_counter()

        def push(events: list[Event]) -> None:
            if any(isinstance(event, Delta | Finished) for event in events):
                times.append(time.perf_counter() - began)

        try:
            await upstream.generate(socket, request, push)
        finally:
            await upstream.close()

    asyncio.run(ask())
    return times[0]
