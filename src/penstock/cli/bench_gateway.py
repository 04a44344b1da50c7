"""``penstock bench gateway``: what the gateway process costs, measured from outside, beside others where installed.

In: flags; out: a table on standard output, or one JSON object with ``--json``; progress on standard error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.loadgen.doorbench import Figures, Sizes

_QUICK = {
    "requests": 200,
    "requests_alone": 50,
    "stream_tokens": 20,
    "streams": 32,
    "streams_alone": 2,
    "first_tokens": 16,
    "open_hold_s": 4.0,
}
"""Enough to see that everything runs, too little for a figure."""
_ROWS = (
    ("CPU per request, 16 in flight", "cpu_ms_per_request", "ms"),
    ("CPU per request, alone", "cpu_ms_per_request_alone", "ms"),
    ("requests per second, 16 in flight", "requests_per_s", ""),
    ("CPU per chunk, 32 streams", "cpu_ms_per_chunk", "ms"),
    ("CPU per chunk, a lone stream", "cpu_ms_per_chunk_alone", "ms"),
    ("added to the first token, p50, alone", "added_ttft_p50_ms", "ms"),
    ("added to the first token, p50, 32 in parallel", "added_ttft_p50_ms_at_32", "ms"),
    ("start", "start_s", "s"),
    ("memory, idle", "memory_bytes", "MB"),
    ("memory, after the load", "memory_after_bytes", "MB"),
)


def gateway(
    open_streams: Annotated[int, typer.Option(help="How many streams are held open at once; 0: none.", min=0)] = 5000,
    peers: Annotated[str, typer.Option(help="Others beside it: litellm, smg, haproxy, with commas; or all.")] = "",
    peers_from: Annotated[
        Path | None, typer.Option(help="Folder of their programs, such as the bin of their own environment.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tenth of the load: runs everything, proves nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the gateway against mock engines: CPU, memory, start, added time, open streams."""
    import asyncio

    from penstock.cli.bench_peers import chosen
    from penstock.cli.open_files import allow_open_files
    from penstock.loadgen.doorbench import Sizes

    sizes = msgspec.structs.replace(Sizes(), open_streams=open_streams, **(_QUICK if quick else {}))
    allow_open_files(open_streams + 256)
    report = asyncio.run(_measure(sizes, chosen(peers), peers_from))
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)


async def _measure(sizes: Sizes, peers: list[str], folder: Path | None) -> dict[str, Any]:
    """Ours flat at the top, so that a figure keeps its name whatever is measured beside it."""
    import tempfile
    from functools import partial

    from penstock.cli.bench_peers import PEERS, program_of
    from penstock.cli.bench_rig import mock_engines, our_gateway
    from penstock.cli.wiring.clock import Monotonic
    from penstock.loadgen.doorbench import measure

    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        directory = Path(name)
        async with mock_engines(directory) as upstreams:
            typer.echo("measuring penstock", err=True)
            ours = await measure(partial(our_gateway, directory=directory), upstreams, sizes, Monotonic())
            report: dict[str, Any] = {**msgspec.structs.asdict(ours), "sizes": sizes, "peers": {}}
            for peer in peers:
                program = program_of(peer, folder)
                if program is None:
                    where = f"in {folder} or on the PATH" if folder else "on the PATH"
                    report["peers"][peer] = {"skipped": f"not installed: there is no {peer} {where}"}
                    continue
                typer.echo(f"measuring {peer}", err=True)
                launch = PEERS[peer]
                # Only ours is asked to hold thousands of streams.
                smaller = msgspec.structs.replace(sizes, open_streams=0)
                start = partial(_launched, launch, program, directory)
                try:
                    report["peers"][peer] = await measure(start, upstreams, smaller, Monotonic())
                except Problem as problem:
                    report["peers"][peer] = {"skipped": problem.message}
    return report


def _launched(launch: Any, program: str, directory: Path, upstream: Any) -> Any:
    return launch(program, upstream, directory)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    measured: dict[str, Figures] = {name: one for name, one in report["peers"].items() if not isinstance(one, dict)}
    table = Table("", "penstock", *measured, title="From the operating system's account of the process")
    for title, field, unit in _ROWS:
        table.add_row(
            title, *(_shown(value, unit) for value in (report[field], *(getattr(o, field) for o in measured.values())))
        )
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if (opened := report["open_streams"]) is not None:
        console.print(
            f"{opened.count} streams open at once, {opened.alive} of them alive: {opened.memory_bytes / 1e6:.0f} MB, "
            f"{opened.bytes_per_stream / 1e3:.1f} kB each"
        )
    for name, one in report["peers"].items():
        if isinstance(one, dict):
            console.print(f"{name}: {one['skipped']}", markup=False)


def _shown(value: float, unit: str) -> str:
    if unit == "MB":
        return f"{value / 1e6:.0f} MB"
    return f"{value:.3f} {unit}" if unit else f"{value:.0f}"
