"""Limits in the pipeline: what is held, what is cut, what is given back."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from zlib import crc32

import pytest
from gateways import Engines, House, losing, tokens_of

from penstock.config.prices import Price
from penstock.config.tenants import Limit
from penstock.cost.money import Tariff
from penstock.gateway.call import ClientGone
from penstock.gateway.identify import Credentials
from penstock.gateway.limits import Used
from penstock.gateway.upstream import Accept
from penstock.policy.limit import Amounts
from penstock.wire.embedding import Embedded, EmbedRequest
from penstock.wire.engine import Accepted, Finished
from penstock.wire.errors import Problem
from penstock.wire.tokenization import TokenizeRequest


def per_minute(amount: float, unit="tokens") -> Limit:
    return Limit(unit=unit, amount=amount, window="minute")


AT_A_TIME = Limit(unit="concurrency", amount=1)


async def test_a_finished_call_is_charged_what_the_engine_reports() -> None:
    """The bytes of the body and the slice of output are held for the while, and the usage stays."""
    house = House(per_minute(1000), per_minute(10, "requests"), AT_A_TIME)
    held = []
    await house.ask(body_bytes=300, watch=lambda call: held.append(house.granted()))
    assert held[0] == 5 + 1 + 256
    assert [house.granted(number) for number in range(3)] == [5 + 11, 1, 0]


async def test_a_stream_beyond_its_limit_ends_with_what_was_granted() -> None:
    """It ends with ``length``, names the limit, and counts to the very token what it was given."""
    house = House(per_minute(40), engines=Engines(num_tokens=1000))
    answered = await house.ask(body_bytes=20)
    last = answered[0][-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.usage.prompt, last.usage.output) == ("length", 5, 35)
    assert last.limit == "tenant:t has 0 tokens left of 40 tokens per minute, and 1 token is needed"
    assert tokens_of(answered[0]) == 35 and house.granted() == 40
    with pytest.raises(Problem) as refused:
        await house.ask(body_bytes=1)
    assert refused.value.code == "rate_limit_exceeded" and refused.value.retry_after_s == 61
    house.clock.pass_time(61)
    await house.ask(body_bytes=1)


@pytest.mark.parametrize("n", [2, 3])
async def test_choices_share_what_their_call_was_granted(n: int) -> None:
    """All choices of a call end when its limit is reached, each with ``length``, and none is lost."""
    house = House(per_minute(50), engines=Engines(num_tokens=1000))
    answered = await house.ask(n=n)
    lasts = [events[-1] for events in answered.values()]
    assert len(lasts) == n and all(isinstance(last, Finished) and last.limit for last in lasts)
    assert sum(map(tokens_of, answered.values())) + 5 == house.granted() <= 50
    assert house.granted() > 50 - n


async def test_a_natural_end_is_never_cut() -> None:
    """With just enough for the answer and the token that ends it, an answer ends as it would have anyway."""
    house = House(per_minute(20 + 11), engines=Engines(num_tokens=10))
    last = (await house.ask(body_bytes=20))[0][-1]
    assert isinstance(last, Finished) and (last.reason, last.limit, last.usage.output) == ("stop", "", 11)


async def test_a_prompt_larger_than_its_bytes_is_refused_before_it_is_computed() -> None:
    """A template may make more of a prompt than the body had bytes: it is held then, or the call refused."""
    house = House(per_minute(500), engines=Engines(prompt_tokens=lambda request: 400))
    await house.ask(body_bytes=20)
    assert house.granted() == 400 + 11
    with pytest.raises(Problem) as refused:
        await house.ask(body_bytes=20)
    assert refused.value.code == "rate_limit_exceeded" and house.granted() == 400 + 11
    assert house.ended[-1].outcome == "rejected"


async def test_what_can_never_fit_is_said_so() -> None:
    """More than the whole limit is no matter of time."""
    house = House(per_minute(10))
    with pytest.raises(Problem) as refused:
        await house.ask(body_bytes=10)
    assert refused.value.code == "request_exceeds_limit" and not refused.value.spec.retryable


async def test_a_budget_is_held_and_charged_in_dollars() -> None:
    """Reserved at the full price, charged with the cached tokens at theirs, and refused when it is used up."""
    price = Price(model="m", since=dt.date(2026, 1, 1), input=2.0, cached=0.5, output=10.0)
    house = House(Limit(unit="usd", amount=0.001, window="month"), tariff=Tariff([price]))
    held = []
    await house.ask(body_bytes=20, max_tokens=20, watch=lambda call: held.append(house.granted()))
    assert held[0] == 5 * 2_000 + 20 * 10_000
    assert house.granted() == 3 * 2_000 + 2 * 500 + 11 * 10_000
    with pytest.raises(Problem) as refused:
        for _ in range(20):
            await house.ask(body_bytes=20, max_tokens=20)
    assert refused.value.code == "insufficient_quota" and house.granted() <= 1_000_000


async def test_a_budget_does_not_cover_what_has_no_price() -> None:
    """Refused with what to do, rather than counted as nothing; a price of nothing is a price."""
    budget = Limit(unit="usd", amount=1, window="month")
    with pytest.raises(
        Problem, match=r"tenant:t has a budget of \$1 per month, and the model 'm' has no price"
    ) as refused:
        await House(budget).ask()
    assert refused.value.code == "price_missing" and "--prices" in refused.value.spec.hint
    free = Price(model="m", since=dt.date(2026, 1, 1), input=0, output=0)
    await House(budget, tariff=Tariff([free])).ask()
    await House(per_minute(1000)).ask()


async def test_running_requests_are_counted_until_they_end() -> None:
    """A second request at a time is refused while the first runs, and taken when that was left by its client."""
    house = House(AT_A_TIME)
    refusals = []

    async def second() -> None:
        with pytest.raises(Problem) as refused:
            await house.ask()
        refusals.append(refused.value.code)

    first = asyncio.create_task(house.ask(leave_after=5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await second()
    with pytest.raises(ClientGone):
        await first
    await house.ask()
    assert refusals == ["rate_limit_exceeded"] and house.granted() == 0


async def test_a_call_that_nothing_was_done_for_costs_nothing() -> None:
    """Where no engine took it up, neither the request nor its tokens count."""
    house = House(per_minute(100), per_minute(10, "requests"))
    for state in house.replicas.models[0].replicas:
        house.replicas.lost(state)
    house.replicas.models[0].was_ready = False
    with pytest.raises(Problem) as failed:
        await house.ask()
    assert failed.value.code == "not_ready"
    assert [house.granted(number) for number in range(2)] == [0, 0]


async def test_embeddings_and_tokenizing_are_limited() -> None:
    """An embedding takes the tokens that its engine reports; turning text into tokens is a request without any."""
    house = House(per_minute(50), per_minute(3, "requests"))
    request = EmbedRequest(id="e", texts=["x"])
    with house.gateway.open("/v1/embeddings", Credentials(authorization=b"k")) as call:
        house.gateway.find(call, "m")
        await house.gateway.embed(call, request, 30)
    question = TokenizeRequest(text="x")
    for _ in range(2):
        with house.gateway.open("/tokenize", Credentials(authorization=b"k")) as call:
            house.gateway.find(call, "m")
            await house.gateway.exchange(call, lambda socket: house.engines.tokenize(socket, question))
    assert [house.granted(number) for number in range(2)] == [7, 3]
    with (
        pytest.raises(Problem, match="3 requests per minute"),
        house.gateway.open("/v1/embeddings", Credentials(authorization=b"k")) as call,
    ):
        house.gateway.find(call, "m")
        await house.gateway.embed(call, request, 30)


async def test_an_embedding_that_is_larger_than_its_limit_allows_is_charged_and_written_down() -> None:
    """Its engine has worked when that is known: normal forms make thirty bytes of three, and who asks again has used
    the limit up.
    """
    house = House(per_minute(10))
    house.engines.embedded_tokens = 100
    for code in ("request_exceeds_limit", "rate_limit_exceeded"):
        with (
            pytest.raises(Problem) as refused,
            house.gateway.open("/v1/embeddings", Credentials(authorization=b"k")) as call,
        ):
            house.gateway.find(call, "m")
            await house.gateway.embed(call, EmbedRequest(id="e", texts=["x"]), 9)
        assert refused.value.code == code
    assert [(ended.outcome, ended.prompt_tokens) for ended in house.ended] == [("failed", 100), ("rejected", 0)]
    assert house.granted() == 9


class Busy(Engines):
    """Never comes to the vectors.  ``tells``: but says what it has taken on."""

    tells = True

    async def embed(self, socket: str, request: EmbedRequest, accept: Accept) -> Embedded:
        if self.tells:
            accept(Accepted(prompt_tokens=self.embedded_tokens))
        await asyncio.Event().wait()
        raise AssertionError


async def leave_an_embedding(house: House) -> None:
    async def one() -> None:
        with house.gateway.open("/v1/embeddings", Credentials(authorization=b"k")) as call:
            house.gateway.find(call, "m")
            await house.gateway.embed(call, EmbedRequest(id="e", texts=["x"]), 9)

    task = asyncio.create_task(one())
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def test_who_leaves_an_embedding_has_made_a_request() -> None:
    """An engine was about to read it: of two that are allowed, none is left for a third."""
    engines = Busy()
    engines.tells = False
    house = House(per_minute(2, "requests"), engines=engines)
    for _ in range(2):
        await leave_an_embedding(house)
    with pytest.raises(Problem, match="2 requests per minute"):
        await leave_an_embedding(house)
    assert [ended.outcome for ended in house.ended] == ["cancelled", "cancelled", "rejected"]


async def test_who_leaves_an_embedding_has_used_what_its_engine_took_on() -> None:
    """Tokens are charged and written down as those of a prompt are: twice seven of twenty leave too few for a third."""
    house = House(per_minute(20), engines=Busy())
    for _ in range(2):
        await leave_an_embedding(house)
    assert house.granted() == 14
    with pytest.raises(Problem, match="20 tokens per minute"):
        await leave_an_embedding(house)
    assert [(ended.outcome, ended.prompt_tokens) for ended in house.ended] == [
        ("cancelled", 7),
        ("cancelled", 7),
        ("rejected", 0),
    ]


async def test_no_company_exceeds_a_limit_and_none_leaks() -> None:
    """Calls beside one another, with lost engines, clients that leave and several choices: at every batch the limit
    holds, and in the end each account has exactly what the calls have used.
    """
    # One company alone may have no client that leaves before its call ends.
    outcomes = set().union(*[await _outcomes_of_a_company(seed) for seed in range(12)])
    assert outcomes >= {"finished", "cancelled", "rejected"}


async def _outcomes_of_a_company(seed: int) -> set[str]:
    dice = random.Random(seed)
    engines = Engines(
        num_tokens=40,
        prompt_tokens=lambda request: 3 + crc32(request.id.split("-")[0].encode()) % 60,
        lose=losing(dice, 0.3),
        batch=lambda: dice.randrange(1, 5),
    )
    house = House(per_minute(2_000), per_minute(60, "requests"), Limit(unit="concurrency", amount=8), engines=engines)

    def check(call: object) -> None:
        house.heal()
        assert house.granted(0) <= 2_000 and house.granted(1) <= 60 and house.granted(2) <= 8

    async def one() -> None:
        leave = dice.choice([None, None, dice.randrange(1, 20)])
        try:
            await house.ask(body_bytes=dice.randrange(1, 60), n=dice.randrange(1, 4), leave_after=leave, watch=check)
        except (Problem, ClientGone):
            check(None)

    for _ in range(10):
        await asyncio.gather(*[one() for _ in range(10)])
    used = sum(ended.prompt_tokens + ended.output_tokens for ended in house.ended)
    assert house.granted(0) == used <= 2_000, f"seed {seed}"
    assert house.granted(2) == 0, f"seed {seed}"
    return {ended.outcome for ended in house.ended}


async def test_a_gateway_that_begins_anew_recalls_what_was_used() -> None:
    """The limits of the minute, the day and the month go on where they were."""
    house = House(
        Limit(unit="tokens", amount=100, window="day"),
        Limit(unit="tokens", amount=500, window="month", model="m"),
        per_minute(100),
    )
    house.limits.recall(
        "day", [Used("g", "tenant:t", "m", Amounts(tokens=50)), Used("h", "tenant:t", "n", Amounts(tokens=20))]
    )
    house.limits.recall(
        "month", [Used("g", "tenant:t", "m", Amounts(tokens=300)), Used("g", "tenant:other", "m", Amounts(tokens=9))]
    )
    house.limits.recall("minute", [Used("g", "tenant:t", "m", Amounts(tokens=7))])
    await house.ask(max_tokens=11)
    assert [house.granted(number) for number in range(3)] == [70 + 16, 300 + 16, 7 + 16]
    house.limits.recall("day", [Used("g", "tenant:t", "m", Amounts(tokens=10))])
    assert house.granted(0) == 96
    with pytest.raises(Problem, match="100 tokens per day"):
        await house.ask(body_bytes=20)
    house.clock.pass_time(86_400)
    house.limits.recall("day", [Used("g", "tenant:t", "m", Amounts(tokens=90))])
    assert house.granted(0) == 90, "yesterday's account has to make room for what is known of today"
