"""``penstock runs``: the training runs of this machine, and the curves of one.

In: run folders; out: a table, curves in the terminal, a PNG, or JSON with ``--json``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from penstock.cli.console import columns, print_json

if TYPE_CHECKING:
    from penstock.store.runs import Run, RunRecord

_CURVES = ("loss", "learning_rate", "tokens_per_s")


def register(app: typer.Typer) -> None:
    """Add ``runs list`` and ``runs show``."""
    runs = typer.Typer(help="List training runs and show their curves.", no_args_is_help=True, rich_markup_mode=None)
    runs.command("list")(list_command)
    runs.command("show")(show)
    app.add_typer(runs, name="runs")


def list_command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the runs below $PENSTOCK_HOME/runs, the latest first."""
    from penstock.store.runs import list_runs

    records = [run.record() for run in list_runs(_root())]
    if as_json:
        print_json(records)
    elif records:
        typer.echo(table(records, time.time()))
    else:
        typer.echo("no runs yet; start one with: penstock train recipes/pydoc.yaml")


def show(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or the path of its folder.")],
    png: Annotated[Path | None, typer.Option(help="Draw the curves into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record and every measurement.")] = False,
) -> None:
    """Show how a run stands, what its stages found and the curves of its loops."""
    from penstock.cli.plot import write_png

    run = _find(name)
    record, metrics = run.record(), run.metrics()
    if png is not None:
        drawn = [
            (f"{stage} {what}", points) for stage in _loops(metrics) for what, points in _curves(metrics, stage).items()
        ]
        if not drawn:
            from penstock.wire.errors import Problem

            raise Problem("run_not_found", f"{run.directory} has not measured anything yet.")
        write_png(png, drawn, record.name, "step")
    if as_json:
        report = {"run": msgspec.to_builtins(record), "metrics": metrics}
        typer.echo(msgspec.json.encode(report).decode())
    else:
        typer.echo("\n".join(_page(run, record, metrics)))


def table(records: list[RunRecord], now: float) -> str:
    """Columns wide enough for what they hold."""
    cells = [("RUN", "STATE", "STAGE", "UPDATED")]
    cells += [(r.name, r.state, r.stage or "-", f"{_ago(now - r.updated_at)} ago") for r in records]
    return columns(cells)


def _page(run: Run, record: RunRecord, metrics: list[dict[str, Any]]) -> list[str]:
    from penstock.cli.plot import braille

    lines = [f"{record.name}: {record.state}, stage {record.stage or '-'}", f"  {run.directory}"]
    if record.message:
        lines.append(f"  {record.message}")
    for stage in _loops(metrics):
        points = _curves(metrics, stage).get("loss", [])
        last = next(line for line in reversed(metrics) if line["stage"] == stage)
        lines += ["", f"{stage}: loss {last['loss']:.4f} at step {last['step']} of {last['steps']}"]
        lines += braille(points)
    for stage, facts in record.results.items():
        shown = [f"  {name} = {value}" for name, value in facts.items() if isinstance(value, int | float | str)]
        lines += ["", stage, *shown] if shown else []
    return lines


def _loops(metrics: list[dict[str, Any]]) -> list[str]:
    """The stages that measured a loss, in order."""
    return list(dict.fromkeys(line["stage"] for line in metrics if "loss" in line))


def _curves(metrics: list[dict[str, Any]], stage: str) -> dict[str, list[tuple[float, float]]]:
    lines = [line for line in metrics if line["stage"] == stage]
    curves = {what: [(line["step"], line[what]) for line in lines if what in line] for what in _CURVES}
    return {what: points for what, points in curves.items() if points}


def _find(name: str) -> Run:
    from penstock.store.runs import Run

    run = Run(_root() / name)
    return run if run.exists() else Run(Path(name))


def _root() -> Path:
    from penstock.cli.home import penstock_home

    return penstock_home() / "runs"


def _ago(seconds: float) -> str:
    whole = max(0, int(seconds))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"
