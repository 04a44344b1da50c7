"""`make soak MINUTES=60`: random requests at an engine for as long as you like; what it holds over time stays flat."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from abuse import (
    NUM_BLOCKS,
    Footprint,
    Victim,
    check_flat,
    check_kept,
    endings,
    footprint,
    kept,
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
    reference = Victim(tmp_path / "seeded", num_blocks=NUM_BLOCKS * 4)
    # The checkpoint drafts for itself: right unless an adapter changes what is verified.
    victims = [Victim(tmp_path / "seeded", speculative=way) for way in ("prompt-lookup", str(tmp_path / "seeded"))]
    held: list[Footprint] = []
    try:
        with capsys.disabled():
            print("\n  minute  requests  proposed     right       MB  grammar MB  files  threads   objects")
            asyncio.run(soak(victims, reference, held))
    finally:
        for victim in (*victims, reference):
            victim.close()
    check_flat(held)


async def soak(victims: Sequence[Victim], reference: Victim, held: list[Footprint]) -> None:
    """Abuse the victims in turn until the time is over; ``held``: what the process holds after each turn of them all.

    One proposes by look-up and one by a draft model; all requests may have adapters and schemas.
    """
    seed, begun, printed = random.SystemRandom().randrange(1 << 30), time.monotonic(), -1.0
    dice, rounds = random.Random(seed), 0
    print(f"{'':8} seed {seed}")
    with contextlib.ExitStack() as running:
        for engine in (*victims, reference):
            running.enter_context(engine.running())
            await engine.take_adapters()
        while (minute := (time.monotonic() - begun) / 60) < MINUTES or len(held) < 8:
            for victim in victims:
                seen = await victim.round(seed, rounds * ROUND, ROUND)
                await check_kept(reference, seed, kept(seen, dice, SAMPLE))
                rounds += 1
            ends = endings(seen)
            del seen
            held.append(footprint())
            if minute - printed >= MINUTES / ROWS:
                printed = minute
                print(row(minute, rounds * ROUND, victims, held[-1]), dict(ends.most_common(3)), flush=True)
        print(row(minute, rounds * ROUND, victims, held[-1]))
    assert all(victim.num_proposed > victim.num_accepted > len(held) for victim in victims)


def row(minute: float, requests: int, victims: Sequence[Victim], held: Footprint) -> str:
    proposed = sum(victim.num_proposed for victim in victims)
    accepted = sum(victim.num_accepted for victim in victims)
    return (
        f"{minute:8.1f} {requests:9} {proposed:9} {accepted:9} {held.memory / 1e6:8.1f}"
        f" {held.grammar_memory / 1e6:11.1f} {held.files:6} {held.threads:8} {held.objects:9}"
    )
