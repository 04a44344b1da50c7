"""``penstock bench``: the group of measuring commands; each has its own module."""

from __future__ import annotations

import typer

from penstock.cli.bench_balance import balance
from penstock.cli.bench_engine import engine
from penstock.cli.bench_engines import engines
from penstock.cli.bench_gateway import gateway
from penstock.cli.bench_serve import serve
from penstock.cli.bench_start import start


def register(app: typer.Typer) -> None:
    """Add the commands of the group."""
    bench = typer.Typer(
        help="Measure an endpoint, the engine, the gateway, its balancing, or a start.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    bench.command("serve")(serve)
    bench.command("engine")(engine)
    bench.command("engines")(engines)
    bench.command("gateway")(gateway)
    bench.command("balance")(balance)
    bench.command("start")(start)
    app.add_typer(bench, name="bench")
