"""``penstock bench serve``: open-loop load on an OpenAI-compatible endpoint.

In: flags; out: a table on standard output, or one JSON object with ``--json``; progress on standard error.
Exit code 1 when no request succeeded, 130 when interrupted (what was measured so far is printed).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from penstock.config.settings import API_KEY, DEFAULT_URL
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.loadgen.client import Tally, Target
    from penstock.loadgen.report import Distribution, Outcome, Report
    from penstock.loadgen.workloads import Demand

DEFAULT_REQUESTS = 100
LATE_S = 0.01
"""A client that sends its p99 later than this is worth a warning: it may be what was measured."""


def serve(
    url: Annotated[str, typer.Argument(help="Any OpenAI-compatible endpoint.")] = DEFAULT_URL,
    model: Annotated[str | None, typer.Option(help="Default: the first of /v1/models.")] = None,
    endpoint: Annotated[str, typer.Option(help="completions: token ids, exact lengths; chat: words.")] = "completions",
    rate: Annotated[float, typer.Option(help="Poisson arrivals per second; inf: all at once.")] = 4.0,
    requests: Annotated[
        int | None, typer.Option(help=f"How many; default {DEFAULT_REQUESTS}, or all of a trace.", min=1)
    ] = None,
    duration: Annotated[float | None, typer.Option(help="Schedule nothing after so many seconds.", min=0.001)] = None,
    prompt_tokens: Annotated[str, typer.Option(help="N, or LOW:HIGH for uniform.")] = "32:256",
    output_tokens: Annotated[str, typer.Option(help="N, or LOW:HIGH for uniform.")] = "32:128",
    trace: Annotated[Path | None, typer.Option(help="Replay Azure's .csv or Mooncake's .jsonl, also .gz.")] = None,
    time_scale: Annotated[float, typer.Option(help="Multiplies a trace's times; 0.5 is twice as fast.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Only a trace's first rows.", min=1)] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Cap on a trace's prompts.", min=1)] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Cap on a trace's outputs.", min=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Both caps at once.", min=1)] = None,
    vocabulary: Annotated[int, typer.Option(help="Random prompts use token ids from 10 to below this.", min=11)] = 256,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 0.0,
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for exact output lengths; turn off where a server refuses ignore_eos.")
    ] = True,
    slo: Annotated[str | None, typer.Option(help="Goodput bounds in seconds: ttft=0.5,tpot=0.05,e2e=10.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds per request.", min=0.001)] = 600.0,
    seed: Annotated[int, typer.Option(help="Same seed, same workload.")] = 0,
    api_key: Annotated[str | None, typer.Option(envvar=API_KEY, help="Sent as a bearer token.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure an endpoint under open-loop load: requests are sent on time, however slow the answers are."""
    import asyncio

    import msgspec

    from penstock.loadgen.client import Target
    from penstock.loadgen.report import Slo, summarise
    from penstock.loadgen.stream import api_base

    bounds = Slo.parse(slo) if slo else None
    if trace is not None:
        caps = (max_prompt_tokens or max_tokens, max_output_tokens or max_tokens)
        demands = _traced(trace, time_scale, limit, requests, duration, caps)
        workload = {"trace": trace.name, "time_scale": time_scale, "max_prompt_tokens": caps[0]}
        workload |= {"max_output_tokens": caps[1], "seed": seed}
    else:
        demands = _synthetic(rate, requests, duration, prompt_tokens, output_tokens, seed)
        workload = {"rate": None if math.isinf(rate) else rate, "prompt_tokens": prompt_tokens}
        workload |= {"output_tokens": output_tokens, "seed": seed}
    target = Target(
        url=api_base(url),
        model=model or "",
        endpoint=_endpoint(endpoint),
        api_key=api_key,
        vocabulary=vocabulary,
        temperature=temperature,
        ignore_eos=ignore_eos,
        timeout_s=timeout,
    )
    target, outcomes, interrupted = asyncio.run(_drive(target, demands, seed))
    asked = {"url": target.url, "model": target.model, "endpoint": target.endpoint, "ignore_eos": ignore_eos}
    report = summarise(outcomes, target=asked, workload=workload, slo=bounds, interrupted=interrupted)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _print_table(report)
    if interrupted or not report.requests_ok:
        raise typer.Exit(130 if interrupted else 1)


def _endpoint(name: str) -> Literal["chat", "completions"]:
    if name == "chat":
        return "chat"
    if name == "completions":
        return "completions"
    raise Problem("invalid_setting", f"endpoint: {name!r} is neither completions nor chat.", param="endpoint")


def _traced(
    path: Path,
    time_scale: float,
    limit: int | None,
    requests: int | None,
    duration_s: float | None,
    caps: tuple[int | None, int | None],
) -> list[Demand]:
    from penstock.loadgen.traces import read_trace

    rows = min(limit or sys.maxsize, requests or sys.maxsize)
    demands = read_trace(path, time_scale=time_scale, limit=rows, max_prompt_tokens=caps[0], max_output_tokens=caps[1])
    return [demand for demand in demands if duration_s is None or demand.at_s < duration_s]


