"""``penstock bench start``: from the command to the first answer that all is ready.

In: a model and flags; out: a table on standard output, or one JSON object with ``--json``.
Each run is a ``penstock serve`` of its own with a fresh home; the first one warms files and kernels up.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from penstock.config.settings import Quantization
from penstock.wire.errors import Problem

_POLL_S = 0.01
_LIMIT_S = 300.0
_END_S = 30.0
"""What a service may take to end: longer than it gives its own processes."""
_PART = "penstock_engine_start_seconds{"


class StartRun(msgspec.Struct, frozen=True, kw_only=True):
    """``ready_s``: from the command to a 200 of ``/ready``; ``parts``: of the engine's process.

    They overlap: it imports while it waits for its settings, and is started before the controller is complete.
    """

    ready_s: float
    parts: dict[str, float]


class StartReport(msgspec.Struct, frozen=True, kw_only=True):
    """Field names are stable.  Medians of ``runs``, of which ``first`` is none."""

    model: str | None
    quantization: Quantization
    ready_s: float
    parts: dict[str, float]
    first: StartRun
    runs: list[StartRun]


def start(
    model: Annotated[str | None, typer.Argument(help="As for penstock serve.")] = None,
    quantization: Annotated[Quantization, typer.Option(help="Keep weights in 8 or 4 bits.")] = "none",
    runs: Annotated[int, typer.Option(help="Starts that count; one more warms up.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how long penstock serve takes until it is ready, and the parts of it."""
    from penstock.cli.bench_rig import free_port
    from penstock.cli.progress_line import progress_line

    say = progress_line()
    found = []
    for run in range(runs + 1):
        say(f"start {run} of {runs}")
        found.append(_run(model, quantization, free_port()))
    say("")
    first, *counting = found
    parts = {part: statistics.median(run.parts[part] for run in counting) for part in first.parts}
    report = StartReport(
        model=model,
        quantization=quantization,
        ready_s=statistics.median(run.ready_s for run in counting),
        parts=parts,
        first=first,
        runs=counting,
    )
    print(msgspec.json.encode(report).decode() if as_json else "\n".join(_lines(report)))


def _run(model: str | None, quantization: Quantization, admin_port: int) -> StartRun:
    with tempfile.TemporaryDirectory(prefix="pk-") as home:
        begin = time.perf_counter()
        with _serving(model, quantization, Path(home), admin_port) as process:
            admin_url = f"http://127.0.0.1:{admin_port}"
            _wait_until_ready(process, admin_url, _said(Path(home)))
            ready_s = time.perf_counter() - begin
            return StartRun(ready_s=ready_s, parts=_parts(_get(f"{admin_url}/metrics") or ""))


@contextmanager
def _serving(
    model: str | None, quantization: Quantization, home: Path, admin_port: int
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-P", "-m", "penstock", "serve", *([] if model is None else [model])]
    command += ["--port", "0", "--admin-port", str(admin_port), "--quantization", quantization]
    environment = {**os.environ, "PENSTOCK_HOME": str(home)}
    with _said(home).open("wb") as said:  # and no pipe: nobody reads before the end, and a full one blocks
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _said(home: Path) -> Path:
    """Where the standard error of the service with this home is kept."""
    return home / "stderr"


def _wait_until_ready(process: subprocess.Popen[bytes], admin_url: str, said: Path) -> None:
    end = time.monotonic() + _LIMIT_S
    while _get(f"{admin_url}/ready") is None:
        if process.poll() is not None:
            words = said.read_text(errors="replace").strip()
            raise Problem("endpoint_error", f"penstock serve ended before it was ready: {words}")
        if time.monotonic() > end:
            raise Problem("endpoint_error", f"penstock serve was not ready after {_LIMIT_S:.0f} s.")
        time.sleep(_POLL_S)


def _get(url: str) -> str | None:
    """The body of a 200, or ``None``."""
    # Without the environment's proxies: the address is this machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2.0) as answer:
            return str(answer.read().decode())
    except OSError:  # nobody listens yet, or 503
        return None


def _parts(metrics: str) -> dict[str, float]:
    """By the text of the metrics' page; in the order of the parts, which is not that page's."""
    found = {}
    for line in metrics.splitlines():
        if line.startswith(_PART):
            labels, _, value = line.rpartition(" ")
            found[labels.partition('part="')[2].partition('"')[0]] = float(value)
    return {part: found[part] for part in ("settings", "imports", "tokenizer", "weights", "memory") if part in found}


def _lines(report: StartReport) -> list[str]:
    each = sorted(run.ready_s for run in report.runs)
    lines = [
        f"ready       {report.ready_s:.2f} s ({each[0]:.2f} to {each[-1]:.2f} in {len(each)}), "
        f"the first {report.first.ready_s:.2f} s"
    ]
    return lines + [f"{part:<11} {seconds:.2f} s" for part, seconds in report.parts.items()]
