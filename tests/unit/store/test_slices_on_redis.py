"""Slices from the real Redis: its script against its model in Python, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from certificates import write_certificate
from redis.asyncio import Redis
from redis_server import SlowProxy, free_port, redis_server

from penstock.sim.slices import MemorySlices
from penstock.store.slices import RedisSlices, check_url
from penstock.wire.errors import Problem
from penstock.wire.slices import MOST, SEED_S, SETTLE_S, Ask

debian = pytest.mark.debian
SECRET = b"s" * 32


@asynccontextmanager
async def slices(
    url: str, writer: str, *, secret: bytes = SECRET, timeout_s: float = 1.0
) -> AsyncIterator[RedisSlices]:
    opened = RedisSlices(url, secret, writer, timeout_s=timeout_s)
    try:
        yield opened
    finally:
        await opened.close()


def random_ask(dice: Random, now: int) -> Ask:
    kind = dice.choice(["minute", "window", "other window", "at a time"])
    free = dice.randrange(0, 30)
    common: dict[str, Any] = {
        "amount": dice.choice([50, 200, MOST]),
        "needs": tuple(dice.randrange(1, 120) for _ in range(dice.randrange(3))),
        "extra": dice.choice([0, 0, 40]),
        "free": free,
        "rest": free + (dice.randrange(0, 30) if kind != "minute" else 0),
    }
    if kind == "minute":
        slots = tuple((now + dice.randrange(-1, 4), dice.randrange(1, 40)) for _ in range(dice.randrange(4)))
        seeds = dice.choice([None, {}, {"gone": dice.randrange(100)}])
        hold_s, counts_from = dice.randrange(1, 4), now - dice.randrange(4)
        key = f"minute {dice.randrange(2)}"
        return Ask(key=key, slots=slots, hold_s=hold_s, counts_from=counts_from, seeds=seeds, **common)
    if kind == "at a time":
        return Ask(key="at a time", hold_s=1, **common)
    begin = now - now % 1000 if kind == "window" else now - 5000
    seeds = dice.choice([None, {}, {"gone": dice.randrange(100), "b": dice.randrange(40)}])
    return Ask(key="window", begin=begin, end=begin + 1000, counts_from=begin, seeds=seeds, **common)


@debian
async def test_the_script_does_what_its_model_does(tmp_path: Path) -> None:
    """For random statements of three writers over several seconds, every answer is the model's, to the millisecond."""
    dice = Random(1)
    clock = [0.0]
    model = MemorySlices(lambda: clock[0])
    with redis_server(tmp_path) as server:
        async with slices(server.url, "a") as a, slices(server.url, "b") as b, slices(server.url, "c") as c:
            now = int((await a.take([])).now)
            writers = {"a": a, "b": b, "c": c}
            first = True
            given = unmet = 0
            for _ in range(600):
                name = dice.choice("abc")
                asks = [random_ask(dice, now) for _ in range(dice.randrange(1, 4))]
                taken = await writers[name].take(asks)
                if first:
                    clock[0] = float(taken.epoch.split()[1])
                    model.take("a", [])
                    first = False
                clock[0] = taken.now
                expected = model.take(name, asks)
                assert list(taken.answers) == list(expected.answers), asks
                given += sum(answer.given for answer in taken.answers)
                unmet += sum(fits is not None for answer in taken.answers for fits in answer.fits_s)
                now = int(taken.now)
                await asyncio.sleep(0.01)
            assert given > 100 and unmet > 100


@debian
async def test_keys_are_named_by_rule_and_window_and_end_by_themselves(tmp_path: Path) -> None:
    """Each key has the service's own prefix and a time to live; another secret's service shares nothing with it."""
    with redis_server(tmp_path) as server:
        async with slices(server.url, "a") as one, slices(server.url, "a", secret=b"other" * 8) as stranger:
            now = int((await one.take([])).now)
            await stranger.take([])
            await asyncio.sleep(SETTLE_S + 0.05)
            day = Ask(
                key="tenant:t|tokens|day|",
                amount=100,
                needs=(60,),
                begin=now - 50,
                end=now + 50,
                counts_from=now - 50,
                seeds={},
            )
            minute = Ask(key="tenant:t|tokens|minute|", amount=100, needs=(60,), hold_s=71)
            [first, second] = (await one.take([day, minute])).answers
            assert first.given == second.given == 60 and first.left == 40
            assert [answer.given for answer in (await stranger.take([day, minute])).answers] == [60, 60]
            async with Redis.from_url(server.url) as plain:
                keys = [key.decode() if isinstance(key, bytes) else key for key in await plain.keys("*")]
                lives = {key: await plain.ttl(key) for key in keys}
            found = [key for key in keys if "tenant" in key]
            assert len(found) == 4 and all(
                re.match(r"penstock:\{[0-9a-f]{16}\}:tenant:t\|tokens\|", key) for key in found
            )
            assert all(70 <= lives[key] <= 135 for key in found if "minute" in key)
            assert all(86_400 < lives[key] <= 86_460 for key in found if f"day||{now - 50}" in key)
            assert SECRET.decode() not in "".join(keys)