def _synthetic(
    rate: float, requests: int | None, duration_s: float | None, prompt: str, output: str, seed: int
) -> list[Demand]:
    from penstock.loadgen.arrivals import poisson
    from penstock.loadgen.workloads import Lengths, synthetic

    if requests is None and (duration_s is None or math.isinf(rate)):
        requests = DEFAULT_REQUESTS
    demands = synthetic(
        poisson(rate, seed),
        Lengths.parse(prompt, "prompt_tokens"),
        Lengths.parse(output, "output_tokens"),
        seed=seed,
        count=requests,
        duration_s=duration_s,
    )
    if not demands:
        message = (
            f"At {rate:g} requests/s none arrives within {duration_s:g} s; give a longer duration or a higher rate."
        )
        raise Problem("invalid_setting", message, param="duration")
    return demands


async def _drive(target: Target, demands: Sequence[Demand], seed: int) -> tuple[Target, list[Outcome], bool]:
    """Run the load with progress; the first Ctrl-C stops it and keeps what was measured, the second one quits."""
    import asyncio
    import dataclasses
    import signal

    from penstock.cli.open_files import allow_open_files
    from penstock.loadgen.client import Tally, reach, run_open_loop

    target = dataclasses.replace(target, model=await reach(target.url, target.api_key, target.model or None))
    allow_open_files(len(demands) + 64)  # open loop: as many sockets as there are requests in flight
    stop, tally, loop = asyncio.Event(), Tally(), asyncio.get_running_loop()

    def interrupt() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    ticker = asyncio.create_task(_show_progress(tally, len(demands)))
    try:
        outcomes = await run_open_loop(target, demands, seed=seed, stop=stop, tally=tally)
    finally:
        ticker.cancel()
        await asyncio.wait([ticker])
        loop.remove_signal_handler(signal.SIGINT)
    return target, outcomes, stop.is_set()


async def _show_progress(tally: Tally, planned: int) -> None:
    import asyncio

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=planned)
        while True:
            words = f"{tally.ended}/{planned} done, {tally.sent - tally.ended} in flight, {tally.failed} failed"
            bar.update(task, completed=tally.ended, description=words, refresh=True)
            await asyncio.sleep(0.25)


def _print_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    figures = Table("latency", "mean", "p50", "p90", "p99", "max", title="Counted from the scheduled arrival")
    rows: tuple[tuple[str, Distribution], ...] = (
        ("first token (TTFT)", report.ttft_s),
        ("per token (TPOT)", report.tpot_s),
        ("between chunks (ITL)", report.itl_s),
        ("end to end", report.e2e_s),
        ("TTFT, from send", report.from_send.ttft_s),
        ("end to end, from send", report.from_send.e2e_s),
        ("sent late by", report.lag_s),
    )
    for name, one in rows:
        figures.add_row(name, *(_time(value) for value in (one.mean, one.p50, one.p90, one.p99, one.max)))
    for column in figures.columns[1:]:
        column.justify = "right"
    console.print(figures)
    for line in _summary(report):
        console.print(line, markup=False)


def _summary(report: Report) -> list[str]:
    offered = report.offered_requests_per_s
    ended = f"{report.requests_ok} ok, {report.requests_failed} failed, {report.requests_cut_short} cut short"
    lines = [
        f"{report.target['model']} at {report.target['url']} ({report.target['endpoint']})",
        f"requests   {ended} of {report.requests_planned}, in {report.duration_s:.2f} s",
        f"rate       {report.requests_per_s:.2f} requests/s achieved, "
        + ("all offered at once" if offered is None else f"{offered:.2f} offered"),
        f"tokens     {report.input_tokens} in ({report.cached_input_tokens} cached), {report.output_tokens} out",
        f"throughput {report.input_tokens_per_s:.1f} tokens/s in, {report.output_tokens_per_s:.1f} tokens/s out",
    ]
    if report.goodput is not None:
        good = report.goodput
        bounds = ", ".join(
            f"{name} {_time(bound)}" for name in ("ttft", "tpot", "e2e") if (bound := getattr(good.slo, name))
        )
        lines.append(f"goodput    {good.requests_per_s:.2f} requests/s, {good.share:.1%} within {bounds}")
    lines += [f"error      {n} x {code}: {report.error_messages[code]}" for code, n in report.errors.items()]
    if report.usage_missing:
        lines.append(f"note       {report.usage_missing} answers had no usage: their chunks were counted as tokens")
    if report.lag_s.p99 is not None and report.lag_s.p99 > LATE_S and offered is not None:
        lines.append(
            f"note       the client sent up to {_time(report.lag_s.max)} late: it may be the bottleneck itself"
        )
    if report.interrupted:
        lines.append("note       interrupted: these are the figures so far")
    return lines


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
