"""A trace is replayed under every way to balance, with the gateway's own decisions, and compared."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli.main import build
from penstock.loadgen.traces import read_trace
from penstock.loadgen.workloads import Demand
from penstock.sim.balance import WAYS, BalanceRules, replay_balance
from penstock.sim.replica import EngineSize, Job, SimulatedReplica

SMALL = BalanceRules(replicas=4, engine=EngineSize(kv_tokens=64 * 1024))
TRACES = Path(__file__).parents[4] / "shared" / "traces"


def conversations(count: int, per_s: float, seed: int = 1) -> list[Demand]:
    """Thirty long beginnings that are asked about again and again, each time with an end of its own."""
    dice = random.Random(seed)
    beginnings = [tuple(range(100 * n, 100 * n + dice.randrange(4, 16))) for n in range(30)]
    at_s, demands = 0.0, []
    for number in range(count):
        at_s += dice.expovariate(per_s)
        blocks = (*dice.choice(beginnings), 1_000_000 + number)
        demands.append(Demand(at_s, len(blocks) * 512 - dice.randrange(512), dice.randrange(8, 200), blocks))
    return demands


@pytest.mark.parametrize("way", WAYS)
def test_every_request_is_answered_and_nothing_depends_on_chance(way) -> None:
    """Each gets its first token and its end, after it came; the same trace gives the same spread."""
    demands = conversations(300, 12.0)
    spread = replay_balance(demands, way, SMALL)
    assert spread.requests == 300 and 0 < spread.ttft_p50_s <= spread.ttft_p99_s
    assert spread.imbalance >= 1 and 0 <= spread.hit_share < 1
    assert replay_balance(demands, way, SMALL) == spread


def test_ways_that_know_the_beginnings_find_more_of_them() -> None:
    """Where no replica holds all beginnings, both ways that look at them hit more than those that do not."""
    demands = conversations(600, 6.0)
    hits = {way: replay_balance(demands, way, SMALL).hit_share for way in WAYS}
    blind = max(hits["random"], hits["round-robin"], hits["least-tokens"])
    assert hits["prefix-hash"] > 1.2 * blind and hits["marginal-time"] > 1.2 * blind


@pytest.mark.parametrize("per_s", [4.0, 8.0, 12.0])
def test_predicted_time_is_not_worse_than_fewest_tokens(per_s: float) -> None:
    """At low and middling load and at as much as they can do, p50 and p99 of the first token's time are no worse.

    At the last of them queues only grow, and what is no worse is so within a tenth.
    """
    demands = conversations(600, per_s)
    fewest, predicted = (replay_balance(demands, way, SMALL) for way in ("least-tokens", "marginal-time"))
    noise = 1.1 if per_s == 12.0 else 1.0
    assert predicted.ttft_p50_s <= noise * fewest.ttft_p50_s
    assert predicted.ttft_p99_s <= noise * fewest.ttft_p99_s


def test_a_modelled_engine_takes_the_time_of_its_steps() -> None:
    """A lone job: its prefill in chunks, then a step per token; a later one finds its beginning in the cache."""
    engine = SimulatedReplica(EngineSize(step_tokens=512))
    step = engine.size.step_time
    first = Job(1024, 4, (1, 2), 0.0)
    engine.submit(first, 0.0)
    while first.ended_at is None:
        engine.finish_step()
    assert first.first_at is not None
    assert first.first_at == pytest.approx(step.seconds(512, 512) + step.seconds(512, 1024))
    assert first.ended_at - first.first_at == pytest.approx(3 * step.seconds(1, 1026), rel=0.01)
    assert engine.due is None and engine.kv_use == 0
    second = Job(1100, 1, (1, 2, 3), 10.0)
    engine.submit(second, 10.0)
    engine.finish_step()
    assert second.cached == 1024 and second.ended_at == second.first_at == pytest.approx(10 + step.seconds(76, 1100))


def test_jobs_wait_for_memory_and_none_is_forgotten() -> None:
    """A replica whose KV cache holds one of them at a time serves all in turn, and gives everything back."""
    engine = SimulatedReplica(EngineSize(kv_tokens=2048))
    jobs = [Job(1500, 50, (number,), 0.0) for number in range(5)]
    for job in jobs:
        engine.submit(job, 0.0)
    while engine.due is not None:
        engine.finish_step()
    ends = [job.ended_at for job in jobs]
    assert None not in ends and ends == sorted(ends, key=lambda end: end or 0.0) and engine.kv_use == 0


def test_the_command_compares_both_formats(tmp_path: Path) -> None:
    """`penstock bench balance` reads Mooncake's and Azure's formats, prints a table, and JSON of the same."""
    mooncake, azure = tmp_path / "m.jsonl", tmp_path / "a.csv"
    rows = [
        {"timestamp": n * 100, "input_length": 1200, "output_length": 9, "hash_ids": [n % 3, 100 + n % 7, 1000 + n]}
        for n in range(50)
    ]
    mooncake.write_text("\n".join(map(json.dumps, rows)))
    lines = [f"2023-11-16 18:17:{n:02}.5000000,{100 + n},7" for n in range(50)]
    azure.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    for trace in (mooncake, azure):
        told = CliRunner().invoke(build(), ["bench", "balance", str(trace), "--replicas", "2", "--json"])
        assert told.exit_code == 0, told.output
        said = json.loads(told.stdout)
        assert [way["way"] for way in said["ways"]] == list(WAYS) and said["requests"] == 50
    table = CliRunner().invoke(build(), ["bench", "balance", str(azure), "--ways", "random,marginal-time"]).stdout
    assert len(table.splitlines()) == 4 and "marginal-time" in table


@pytest.mark.parametrize(
    "name", ["mooncake-fast25/conversation_trace.jsonl.gz", "azure-llm-2023/AzureLLMInferenceTrace_conv.csv"]
)
def test_on_recorded_traces_predicted_time_is_not_worse(name: str) -> None:
    """The first 4,000 requests: p50 and p99 of the time to first token, at most a twentieth above fewest tokens."""
    path = TRACES / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    demands = read_trace(path, limit=4000)
    fewest, predicted = (replay_balance(demands, way, BalanceRules()) for way in ("least-tokens", "marginal-time"))
    assert predicted.ttft_p50_s <= 1.05 * fewest.ttft_p50_s
    assert predicted.ttft_p99_s <= 1.05 * fewest.ttft_p99_s
