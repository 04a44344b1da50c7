"""No stream is lost, wrong or left over, whatever happens to the engines: the production gateway on virtual time.

``CHAOS_SEED=N pytest tests/laws/test_streams_survive_chaos.py`` replays the world of one seed.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import get_args

import pytest

from penstock.config.desired import Balance
from penstock.mock.answer import Answer
from penstock.sim.chaos import ChaosRules, Report, chaos
from penstock.sim.loop import run

SEEDS = [int(os.environ["CHAOS_SEED"])] if "CHAOS_SEED" in os.environ else range(4)


def check(report: Report, streams: int) -> None:
    again = f"replay it with CHAOS_SEED={report.seed}"
    assert report.wrong == [], again
    assert report.finished + report.left == streams, again
    assert (report.in_flight, report.outstanding, report.at_engines) == (0, 0, 0), again


@pytest.mark.parametrize("seed", SEEDS)
def test_two_thousand_streams_survive(seed: int) -> None:
    """500 streams per seed through kills, stalls, drains, restarts and rolling upgrades: none lost, none wrong."""
    report = chaos(seed)
    check(report, 500)
    assert report.resumed > 20 and len(report.faults) >= 3


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_streams_survive() -> None:
    """The same with two hundred other worlds."""
    resumed = 0
    for seed in range(1000, 1200):
        report = chaos(seed)
        check(report, 500)
        resumed += report.resumed
    print(f"100000 streams, {resumed} resumes, none lost, none wrong")


@pytest.mark.parametrize("balance", get_args(Balance))
def test_streams_survive_however_they_are_balanced(balance: Balance) -> None:
    """Every way to spread sequences keeps its books: nothing is outstanding, queued or decoding afterwards."""
    check(chaos(11, ChaosRules(streams=150, balance=balance)), 150)


def test_a_world_follows_from_its_seed() -> None:
    """The same seed gives the same report to the last digit; another one another."""
    rules = ChaosRules(streams=120)
    assert asdict(chaos(7, rules)) == asdict(chaos(7, rules)) != asdict(chaos(8, rules))


def test_the_law_sees_a_token_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose resumed answers skip a token is found out: the comparison can fail."""
    original = Answer._replay

    def skip_one(answer: Answer, emitted: list[int]) -> None:
        original(answer, emitted)
        answer.position += 1

    monkeypatch.setattr(Answer, "_replay", skip_one)
    assert any("tokens" in wrong for wrong in chaos(0, ChaosRules(streams=200)).wrong)


def test_virtual_time_costs_nothing_and_never_waits_for_ever() -> None:
    """A day of sleeping is over at once; a world in which nothing will ever happen says so."""

    async def day() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    assert run(day()) == 86_400
    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        run(forever())


async def forever() -> None:
    await asyncio.Event().wait()
