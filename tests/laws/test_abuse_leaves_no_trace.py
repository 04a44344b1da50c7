"""Thousands of random requests, with a KV cache a tenth of the demand: each ends once, right, and leaves nothing."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from abuse import (
    BLOCK_TOKENS,
    NUM_BLOCKS,
    NUM_CLIENTS,
    Footprint,
    Seen,
    Victim,
    check_flat,
    differences,
    endings,
    footprint,
    request,
    write_adapters,
)
from seeded import write_seeded_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("abuse") / "seeded"
    write_seeded_checkpoint(directory)
    write_adapters(directory)
    return directory


@pytest.fixture
def victim(checkpoint: Path) -> Iterator[Victim]:
    # It guesses ahead, and the idle engine whose answers it is compared with does not.
    victim = Victim(checkpoint, speculative="prompt-lookup")
    yield victim
    victim.close()


async def check_answers(checkpoint: Path, seed: int, seen: dict[int, Seen], sample: int) -> None:
    """What was read to the end is, to the bit, what an idle engine with all the memory answers."""
    read = [number for number, one in seen.items() if one.ended[0] in ("stop", "length")]
    reference = Victim(checkpoint, num_blocks=NUM_BLOCKS * 4)
    try:
        with reference.running():
            await reference.take_adapters()
            for number in random.Random(seed).sample(read, min(sample, len(read))):
                alone = await reference.ask(request(seed, number))
                assert not differences(seen[number], alone), f"request {number} of seed {seed}"
    finally:
        reference.close()


async def abuse(checkpoint: Path, victim: Victim, rounds: int, count: int, sample: int) -> list[Footprint]:
    """Rounds of requests, spot-checked; what the process holds after each."""
    seed, held = 11, []
    seen: dict[int, Seen] = {}
    preempted = victim.booted.loop.scheduler
    with victim.running():
        await victim.take_adapters()
        for number in range(rounds):
            seen |= await victim.round(seed, number * count, count)
            held.append(footprint(victim))
    ends = endings(seen)
    assert preempted.num_preempted > rounds and {"stop", "length", "cancelled"} <= ends.keys(), ends
    assert sum(number for code, number in ends.items() if code not in ("stop", "length", "cancelled")) > rounds
    await check_answers(checkpoint, seed, seen, sample)
    return held


def test_the_demand_is_ten_times_the_cache() -> None:
    """What the clients ask for at a time is about ten times what the blocks hold: the tests below are what they say."""
    asked = [request(11, number) for number in range(400)]
    tokens = [len(one.token_ids or one.text or "x" * 60) + min(one.max_tokens or 0, 100) for one in asked]
    assert 8 < NUM_CLIENTS * sum(tokens) / len(tokens) / (NUM_BLOCKS * BLOCK_TOKENS) < 14


def test_a_hundred_requests_and_more_end_once_and_right(checkpoint: Path, victim: Victim) -> None:
    """With aborts, priorities, tenants, adapters, schemas, stop strings, seeds; a sample is compared to the bit."""
    asyncio.run(abuse(checkpoint, victim, rounds=1, count=160, sample=8))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_thousand_requests_leave_nothing_behind(checkpoint: Path, victim: Victim) -> None:
    """No block, no file, no thread and no memory: at the end there is held what was held after a quarter."""
    held = asyncio.run(abuse(checkpoint, victim, rounds=20, count=500, sample=200))

    check_flat(held)


def test_a_leak_would_be_seen() -> None:
    """A process that grows by three megabytes a round, or by one file, is not flat."""
    held = [Footprint(300 << 20, 0, 12, 9, 100_000)] * 12
    check_flat(held)
    for name, rate in (("memory", 3 << 20), ("files", 1), ("threads", 1), ("objects", 400)):
        growing = [replace(one, **{name: getattr(one, name) + rate * number}) for number, one in enumerate(held)]
        with pytest.raises(AssertionError):
            check_flat(growing)
