"""Limits as clients see them: statuses, headers, and the end of a stream."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable

import aiohttp
import openai
import pytest

from penstock.config.prices import Price
from penstock.config.tenants import Limit, Principal, Scope
from penstock.gateway.http.rate_limit import duration_text
from penstock.gateway.identify import Identify

BODY = {"model": "org/m", "messages": [{"role": "user", "content": "a b"}], "seed": 11}


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Whoever asks is a key with these limits."""

    def limit(*limits: Limit) -> None:
        principal = Principal(tenant="t", key_id="k", scopes=(Scope(name="key:k", limits=limits),))
        monkeypatch.setattr(Identify, "arrive", lambda self, credentials: principal)

    return limit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0111, "12ms"), (1, "1s"), (8.64, "8.64s"), (360, "6m0s"), (61.5, "1m1.5s"), (93_780, "26h3m0s")],
)
def test_durations(seconds: float, text: str) -> None:
    """As OpenAI writes them, rounded up."""
    assert duration_text(seconds) == text


async def post(world, path="/v1/chat/completions", **changes):
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{world.url}{path}", json=BODY | changes) as response,
    ):
        return response.status, response.headers, await response.read()


async def test_requests_per_minute(start_world, limited) -> None:
    """Each answer says how it stands, and the request too many gets 429 with the time to wait."""
    limited(Limit(unit="requests", amount=2, window="minute"), Limit(unit="tokens", amount=5000, window="day"))
    world = await start_world(1)
    for left in ("1", "0"):
        status, headers, _ = await post(world, max_tokens=4, stream=left == "0")
        assert status == 200
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", left)
        assert headers["x-ratelimit-reset-requests"].startswith(("1m", "60", "59"))
        assert headers["x-ratelimit-limit-tokens"] == "5000"
    status, headers, body = await post(world)
    error = json.loads(body)["error"]
    assert (status, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert "key:k" in error["message"] and "2 requests per minute" in error["message"]
    assert 55 <= int(headers["retry-after"]) <= 61 and headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in headers
    status, headers, _ = await post(world, "/tokenize", messages=[{"role": "user", "content": "x"}])
    assert status == 429 and headers["x-ratelimit-limit-requests"] == "2"


async def test_a_used_up_budget_is_no_matter_of_trying_again(start_world, limited) -> None:
    """OpenAI's client raises at once: a budget is not waited for."""
    limited(Limit(unit="usd", amount=0.00002, window="month"))
    price = Price(model="org/m", since=dt.date(2020, 1, 1), input=0.0, output=1.0)
    world = await start_world(1, prices=(price,))
    client = openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="x", max_retries=2)
    async with client:
        await client.completions.create(model="org/m", prompt="a", max_tokens=20)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.completions.create(model="org/m", prompt="a", max_tokens=20)
    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(world.engines[0].requests) == 1
    assert [ended.code for ended in world.ended] == ["", "insufficient_quota"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_stream_that_runs_out_says_so(start_world, limited, path: str) -> None:
    """Its last chunk has ``length`` and names the limit; usage is what was delivered, and ``[DONE]`` follows."""
    limited(Limit(unit="tokens", amount=200, window="minute"))
    world = await start_world(1)
    changes = {"max_tokens": 1000, "stream": True, "stream_options": {"include_usage": True}}
    if path == "/v1/completions":
        changes |= {"prompt": "a b", "messages": None}
    body = {key: value for key, value in (BODY | changes).items() if value is not None}
    async with aiohttp.ClientSession() as session, session.post(f"{world.url}{path}", json=body) as response:
        frames = [line[6:] for line in (await response.read()).split(b"\n") if line.startswith(b"data: ")]
    assert frames[-1] == b"[DONE]"
    usage, last = json.loads(frames[-2])["usage"], json.loads(frames[-3])["choices"][0]
    assert last["finish_reason"] == "length" and "200 tokens per minute" in last["finish_detail"]
    assert usage["total_tokens"] == 200
    status, _, whole = await post(world, max_tokens=1000)
    assert status == 429 and b"rate_limit_exceeded" in whole


async def test_the_engine_is_left_when_a_limit_ends_its_stream(start_world, limited, make_behaviour, script) -> None:
    """It does not go on computing what nobody will get."""
    limited(Limit(unit="tokens", amount=150, window="minute"))
    world = await start_world(1)
    world.engines[0].behave = lambda request: make_behaviour(gap_s=0.001)
    status, _, body = await post(world, max_tokens=100_000)
    answer = json.loads(body)
    assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
    assert "150 tokens per minute" in answer["choices"][0]["finish_detail"]
    await script.until(lambda: world.engines[0].running == 0)


async def test_a_client_that_leaves_frees_what_it_held(start_world, limited, make_behaviour, script) -> None:
    """One at a time: the next request is taken as soon as the client of the first is gone."""
    limited(Limit(unit="concurrency", amount=1))
    world = await start_world(1)
    world.engines[0].behave = lambda request: make_behaviour(gap_s=0.01)
    async with aiohttp.ClientSession() as session:
        response = await session.post(
            f"{world.url}/v1/chat/completions", json=BODY | {"max_tokens": 9000, "stream": True}
        )
        await response.content.readany()
        status, headers, _ = await post(world)
        assert status == 429 and headers["retry-after"] == "1"
        response.close()

    async def taken() -> bool:
        status, _, _ = await post(world, max_tokens=1)
        return bool(status == 200)

    await script.until(taken)
