"""Gateways measured in turns: what was completed is kept, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.cli import bench_rounds
from penstock.cli.bench_rounds import Rounds
from penstock.cli.wiring.clock import Monotonic
from penstock.loadgen import doorbench
from penstock.loadgen.doorbench import Door, Figures, Pair, Sizes
from penstock.wire.errors import Problem

UPSTREAMS: Any = SimpleNamespace(whole=None, tokens=None, slow=None)
FIGURES = Figures(**dict.fromkeys([n for n in Figures.__struct_fields__ if n != "open_streams"], 1), open_streams=None)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes no time: what is tried here is the turns."""

    async def measure(pair: Pair, *_: object) -> Figures:
        return FIGURES

    monkeypatch.setattr(bench_rounds, "measure", measure)
    monkeypatch.setattr(doorbench, "_SETTLE_S", 0.0)


def gateway(started: Counter[str], name: str, start_s: float = 0.1, then: Callable[[], Any] | None = None) -> Any:
    """How a gateway is started that is there at once; ``then`` is awaited before it is ready."""

    @asynccontextmanager
    async def start(upstream: Door) -> AsyncIterator[Door]:
        started[name] += 1
        if then is not None:
            await then()
        yield Door("127.0.0.1", 1, os.getpid(), start_s, "m")
        started[f"{name} ended"] += 1

    return start


def rounds_of(starts: dict[str, Any], runs: int, told: list[str] | None = None) -> Rounds:
    tell = (told if told is not None else []).append
    return Rounds(starts, runs, Sizes(open_streams=0), Monotonic(), tell)


async def test_a_slow_gateway_is_started_once_for_all_of_its_runs() -> None:
    """Before each of its two upstreams; a quick one is started anew for every run, and all are ended."""
    started: Counter[str] = Counter()
    starts = {"ours": gateway(started, "ours"), "slow": gateway(started, "slow", start_s=10.0)}
    rounds = rounds_of(starts, 3)
    await rounds.take(UPSTREAMS, 60.0)
    assert started == {"ours": 6, "ours ended": 6, "slow": 2, "slow ended": 2}
    assert {name: len(figures) for name, figures in rounds.each.items()} == {"ours": 3, "slow": 3}
    assert (rounds.partial, rounds.signal, rounds.skipped) == ("", 0, {})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_keeps_what_was_completed(number: int) -> None:
    """The run that it meets is not counted, what ran is ended, and the report will say that it is partial."""
    started: Counter[str] = Counter()

    async def struck() -> None:
        os.kill(os.getpid(), number)
        await asyncio.sleep(60)

    rounds = rounds_of({"ours": gateway(started, "ours"), "other": gateway(started, "other", then=struck)}, 5)
    await rounds.take(UPSTREAMS, 60.0)
    assert (len(rounds.each["ours"]), len(rounds.each["other"])) == (1, 0)
    assert rounds.signal == number and rounds.partial == f"stopped by {signal.Signals(number).name}"
    assert started["ours ended"] == 2


async def test_time_that_is_over_keeps_what_was_completed() -> None:
    """However long a gateway would take, all together take no longer than was allowed."""
    started: Counter[str] = Counter()

    async def forever() -> None:
        await asyncio.sleep(60)

    rounds = rounds_of({"ours": gateway(started, "ours"), "other": gateway(started, "other", then=forever)}, 5)
    await rounds.take(UPSTREAMS, 2.0)
    assert (len(rounds.each["ours"]), rounds.partial, rounds.signal) == (1, "2 s were over", 0)


async def test_a_gateway_that_fails_ends_its_own_runs_alone() -> None:
    """The others go on, and everybody is told at once; only the first one's problem is the caller's."""
    started: Counter[str] = Counter()

    async def fail() -> None:
        raise Problem("endpoint_error", "It did not become ready.")

    told: list[str] = []
    rounds = rounds_of({"ours": gateway(started, "ours"), "other": gateway(started, "other", then=fail)}, 2, told)
    await rounds.take(UPSTREAMS, 60.0)
    assert len(rounds.each["ours"]) == 2 and rounds.skipped == {"other": "It did not become ready."}
    assert [line for line in told if line.startswith("ours, run 2 of 2: 1.000 ms per request")]
    assert "other: It did not become ready." in told and started["other"] == 1
    with pytest.raises(Problem, match="did not become ready"):
        await rounds_of({"ours": gateway(started, "ours", then=fail)}, 2).take(UPSTREAMS, 60.0)
