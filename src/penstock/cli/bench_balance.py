"""``penstock bench balance TRACE``: each way to balance, compared on a recorded trace over simulated replicas.

In: a trace and sizes; out: a table on standard output, or one JSON object with ``--json``.  Virtual time: the figures
are the same on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.sim.balance import Spread, Way


def balance(
    trace: Annotated[Path, typer.Argument(help="Azure's CSV or Mooncake's JSON lines, plain or .gz.")],
    replicas: Annotated[int, typer.Option(help="How many replicas.", min=1, max=1000)] = 8,
    speed: Annotated[float, typer.Option(help="How many times faster than recorded requests come.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Only so many requests, from the first on.", min=1)] = None,
    ways: Annotated[str, typer.Option(help="Which ways, with commas; all without.")] = "",
    kv_tokens: Annotated[int, typer.Option(help="Tokens that a replica's KV cache holds.", min=1024)] = 768 * 1024,
    prefill_rate: Annotated[float, typer.Option(help="Tokens per second that a replica computes.", min=1.0)] = 16_000.0,
    step_ms: Annotated[float, typer.Option(help="What a step takes beside its tokens.", min=0.0)] = 12.0,
    seed: Annotated[int, typer.Option(help="Of the random way.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Replay a trace under every way to balance, with the gateway's own routing code."""
    import msgspec

    from penstock.cost.time import StepTime
    from penstock.loadgen.traces import read_trace
    from penstock.sim.balance import BalanceRules, replay_balance
    from penstock.sim.replica import EngineSize

    if not 0 < speed < float("inf"):
        raise Problem("invalid_setting", f"The speed is {speed}; give a positive number.", param="--speed")
    demands = read_trace(trace, time_scale=1 / speed, limit=limit)
    step_time = StepTime(base_s=step_ms / 1000, per_token_s=1 / prefill_rate, per_kv_token_s=2e-8)
    engine = EngineSize(step_time=step_time, kv_tokens=kv_tokens)
    rules = BalanceRules(replicas=replicas, engine=engine, seed=seed)
    spreads = [replay_balance(demands, way, rules) for way in _ways(ways)]
    if as_json:
        asked = {"trace": trace.name, "requests": len(demands), "speed": speed, "replicas": replicas}
        typer.echo(msgspec.json.encode(asked | {"ways": spreads}).decode())
        return
    typer.echo(f"{trace.name}: {len(demands)} requests in {demands[-1].at_s:.0f} s, {replicas} replicas")
    typer.echo("\n".join(_table(spreads)))


def _ways(text: str) -> list[Way]:
    from penstock.sim.balance import WAYS

    asked = [part.strip() for part in text.split(",") if part.strip()] or list(WAYS)
    found: list[Way] = [way for way in WAYS if way in asked]
    if len(found) != len(set(asked)):
        raise Problem("invalid_setting", f"{text!r}: ways are {', '.join(WAYS)}.", param="--ways")
    return found


def _table(spreads: list[Spread]) -> list[str]:
    head = f"{'':15}{'TTFT p50':>10}{'p99':>9}{'TPOT p50':>10}{'p99':>9}{'cached':>8}{'imbalance':>11}{'good':>7}"
    return [head] + [
        f"{s.way:15}{s.ttft_p50_s:9.3f}s{s.ttft_p99_s:8.2f}s{s.tpot_p50_s * 1000:8.1f}ms{s.tpot_p99_s * 1000:7.1f}ms"
        f"{s.hit_share:8.1%}{s.imbalance:11.3f}{s.good_share:7.1%}"
        for s in spreads
    ]