@debian
async def test_an_older_statement_replaces_no_newer_one(tmp_path: Path) -> None:
    """A statement that was given up and arrives late is refused by Redis itself."""
    with redis_server(tmp_path) as server:
        proxy = SlowProxy(server.port)
        port = await proxy.start()
        async with slices(f"redis://127.0.0.1:{port}", "a", timeout_s=0.3) as one, slices(server.url, "b") as other:
            await one.take([])
            await asyncio.sleep(SETTLE_S + 0.05)
            proxy.delay_s = 0.7
            with pytest.raises(Problem) as away:
                await one.take([Ask(key="k", amount=10, rest=0, hold_s=9)])
            assert away.value.code == "limits_unavailable"
            proxy.delay_s = 0.0
            await one.take([Ask(key="k", amount=10, rest=9, hold_s=9)])
            await asyncio.sleep(0.9)
            [answer] = (await other.take([Ask(key="k", amount=10, needs=(2,), hold_s=9)])).answers
            assert answer.given == 0
        await proxy.stop()


@debian
async def test_a_server_that_began_anew_waits_to_be_told(tmp_path: Path) -> None:
    """Another process of the server is another epoch: first nothing is given, and windows wait longer for seeds."""
    with redis_server(tmp_path) as server:
        async with slices(server.url, "a") as one:
            epoch = (await one.take([])).epoch
            server.kill()
            with pytest.raises(Problem):
                await one.take([])
            server.start()
            taken = await one.take([Ask(key="k", amount=10, needs=(2,), hold_s=9)])
            now = int(taken.now)
            assert taken.epoch != epoch and taken.answers[0].status == "settling" and taken.answers[0].given == 0
            day = Ask(key="d", amount=10, needs=(2,), begin=now - 50, end=now + 50, counts_from=now - 50)
            await asyncio.sleep(SETTLE_S + 0.05)
            [minute, window] = (await one.take([Ask(key="k", amount=10, needs=(2,), hold_s=9), day])).answers
            assert minute.given == 2 and window.status == "settling"
            await asyncio.sleep(SEED_S - SETTLE_S)
            assert (await one.take([day])).answers[0].given == 2


@debian
async def test_a_clock_that_was_set_back_is_another_epoch(tmp_path: Path) -> None:
    """Nobody waits until the clock of the server has caught up with the begin of the last one."""
    ask = Ask(key="k", amount=10, needs=(2,), hold_s=9)
    with redis_server(tmp_path) as server:
        async with slices(server.url, "a") as one, Redis.from_url(server.url) as redis:
            taken = await one.take([ask])
            await redis.hset(await only_key(redis, "*:epoch"), "since", f"{taken.now + 3600:.6f}")
            later = await one.take([ask])
            assert later.epoch.split()[1] == f"{later.now:.6f}" and later.answers[0].status == "settling"
            await asyncio.sleep(SETTLE_S + 0.05)
            assert (await one.take([ask])).answers[0].given == 2


async def overwrite(redis: Redis, key: str) -> None:
    await redis.delete(key)
    await redis.set(key, "somebody else's")


@debian
async def test_what_somebody_else_has_written_concerns_one_limit_alone(tmp_path: Path) -> None:
    """A rule's key of another type is unusable until it is removed; the others are granted of as before."""
    asks = [Ask(key="k", amount=10, needs=(2,), hold_s=9), Ask(key="j", amount=10, needs=(2,), hold_s=9)]
    with redis_server(tmp_path) as server:
        async with slices(server.url, "a") as one, Redis.from_url(server.url) as redis:
            await one.take(asks)
            await asyncio.sleep(SETTLE_S + 0.05)
            await one.take(asks)
            key = await only_key(redis, "*:k")
            await overwrite(redis, key)
            answers = (await one.take(asks)).answers
            assert [(answer.status, answer.given) for answer in answers] == [("unusable", 0), ("given", 2)]
            assert await redis.get(key) == b"somebody else's"
            await redis.delete(key)
            assert [answer.given for answer in (await one.take(asks)).answers] == [2, 2]
            await redis.hset(key, mapping={"b": "no amounts", "c": "5 -3 99999999999 7"})
            assert [answer.given for answer in (await one.take(asks)).answers] == [2, 2]


@debian
@pytest.mark.parametrize("name", ["epoch", "last|a"])
@pytest.mark.parametrize("kind", ["text", "list", "hash"])
async def test_the_stores_own_keys_are_made_again(tmp_path: Path, name: str, kind: str) -> None:
    """Whatever stands there is forgetting at most: the next statement begins anew, and a while later is given."""
    ask = Ask(key="k", amount=10, needs=(2,), hold_s=9)
    with redis_server(tmp_path) as server:
        async with slices(server.url, "a") as one, Redis.from_url(server.url) as redis:
            epoch = (await one.take([ask])).epoch
            key = await only_key(redis, f"*:{name}")
            await overwrite(redis, key)
            if kind != "text":
                await redis.delete(key)
            if kind == "list":
                await redis.lpush(key, "x")
            if kind == "hash":
                await redis.hset(key, mapping={"run": epoch.split()[0], "since": "never"})
            await one.take([ask])
            await asyncio.sleep(SETTLE_S + 0.05)
            assert (await one.take([ask])).answers[0].given == 2


