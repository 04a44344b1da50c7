"""A real engine over a small checkpoint: a flood is not felt by others, and a target between tokens is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from abuse import BLOCK_BYTES, Victim
from seeded import write_seeded_checkpoint

from penstock.wire.engine import Delta, Finished, GenerateRequest, Sampling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared") / "seeded"
    write_seeded_checkpoint(directory)
    return directory


def engine(checkpoint: Path, itl_target_s: float | None = None) -> Victim:
    """The engine as it is served, with KV memory for a dozen of the requests below."""
    return Victim(
        checkpoint,
        itl_target_s=itl_target_s,
        exact=False,
        max_model_len=2048,
        kv_memory_bytes=1200 * BLOCK_BYTES,
        max_step_tokens=512,
        max_num_seqs=16,
    )


def asked(name: str, tenant: str, prompt: int, output: int) -> GenerateRequest:
    token_ids = [33 + (sum(name.encode()) + i * i) % 90 for i in range(prompt)]
    return GenerateRequest(
        id=name,
        sampling=Sampling(seed=1, temperature=0.0),
        token_ids=token_ids,
        max_tokens=output,
        ignore_eos=True,
        tenant=tenant,
        cache_salt=name,
    )


async def token_times(victim: Victim, request: GenerateRequest) -> list[float]:
    """When the request was sent, and when each of its tokens came."""
    times = [time.perf_counter()]
    opened = await victim.service.generate(request)
    while True:
        events = await opened.stream.drain()
        times += [time.perf_counter() for event in events if isinstance(event, Delta)]
        if isinstance(events[-1], Finished):
            return times


async def flood(victim: Victim, count: int) -> None:
    await asyncio.gather(*(token_times(victim, asked(f"f{i}", "flood", 300 + i, 60)) for i in range(count)))


@pytest.fixture
def shared(checkpoint: Path) -> Iterator[Victim]:
    victim = engine(checkpoint)
    yield victim
    victim.close()


def test_a_flood_leaves_anothers_first_token_within_twice_its_lone_time(shared: Victim) -> None:
    """Two hundred requests of one tenant wait, and the first tokens of another's come after twice the work at most.

    Work is what the engine computes meanwhile: unlike seconds, it is about the same on a machine that others use, too.
    """

    async def quiet(round: str) -> tuple[list[float], list[int]]:
        taken, work = [], []
        for number in range(7):
            before = shared.num_tokens
            times = await token_times(shared, asked(f"{round}{number}", "quiet", 1500, 1))
            taken.append(times[1] - times[0])
            work.append(shared.num_tokens - before)
        return taken, work

    async def both() -> None:
        with shared.running():
            await quiet("warm")
            lone_s, lone = await quiet("lone")
            flooding = asyncio.create_task(flood(shared, 200))
            while len(shared.booted.loop) < 200:
                await asyncio.sleep(0.005)
            beside_s, beside = await quiet("beside")
            assert len(shared.booted.loop.scheduler.waiting) > 20, "the flood was over"
            flooding.cancel()
            assert median(beside) <= 2 * median(lone), (lone, beside)
            assert min(beside_s) <= 2 * median(lone_s), (lone_s, beside_s)

    asyncio.run(both())


def test_a_target_between_tokens_is_kept_beside_long_prompts(checkpoint: Path) -> None:
    """With a target that full steps miss, most gaps of a stream keep it; without one most do not."""

    async def gaps(victim: Victim) -> list[float]:
        with victim.running():
            await asyncio.gather(*(token_times(victim, asked(f"w{i}", "a", 1500, 2)) for i in range(3)))
            stream = asyncio.create_task(token_times(victim, asked("stream", "a", 50, 160)))
            prompts = [asyncio.create_task(token_times(victim, asked(f"p{i}", "b", 1500, 2))) for i in range(60)]
            times = await stream
            for prompt in prompts:
                prompt.cancel()
            return [b - a for a, b in pairwise(times[1:])]

    free = engine(checkpoint)
    try:
        without = median(asyncio.run(gaps(free)))
    finally:
        free.close()
    bound = engine(checkpoint, itl_target_s=without / 2)
    try:
        kept = median(asyncio.run(gaps(bound)))
    finally:
        bound.close()
    assert kept <= without / 2
