"""Streams through `penstock serve` over real sockets, while its engines are killed, drained, frozen and upgraded.

Mock engines draw token i from prompt, seed and i, so that what every client should have heard is known beforehand.
Now and then one falls silent in the middle of a stream, for ever, and says that it is well.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
import pytest
from mocked import answer_of

from penstock.mock import words
from penstock.wire.engine import GenerateRequest, Sampling

SCRIPT = {"ttft_s": 0.05, "gap_s": 0.02, "jitter": 0.3, "output_tokens": 1000, "drain_s": 0.6}
STALL = {"kind": "stall", "after": 3, "share": 0.005}


@dataclass
class Tally:
    """What became of all streams."""

    whole: int = 0
    left: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def expected(number: int, num_tokens: int) -> str:
    prompt = f"user\nprompt {number}\n".encode()
    request = GenerateRequest(id="", sampling=Sampling(seed=number, temperature=1.0), messages=[])
    return answer_of(words.key_of(request, prompt), num_tokens)


async def listen(session: aiohttp.ClientSession, url: str, number: int, dice: random.Random, tally: Tally) -> None:
    """One client; one in twenty leaves in the middle."""
    num_tokens = dice.randrange(5, 90)
    leaves = dice.random() < 0.05
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": f"prompt {number}"}],
        "seed": number,
        "temperature": 1.0,
        "max_tokens": num_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, ends, done, usage = "", 0, 0, None
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            if answer.status == 503:  # nothing was promised yet: no engine was back in time
                tally.refused += 1
                await answer.read()
                return
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    done += 1
                    continue
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    text += choice["delta"].get("content", "")
                    ends += choice["finish_reason"] is not None
                if leaves and text:
                    tally.left += 1
                    return
    except Exception as error:
        tally.wrong.append(f"{number}: {type(error).__name__} {error} after {text!r}")
        return
    counted = usage["completion_tokens"] if usage else None
    if (text, ends, done, counted) == (expected(number, num_tokens), 1, 1, num_tokens):
        tally.whole += 1
    else:
        tally.wrong.append(
            f"{number}: {ends} ends, {done} [DONE], {counted} tokens counted of {num_tokens}: {text!r} "
            f"instead of {expected(number, num_tokens)!r}"
        )


async def upgrades(running, sources: list[str], over: asyncio.Event, done: dict[str, int]) -> None:
    """One rolling upgrade after the other until it is over, each to the end that it comes to under the other faults."""
    environment = os.environ | {"PENSTOCK_HOME": str(running.home)}
    for source in itertools.cycle(sources):
        if over.is_set():
            return
        command = [sys.executable, "-m", "penstock", "upgrade", "mock", source, "--drain-timeout", "0.5", "--json"]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment
        )
        said, _ = await process.communicate()
        state = json.loads(said)["state"]
        assert state in ("done", "rolled_back"), state
        done[state] = done.get(state, 0) + 1


async def trouble(running, dice: random.Random, every_s: float, done: dict[str, int]) -> None:
    """Faults until cancelled, counted in ``done``.  Nobody is struck twice, and one is left alone each time."""
    struck: set[int] = set()
    while True:
        await asyncio.sleep(dice.uniform(0.5, 1.5) * every_s)
        members = (await asyncio.to_thread(running.state))["members"]
        fresh = [
            m["pid"] for m in members if m["kind"] == "engine" and m["phase"] == "ready" and m["pid"] not in struck
        ]
        if len(fresh) < 2:
            continue
        kind = dice.choices(list(done), weights=[5, 2, 2, 1])[0]
        for pid in fresh[1:] if kind == "roll" else [dice.choice(fresh)]:
            with suppress(ProcessLookupError):
                if kind == "freeze":
                    os.kill(pid, signal.SIGSTOP)
                    await asyncio.sleep(0.3)
                    os.kill(pid, signal.SIGCONT)
                    continue
                struck.add(pid)
                os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGTERM)
                await asyncio.sleep(1.0 if kind == "roll" else 0.0)
        done[kind] += 1


async def storm(
    serve, tmp_path, *, streams: int, at_once: int, every_s: float, seed: int, least: int, upgrading: bool = True
) -> dict[str, int]:
    """At least so many streams and so many faults, checked; returns the faults that there were."""
    sources = []
    for name, gap_s in (("old", 0.02), ("new", 0.021)):
        script = tmp_path / f"{name}.json"
        script.write_text(json.dumps(SCRIPT | {"gap_s": gap_s, "seed": seed, "faults": [STALL]}))
        sources.append(f"mock://{script}")
    running = serve("--replicas", "4", model=sources[0])
    dice, tally, numbers = random.Random(seed), Tally(), itertools.count()
    faults = {"kill": 0, "drain": 0, "freeze": 0, "roll": 0}
    over, upgraded = asyncio.Event(), dict[str, int]()
    rolling = asyncio.create_task(upgrades(running, [*sources[1:], sources[0]] if upgrading else [], over, upgraded))
    troubling = asyncio.create_task(trouble(running, random.Random(seed + 1), every_s, faults))
    connector = aiohttp.TCPConnector(limit=0)
    asked = 0
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:

        async def client() -> None:
            nonlocal asked
            while asked < streams or sum(faults.values()) < least:
                asked += 1
                await listen(session, running.url, next(numbers), dice, tally)

        await asyncio.gather(*(client() for _ in range(at_once)))
    troubling.cancel()
    await asyncio.gather(troubling, return_exceptions=True)
    over.set()
    await rolling
    assert tally.wrong == [], "\n".join([f"seed {seed}: {len(tally.wrong)} wrong of {asked}", *tally.wrong])
    assert tally.whole + tally.left + tally.refused == asked and tally.whole > 0.8 * asked
    await asyncio.to_thread(running.until, lambda: running.num_running() == 0, "engines without work")
    await asyncio.to_thread(running.until, lambda: running.in_flight() == 0, "a gateway that holds nothing")
    ended = [line for line in running.metrics().splitlines() if line.startswith("penstock_requests_total")]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in ended) == asked
    resumed = [line for line in running.metrics().splitlines() if line.startswith("penstock_stream_resumes_total")]
    resumes = sum(int(float(line.rsplit(" ", 1)[1])) for line in resumed)
    print(f"seed {seed}: {asked} streams, {tally}, {resumes} resumes, faults {faults}, upgrades {upgraded}")
    assert await asyncio.to_thread(running.stop) == 0
    return faults | upgraded


async def test_hundreds_of_streams_outlive_their_engines(serve, tmp_path) -> None:
    """300 streams over real sockets: each token-equal, ended exactly once, and nothing in flight afterwards."""
    faults = await storm(serve, tmp_path, streams=300, at_once=60, every_s=0.5, seed=1, least=4, upgrading=False)
    assert sum(faults.values()) >= 4


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 12))
async def test_ten_thousand_streams_outlive_their_engines(serve, tmp_path, seed: int) -> None:
    """Ten times 1,000 streams under random SIGKILLs, drains, freezes, stalls, rolling restarts and upgrades.

    0 lost, 0 wrong, and nothing in flight afterwards.
    """
    faults = await storm(serve, tmp_path, streams=1000, at_once=100, every_s=1.0, seed=seed, least=8)
    assert faults["kill"] and faults.get("done", 0) + faults.get("rolled_back", 0) >= 1
