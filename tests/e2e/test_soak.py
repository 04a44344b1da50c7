"""`make soak MINUTES=60`: random requests at an engine for as long as you like; what it holds over time stays flat."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

import pytest
from abuse import (
    NUM_BLOCKS,
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

MINUTES = float(os.environ.get("SOAK_MINUTES", "2"))
ROUND, SAMPLE, ROWS = 100, 2, 60

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(MINUTES * 60 * 2 + 600),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def test_memory_stays_flat_and_tokens_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds of requests until the time is over, each round spot-checked to the bit against an engine of its own."""
    write_seeded_checkpoint(tmp_path / "seeded")
    write_adapters(tmp_path / "seeded")
    victim, reference = Victim(tmp_path / "seeded"), Victim(tmp_path / "seeded", num_blocks=NUM_BLOCKS * 4)
    held: list[Footprint] = []
    try:
        with capsys.disabled():
            print("\n  minute  requests       MB  grammar MB  files  threads   objects")
            asyncio.run(soak(victim, reference, held))
    finally:
        victim.close()
        reference.close()
    check_flat(held)


async def soak(victim: Victim, reference: Victim, held: list[Footprint]) -> None:
    """Abuse ``victim`` until the time is over and note in ``held`` what the process holds after each round."""
    seed, begun, printed = random.SystemRandom().randrange(1 << 30), time.monotonic(), -1.0
    print(f"{'':8} seed {seed}")
    with victim.running(), reference.running():
        await victim.take_adapters()
        await reference.take_adapters()
        while (minute := (time.monotonic() - begun) / 60) < MINUTES or len(held) < 8:
            seen = await victim.round(seed, len(held) * ROUND, ROUND)
            await spot_check(reference, seed, seen)
            held.append(footprint(victim))
            if minute - printed >= MINUTES / ROWS:
                printed = minute
                print(row(minute, len(held) * ROUND, held[-1]), dict(endings(seen).most_common(3)), flush=True)
        print(row(minute, len(held) * ROUND, held[-1]))


async def spot_check(reference: Victim, seed: int, seen: dict[int, Seen]) -> None:
    """Some answers of a round, once more, alone."""
    read = [number for number, one in seen.items() if one.ended[0] in ("stop", "length")]
    for number in random.Random(seed).sample(read, SAMPLE):
        alone = await reference.ask(request(seed, number))
        assert not differences(seen[number], alone), f"request {number} of seed {seed}"


def row(minute: float, requests: int, held: Footprint) -> str:
    return (
        f"{minute:8.1f} {requests:9} {held.memory / 1e6:8.1f} {held.grammar_memory / 1e6:11.1f}"
        f" {held.files:6} {held.threads:8} {held.objects:9}"
    )
