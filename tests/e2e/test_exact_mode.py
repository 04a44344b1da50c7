"""`penstock serve --exact`: a seeded request has the same bits on any replica, in any company, after a kill."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from openai import AsyncOpenAI

MODEL = "seeded-1"
MAX_TOKENS = 100
REQUESTS = [(f"Tell me of number {n}.", n) for n in range(6)]


async def listen(client: AsyncOpenAI, prompt: str, seed: int) -> list[tuple[str, float, dict[str, float]]]:
    """Every token of one drawn stream with its log-probability and its alternatives."""
    heard: list[Any] = []
    stream = await client.completions.create(
        model=MODEL,
        prompt=prompt,
        seed=seed,
        temperature=1.2,
        max_tokens=MAX_TOKENS,
        logprobs=2,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        for choice in chunk.choices:
            if (scores := choice.logprobs) is not None:
                heard += zip(scores.tokens or [], scores.token_logprobs or [], scores.top_logprobs or [], strict=True)
    assert len(heard) == MAX_TOKENS
    return heard


def resumes(running: Any) -> float:
    """How many streams went on elsewhere so far."""
    lines = [line for line in running.metrics().splitlines() if line.startswith("penstock_stream_resumes_total{")]
    return sum(float(line.split()[-1]) for line in lines)


async def kill_engines_in_turn(running: Any, until: asyncio.Event) -> None:
    """SIGKILL an engine whenever both are ready, one after the other, until ``until`` is set."""
    kills = 0
    while not until.is_set():
        members = (await asyncio.to_thread(running.state))["members"]
        ready = [member for member in members if member["phase"] == "ready" and member["kind"] == "engine"]
        if len(ready) == 2:
            os.kill(ready[kills % 2]["pid"], signal.SIGKILL)
            kills += 1
        await asyncio.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_seeded_request_has_one_answer(serve: Any) -> None:
    """Alone, all together, while engines are killed, and after a restart of the whole service: not a bit differs."""
    options = ("--exact", "--replicas", "2", "--threads", "1", "--dtype", "bfloat16")
    running = serve(*options)
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        alone = [await listen(client, *request) for request in REQUESTS]
        assert alone[0] != alone[1]
        together = await asyncio.gather(*(listen(client, *request) for request in REQUESTS * 2))
        assert together == alone * 2
        done = asyncio.Event()
        killing = asyncio.create_task(kill_engines_in_turn(running, done))
        while await asyncio.to_thread(resumes, running) < 2:
            assert await asyncio.gather(*(listen(client, *request) for request in REQUESTS)) == alone
        done.set()
        await killing
    running.stop()

    again = serve(*options)
    async with AsyncOpenAI(base_url=f"{again.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        assert await listen(client, *REQUESTS[3]) == alone[3]
    again.stop()
