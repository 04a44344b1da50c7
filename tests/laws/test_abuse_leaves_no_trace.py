"""Thousands of random requests, with a KV cache a tenth of the demand: each ends once, right, and leaves nothing."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from abuse import (
    BLOCK_TOKENS,
    NUM_BLOCKS,
    NUM_CLIENTS,
    Footprint,
    Victim,
    check_flat,
    check_kept,
    differences,
    endings,
    footprint,
    kept,
    request,
    write_adapters,
)
from seeded import write_seeded_checkpoint

from penstock.wire.engine import GenerateRequest, Grammar, Sampling

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

WAYS = ("prompt-lookup", "draft")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("abuse") / "seeded"
    write_seeded_checkpoint(directory)
    write_adapters(directory)
    return directory


def speculating(checkpoint: Path, way: str) -> Victim:
    """An engine that speculates; the idle one whose answers are compared with its own does not.

    The checkpoint drafts for itself: right unless an adapter changes what is verified.
    """
    return Victim(checkpoint, speculative=str(checkpoint) if way == "draft" else way)


async def abuse(checkpoint: Path, victim: Victim, rounds: int, count: int, sample: int) -> list[Footprint]:
    """Rounds of requests; what the process holds after each.  ``sample`` answers are compared at the end."""
    seed, dice, held = 11, random.Random(11), []
    ends: Counter[str] = Counter()
    packed: dict[int, bytes] = {}
    with victim.running():
        await victim.take_adapters()
        for number in range(rounds):
            seen = await victim.round(seed, number * count, count)
            ends += endings(seen)
            packed |= kept(seen, dice, sample // rounds)
            del seen
            held.append(footprint())
    print(
        f"\n{rounds * count} requests: {dict(ends.most_common())}, {victim.booted.loop.scheduler.num_preempted}"
        f" preemptions, {victim.num_accepted} of {victim.num_proposed} proposed tokens right; {held[-1]}"
    )
    assert victim.booted.loop.scheduler.num_preempted > rounds and {"stop", "length", "cancelled"} <= ends.keys(), ends
    assert sum(number for code, number in ends.items() if code not in ("stop", "length", "cancelled")) > rounds
    assert victim.num_proposed > victim.num_accepted > rounds
    reference = Victim(checkpoint, num_blocks=NUM_BLOCKS * 4)
    try:
        with reference.running():
            await reference.take_adapters()
            await check_kept(reference, seed, packed)
    finally:
        reference.close()
    return held


def test_the_demand_is_ten_times_the_cache() -> None:
    """What the clients ask for at a time is about ten times what the blocks hold: the tests below are what they say."""
    asked = [request(11, number) for number in range(400)]
    tokens = [len(one.token_ids or one.text or "x" * 60) + min(one.max_tokens or 0, 100) for one in asked]
    assert 8 < NUM_CLIENTS * sum(tokens) / len(tokens) / (NUM_BLOCKS * BLOCK_TOKENS) < 14


@pytest.mark.parametrize("way", WAYS)
def test_a_hundred_requests_and_more_end_once_and_right(checkpoint: Path, way: str) -> None:
    """With aborts, priorities, tenants, adapters, schemas, stop strings, seeds; a sample is compared to the bit."""
    victim = speculating(checkpoint, way)
    try:
        asyncio.run(abuse(checkpoint, victim, rounds=1, count=160, sample=8))
    finally:
        victim.close()


def test_answers_under_a_schema_are_speculated_and_the_same(checkpoint: Path) -> None:
    """Lists of equal objects, greedy, drawn and penalised: what is proposed is sampled under its own masks."""
    item = {"properties": {"name": {"enum": ["x", "y"]}, "size": {"type": "integer"}}, "required": ["name", "size"]}
    schema = {"type": "array", "items": {"type": "object", "additionalProperties": False, **item}, "minItems": 20}
    grammar = Grammar(kind="json_schema", value=json.dumps(schema), param="response_format")
    samplings = [
        Sampling(seed=1, temperature=0.0),
        Sampling(seed=2, temperature=0.9),
        Sampling(seed=3, temperature=1.2, top_p=0.9, frequency_penalty=0.1),
    ]
    victim, reference = speculating(checkpoint, "prompt-lookup"), Victim(checkpoint)

    async def ask() -> None:
        with victim.running(), reference.running():
            for number, sampling in enumerate(samplings):
                asked = GenerateRequest(
                    id=f"schema-{number}", text="List: ", max_tokens=300, sampling=sampling, grammar=grammar, logprobs=0
                )
                speculated, alone = await asyncio.gather(victim.ask(asked), reference.ask(asked))
                assert not differences(speculated, alone) and len(alone.token_ids) == 300

    try:
        asyncio.run(ask())
    finally:
        victim.close()
        reference.close()
    assert victim.num_proposed > victim.num_accepted > 100


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", WAYS)
def test_ten_thousand_requests_leave_nothing_behind(checkpoint: Path, way: str) -> None:
    """No block, no file, no thread and no memory: at the end there is held what was held after a quarter."""
    victim = speculating(checkpoint, way)
    try:
        held = asyncio.run(abuse(checkpoint, victim, rounds=20, count=500, sample=200))
    finally:
        victim.close()
    check_flat(held)


def test_a_leak_would_be_seen() -> None:
    """A process that grows by three megabytes a round, or by one file, is not flat."""
    held = [Footprint(300 << 20, 0, 12, 9, 100_000)] * 12
    check_flat(held)
    for name, rate in (("memory", 3 << 20), ("files", 1), ("threads", 1), ("objects", 400)):
        growing = [replace(one, **{name: getattr(one, name) + rate * number}) for number, one in enumerate(held)]
        with pytest.raises(AssertionError):
            check_flat(growing)
