"""``penstock bench gateway``: what the gateway process costs, measured from outside, beside others where installed.

In: flags; out: a table on standard output, or one JSON object with ``--json``; progress on standard error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

if TYPE_CHECKING:
    from penstock.cli.bench_rounds import Rounds
    from penstock.loadgen.doorbench import Sizes

_OURS = "penstock"
_QUICK = {
    "requests": 200,
    "requests_alone": 50,
    "stream_tokens": 20,
    "streams": 32,
    "first_tokens": 16,
    "open_hold_s": 4.0,
}
"""Enough to see that everything runs, too little for a figure."""
_ROWS = (
    ("CPU per request, 16 in flight", "cpu_ms_per_request", "ms"),
    ("CPU per request, alone", "cpu_ms_per_request_alone", "ms"),
    ("requests per second, 16 in flight", "requests_per_s", "count"),
    ("CPU per chunk, 32 streams", "cpu_ms_per_chunk", "ms"),
    ("CPU per chunk, a lone stream", "cpu_ms_per_chunk_alone", "ms"),
    ("added to the first token, p50, alone", "added_ttft_p50_ms", "ms"),
    ("added to the first token, p50, 32 in parallel", "added_ttft_p50_ms_at_32", "ms"),
    ("added to the first token, p50, 32 at once", "added_ttft_p50_ms_in_a_burst", "ms"),
    ("the first token without it, p50, alone", "direct_ttft_p50_ms", "ms"),
    ("the first token without it, p50, 32 in parallel", "direct_ttft_p50_ms_at_32", "ms"),
    ("the first token without it, p50, 32 at once", "direct_ttft_p50_ms_in_a_burst", "ms"),
    ("the load's own share of a core, at most", "load_busy", "cores"),
    ("start", "start_s", "s"),
    ("memory, idle", "memory_bytes", "MB"),
    ("memory, after the load", "memory_after_bytes", "MB"),
    ("requests counted, 16 in flight", "num_requests", "count"),
    ("requests counted, alone", "num_requests_alone", "count"),
    ("chunks counted, 32 streams", "num_chunks", "count"),
    ("chunks counted, a lone stream", "num_chunks_alone", "count"),
)


def gateway(
    open_streams: Annotated[int, typer.Option(help="How many streams are held open at once; 0: none.", min=0)] = 5000,
    peers: Annotated[str, typer.Option(help="Others beside it: litellm, smg, haproxy, with commas; or all.")] = "",
    peers_from: Annotated[
        Path | None, typer.Option(help="Folder of their programs, such as the bin of their own environment.")
    ] = None,
    runs: Annotated[
        int, typer.Option(help="How often, in turns with the others; medians are shown, and ranges.", min=1)
    ] = 1,
    within: Annotated[
        float, typer.Option(help="Seconds after which it ends with the runs that were completed.", min=1)
    ] = 600.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tenth of the load: runs everything, proves nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the gateway against mock engines: CPU, memory, start, added time, open streams.

    Ctrl-C or SIGTERM ends it with what was completed.
    """
    import asyncio

    import uvloop

    from penstock.cli.bench_peers import chosen
    from penstock.cli.open_files import allow_open_files
    from penstock.loadgen.doorbench import Sizes

    sizes = msgspec.structs.replace(Sizes(), open_streams=open_streams, **(_QUICK if quick else {}))
    allow_open_files(open_streams + 256)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rounds = runner.run(_measure(sizes, chosen(peers), peers_from, runs, within))
    report = _report(rounds, sizes)
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    if rounds.signal:
        raise typer.Exit(128 + rounds.signal)


async def _measure(sizes: Sizes, peers: list[str], folder: Path | None, runs: int, within_s: float) -> Rounds:
    import tempfile

    from penstock.cli.bench_rig import mock_engines
    from penstock.cli.bench_rounds import Rounds
    from penstock.cli.wiring.clock import Monotonic

    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        directory = Path(name)
        starts, missing = _starts(peers, folder, directory)
        rounds = Rounds(starts, runs, sizes, Monotonic(), lambda words: typer.echo(words, err=True))
        async with mock_engines(directory) as upstreams:
            await rounds.take(upstreams, within_s)
    rounds.skipped |= missing
    return rounds


def _report(rounds: Rounds, sizes: Sizes) -> dict[str, Any]:
    """Medians of the runs: ours flat at the top, so that a figure keeps its name whatever is measured beside it."""
    from penstock.loadgen.doorbench import median_of

    medians: dict[str, Any] = {name: median_of(figures) for name, figures in rounds.each.items() if figures}
    ours = msgspec.structs.asdict(medians.pop(_OURS)) if _OURS in medians else {}
    skipped = {name: {"skipped": why} for name, why in rounds.skipped.items() if name not in medians}
    return {**ours, "sizes": sizes, "peers": medians | skipped, "runs": rounds.each, "partial": rounds.partial}


def _starts(peers: list[str], folder: Path | None, directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """How each gateway is started, ours first; and why some cannot be."""
    from functools import partial

    from penstock.cli.bench_peers import PEERS, program_of
    from penstock.cli.bench_rig import our_gateway

    starts: dict[str, Any] = {_OURS: partial(our_gateway, directory=directory)}
    skipped: dict[str, str] = {}
    for peer in peers:
        program = program_of(peer, folder)
        if program is None:
            where = f"in {folder} or on the PATH" if folder else "on the PATH"
            skipped[peer] = f"not installed: there is no {peer} {where}"
        else:
            starts[peer] = partial(_launched, PEERS[peer], program, directory)
    return starts, skipped


def _launched(launch: Any, program: str, directory: Path, upstream: Any) -> Any:
    return launch(program, upstream, directory)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    skipped = {name: one["skipped"] for name, one in report["peers"].items() if isinstance(one, dict)}
    measured = {name: figures for name, figures in report["runs"].items() if figures}
    counts = ", ".join(f"{name} {len(figures)}" for name, figures in measured.items()) or "none"
    table = Table("", *measured, title=f"From the operating system's account of the process; runs: {counts}")
    for title, field, unit in _ROWS:
        table.add_row(title, *(_shown([getattr(one, field) for one in figures], unit) for figures in measured.values()))
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if (opened := report.get("open_streams")) is not None:
        console.print(
            f"{opened.count} streams open at once, {opened.alive} of them alive: {opened.memory_bytes / 1e6:.0f} MB, "
            f"{opened.bytes_per_stream / 1e3:.1f} kB each"
        )
    for name, why in skipped.items():
        console.print(f"{name}: {why}", markup=False)
    if report["partial"]:
        console.print(f"partial: {report['partial']}")


def _shown(values: list[float], unit: str) -> str:
    """The median, and the range where there is one."""
    import statistics

    scale, digits = {"MB": (1e6, 0), "count": (1, 0)}.get(unit, (1, 3))
    middle = f"{statistics.median(values) / scale:.{digits}f} {unit}".removesuffix(" count")
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values) / scale:.{digits}f} to {max(values) / scale:.{digits}f})"
