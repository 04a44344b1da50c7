"""``penstock train RECIPE``: data to checkpoint, in stages that are resumed and skipped by themselves.

In: a recipe and overrides; out: progress on standard error; the checkpoint's folder, or the run's record as JSON, on
standard output.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from penstock.cli.console import program, say

_LINE_EVERY_S = 10.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", help="Train a model as a recipe says; the same command again resumes.")(train)


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, for example recipes/pydoc.yaml.")],
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder; default: $PENSTOCK_HOME/runs/ and the recipe's name.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value, for example pretrain.steps=50.", metavar="K=V")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Torch threads; default: the cores.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's record as JSON.")] = False,
) -> None:
    """Train a model as a recipe says; the same command again resumes."""
    from penstock.cli.home import penstock_home
    from penstock.train.recipe_file import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    directory = run_dir or penstock_home() / "runs" / loaded.name

    # Read when torch loads.  Threads that spin at a barrier while another process has their core made training three
    # to ten times slower; sleeping there costs at most a tenth on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from penstock.engine.cpu.allocator import keep_freed_memory
    from penstock.engine.cpu.threads import use_threads
    from penstock.store.runs import Run
    from penstock.train.run import Times, run_stages
    from penstock.train.stages import STAGES

    keep_freed_memory()
    num_threads = use_threads(threads)
    say(f"training {loaded.name} in {directory} with {num_threads} threads")
    try:
        record = run_stages(
            STAGES,
            loaded,
            Run(directory),
            display=TrainDisplay(),
            times=Times(clock=time.monotonic, wall=time.time),
            versions=_versions(num_threads),
        )
    except KeyboardInterrupt:
        say("stopped; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None
    checkpoint = directory / "export"
    say(f"done; serve it with: {program()} serve {checkpoint} --served-name {loaded.name}")
    print(msgspec.json.encode(record).decode() if as_json else checkpoint)


class TrainDisplay:
    """Implements ``train.run.Display``: one line that is overwritten on a terminal, else a line every ten seconds."""

    def __init__(self) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._said_at = -math.inf
        self._open = False

    def begin(self, stage: str, number: int, of: int) -> None:
        self._close()
        say(f"[{number}/{of}] {stage}")
        self._said_at = -math.inf  # the first word of a stage is always shown

    def skip(self, stage: str, number: int, of: int) -> None:
        self._close()
        say(f"[{number}/{of}] {stage}: done before, unchanged")

    def progress(self, words: str) -> None:
        if self._on_terminal:
            print(f"\r\x1b[K      {words}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif time.monotonic() - self._said_at >= _LINE_EVERY_S:
            self._said_at = time.monotonic()
            say(f"      {words}")

    def done(self, stage: str, facts: Mapping[str, Any]) -> None:
        self._close()
        shown = ", ".join(f"{name} {_short(value)}" for name, value in facts.items() if _is_figure(value))
        say(f"      {shown}" if shown else "      done")

    def _close(self) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = False


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _versions(num_threads: int) -> dict[str, str]:
    import platform
    from importlib.metadata import version

    from penstock import __version__

    found = {"penstock": __version__, "python": platform.python_version(), "threads": str(num_threads)}
    return found | {package: version(package) for package in ("torch", "numpy", "tokenizers")}
