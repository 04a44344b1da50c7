"""``penstock bench engines``: our engine and others on the same work, in turns, each in a process of its own.

In: a model, flags, and how others are started; out: a table on standard output (curves in the terminal too, and in a
PNG with ``--png``), or one JSON object with ``--json``; progress on standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from penstock.config.settings import KvCacheDType, Quantization
from penstock.loadgen.turns import VOCABULARY, Figure

if TYPE_CHECKING:
    from penstock.cli.bench_turns import Turns
    from penstock.loadgen.turns import Part

Workload = Literal["batch", "shared-prefix", "curves"]
_OURS = "penstock"
_WARM_REQUESTS = 16


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one engine.  ``start_s``: loading and compiling, without the start of its Python."""

    version: str
    start_s: float
    figures: dict[str, Figure]


class EnginesReport(msgspec.Struct, frozen=True, kw_only=True):
    """Field names are stable.  ``engines`` begins with ours."""

    model: str
    workload: Workload
    runs: int
    cpu: str
    cpu_count: int
    engines: dict[str, Engine]


def engines(
    model: Annotated[str, typer.Argument(help="A directory in Hugging Face layout.")],
    beside: Annotated[
        list[str] | None,
        typer.Option(
            help="Another engine, openvino, vllm, transformers or llama.cpp: its Python, its model, and settings that "
            "it is started with (precisions). Repeat for more.",
            metavar="NAME=PYTHON,MODEL[,SETTING...]",
        ),
    ] = None,
    workload: Annotated[
        Workload,
        typer.Option(help="A batch and a lone request; 32 requests with one prefix; time over context and batch size."),
    ] = "batch",
    requests: Annotated[int, typer.Option(help="Requests of the batch.", min=1, max=128)] = 16,
    quantization: Annotated[Quantization, typer.Option(help="Our weights in 8 or 4 bits.")] = "none",
    kv_cache_dtype: Annotated[KvCacheDType, typer.Option(help="Numbers of our KV cache.")] = "auto",
    exact: Annotated[bool, typer.Option("--exact/--fast", help="Our exact mode or the fast one.")] = False,
    runs: Annotated[int, typer.Option(help="Runs that count, in turns; one more warms up.", min=1)] = 5,
    longest: Annotated[int, typer.Option(help="The longest context of the curves, in tokens.", min=256)] = 8192,
    png: Annotated[Path | None, typer.Option(help="Draw the curves into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure engines beside one another, in turns: tokens per second, or curves."""
    from penstock.cli.bench_turns import Launch, in_turns
    from penstock.cli.console import say
    from penstock.cli.diagnosis.probe import read_cpu
    from penstock.cli.plot import check_png
    from penstock.loadgen.turns import figures

    if png is not None:
        check_png(png)
    launches = [Launch(_OURS, sys.executable, model, (quantization, "exact" if exact else "fast", kv_cache_dtype))]
    for text in beside or []:
        launches.append(Launch.parse(text, [launch.name for launch in launches]))
    vocabulary = min(VOCABULARY, _vocabulary(Path(model)))
    parts = _parts(workload, requests, longest, vocabulary)
    # What is small warms up for what is large: 128 requests, or the last points of curves, take minutes.
    few = _parts(workload, min(requests, _WARM_REQUESTS), longest, vocabulary)
    turns = in_turns(
        launches,
        parts,
        warm_up=few[:3] if workload == "curves" else few,
        runs=runs,
        prefix_caching=workload != "batch",
        say=say,
    )
    cpu = read_cpu()
    report = EnginesReport(
        model=model,
        workload=workload,
        runs=runs,
        cpu=cpu.model,
        cpu_count=cpu.allowed_cores,
        engines={name: _engine(one, figures(parts, one.seconds)) for name, one in turns.items()},
    )
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    if png is not None:
        _draw(png, report)


def curves_of(report: EnginesReport) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Title -> engine -> points: prefill and time of a token over the context, time of a token over the batch."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for engine, one in report.engines.items():
        for name, figure in one.figures.items():
            kind, context, _, size = name.split(" ")
            titles = []
            if size == "1":
                what = "prefill, tokens/s" if kind == "prefill" else "time of a token, ms"
                titles.append((f"{what}, over the context", float(context)))
            if context == "256" and kind == "token":
                titles.append(("time of a token, ms, over the batch", float(size)))
            for title, x in titles:
                found.setdefault(title, {}).setdefault(engine, []).append((x, figure.median))
    return found


def _parts(workload: Workload, requests: int, longest: int, vocabulary: int) -> list[Part]:
    from penstock.loadgen import turns

    if workload == "batch":
        return turns.batch_and_lone(requests, vocabulary)
    return turns.shared_prefix(vocabulary) if workload == "shared-prefix" else turns.curves(longest, vocabulary)


def _vocabulary(directory: Path) -> int:
    """How many tokens the model knows.  Raises whatever reading its configuration raises."""
    from penstock.models.config import ModelConfig

    return ModelConfig.from_directory(directory).vocab_size


def _engine(turns: Turns, figures: dict[str, Figure]) -> Engine:
    return Engine(version=turns.version, start_s=turns.start_s, figures=figures)


def _print(report: EnginesReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from penstock.cli.plot import braille

    console = Console(highlight=False)
    title = f"{report.model}, {report.workload}, {report.cpu}, {report.cpu_count} cores, runs: {report.runs}"
    table = Table(
        "", *(f"{name} {one.version}" for name, one in report.engines.items()), "best of the others", title=title
    )
    table.add_row("start, s", *(f"{one.start_s:.2f}" for one in report.engines.values()), "")
    ours, *others = report.engines.values()
    for name, figure in ours.figures.items():
        theirs = [one.figures[name] for one in others]
        ratio = f"{min(figure.times(one) for one in theirs):.2f}x" if theirs else ""
        table.add_row(f"{name}, {figure.unit}", *(_shown(one.figures[name]) for one in report.engines.values()), ratio)
    for column in table.columns[1:]:
        column.justify = "right"
    console.print(table)
    if report.workload == "curves":
        for title, lines in curves_of(report).items():
            for engine, points in lines.items():
                console.print(f"\n{title}: {engine}", *braille(points), sep="\n", markup=False)


def _draw(path: Path, report: EnginesReport) -> None:
    from penstock.cli.plot import write_png

    curves = [
        (f"{title}\n{engine}", points) for title, lines in curves_of(report).items() for engine, points in lines.items()
    ]
    write_png(path, curves, report.model, "tokens or requests")


def _shown(figure: Figure) -> str:
    """The median, and the range where there is one."""
    middle = f"{figure.median:.1f}"
    return middle if len(figure.runs) == 1 else f"{middle} ({figure.low:.1f} to {figure.high:.1f})"