@debian
async def test_what_redis_refuses_is_told_and_over_when_it_is_over(tmp_path: Path) -> None:
    """Memory that is full, a replica, another password: no slice and the reason; then it goes on, in the same epoch."""
    ask = Ask(key="k", amount=10, needs=(2,), hold_s=9)

    async def refusal(one: RedisSlices) -> str:
        with pytest.raises(Problem) as refused:
            await one.take([ask])
        assert refused.value.code == "limits_unavailable" and "secret" not in refused.value.message
        return refused.value.message

    with redis_server(tmp_path) as server:
        async with slices(server.url, "a") as one, Redis.from_url(server.url) as redis:
            epoch = (await one.take([ask])).epoch
            await redis.config_set("maxmemory", "1mb")
            assert "used memory > 'maxmemory'" in await refusal(one)
            await redis.config_set("maxmemory", "0")
            await redis.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
            assert "read only replica" in await refusal(one)
            await redis.execute_command("REPLICAOF", "NO", "ONE")
            await redis.config_set("requirepass", "hunter-secret")
            assert (await one.take([ask])).epoch == epoch, "who is in stays in"
            await redis.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(Problem):
                await one.take([ask])
            assert "uthenticat" in await refusal(one)
            await redis.config_set("requirepass", "")
            assert (await one.take([ask])).epoch == epoch


@debian
@pytest.mark.parametrize(("policy", "is_told"), [("allkeys-lru", True), ("noeviction", False)])
async def test_a_server_that_may_drop_keys_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: str, is_told: bool
) -> None:
    """Once: what it forgets in silence may be granted again, and only its owner can mend that."""
    with redis_server(tmp_path, "--maxmemory", "64mb", "--maxmemory-policy", policy) as server:
        async with slices(server.url, "a") as one:
            await one.take([])
            await one.take([])
    assert caplog.text.count(f"maxmemory-policy {policy}") == is_told


@debian
async def test_a_server_that_was_emptied_is_told_again_before_it_gives(tmp_path: Path) -> None:
    """FLUSHALL while all run: nothing is given for as long as every gateway has to state what it holds."""
    with redis_server(tmp_path) as server:
        async with (
            slices(server.url, "a") as one,
            slices(server.url, "b") as other,
            Redis.from_url(server.url) as redis,
        ):
            await one.take([])
            await asyncio.sleep(SETTLE_S + 0.05)
            assert (await one.take([Ask(key="k", amount=10, needs=(8,), hold_s=9)])).answers[0].given == 8
            await redis.flushall()
            wants = Ask(key="k", amount=10, needs=(8,), hold_s=9)
            assert (await other.take([wants])).answers[0].status == "settling"
            await one.take([Ask(key="k", amount=10, rest=8, hold_s=9)])
            await asyncio.sleep(SETTLE_S + 0.05)
            [answer] = (await other.take([wants])).answers
            assert (answer.status, answer.given, answer.left) == ("given", 0, 2)


async def only_key(redis: Redis, pattern: str) -> str:
    [key] = [key async for key in redis.scan_iter(pattern)]
    return str(key.decode())


@debian
async def test_a_password_and_tls_are_taken_from_the_url(tmp_path: Path) -> None:
    """With both it works; with a wrong one it does not, and neither is in the message."""
    cert, key = write_certificate(tmp_path)
    tls = ("--tls-port", str(free_port()), "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    more = ("--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no", "--requirepass", "hunter-secret")
    with redis_server(tmp_path, *tls, *more):
        good = f"rediss://:hunter-secret@127.0.0.1:{tls[1]}/0?ssl_ca_certs={cert}"
        async with slices(good, "a") as one:
            assert (await one.take([])).epoch
        for bad in (good.replace("hunter-secret", "wrong-secret"), good.split("?", maxsplit=1)[0]):
            async with slices(bad, "a") as one:
                with pytest.raises(Problem) as refused:
                    await one.take([])
            assert refused.value.code == "limits_unavailable"
            assert "secret" not in refused.value.message and "secret" not in repr(refused.value.__context__)


@pytest.mark.parametrize(
    "url",
    [
        *("", "hunter-secret", "http://:hunter-secret@h:1", "redis://:hunter-secret@[h", "redis://u:hunter-secret@h:x"),
        *("redis://:hunter-secret@h,i:1/0", "redis+cluster://:hunter-secret@h:1", "redis+sentinel://h:1/mymaster/0"),
    ],
)
def test_what_is_no_url_of_redis_is_said_without_repeating_it(url: str) -> None:
    """It may hold a password.  Clients for several servers have such URLs, so that these are named."""
    with pytest.raises(Problem) as refused:
        check_url(url)
    assert refused.value.code == "invalid_setting" and "hunter" not in str(refused.value)
    assert "Redis Cluster and Sentinel are not supported" in refused.value.message
