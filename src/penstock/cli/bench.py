"""``penstock bench``: the group of measuring commands; each has its own module."""

from __future__ import annotations

import typer

from penstock.cli.bench_balance import balance
from penstock.cli.bench_engine import engine
from penstock.cli.bench_engines import engines
from penstock.cli.bench_gateway import gateway
from penstock.cli.bench_serve import serve


def register(app: typer.Typer) -> None:
    """Add ``bench serve``, ``bench engine``, ``bench engines``, ``bench gateway`` and ``bench balance``."""
    bench = typer.Typer(
        help="Measure an endpoint, the engine, the gateway or its balancing.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    bench.command("serve")(serve)
    bench.command("engine")(engine)
    bench.command("engines")(engines)
    bench.command("gateway")(gateway)
    bench.command("balance")(balance)
    app.add_typer(bench, name="bench")
