"""``penstock bench engine``: the engine without a server, on a fixed workload.

In: a model and flags; out: a table on standard output, or one JSON object with ``--json``; progress on standard error.
The batch (prompts of 32..256 tokens, outputs of 32..128, greedy, EOS ignored, no prefix cache, all present at the
start) runs first to warm up, then for the figure; then a lone request, 32 tokens in and 64 out.
With adapters each figure's batch is followed by one that uses them in turn, so that the two are of the same minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import msgspec
import typer

from penstock.cli.progress_line import progress_line
from penstock.cli.sizes import parse_size
from penstock.config.settings import NO_SPECULATION, DType, EngineSettings, Quantization
from penstock.events.list import Event, StepDone
from penstock.loadgen.turns import LONE_OUTPUT_TOKENS, LONE_PROMPT_TOKENS, VOCABULARY
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.engine.adapters import Adapter
    from penstock.engine.loop import Loop
    from penstock.engine.offline import OfflineRun
    from penstock.engine.sequence import Executor

_DTYPES: dict[str, DType] = {
    "auto": "auto",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp32": "float32",
    "float32": "float32",
}


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of one engine.  ``batch[0]`` is the warm-up; the figures are medians of the others.

    ``adapted``: the batches with adapters, of which the first warms up, too; ``adapted_cost``: how many times the time
    of the batch before it each of them takes, the median.
    ``batch_shares``, ``lone_shares``: of the time in compiled steps by kind of job; empty if nobody asked.
    """

    requests: int
    vocabulary: int
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    lone_tokens_per_s: float
    batch: list[OfflineRun]
    lone: list[OfflineRun]
    adapted: list[OfflineRun] = []
    adapted_cost: float | None = None
    batch_shares: dict[str, float] = {}
    lone_shares: dict[str, float] = {}


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """Field names are stable.  ``start_s``: from the command's first line to ready, imports included."""

    model: str
    dtype: str
    exact: bool
    quantization: Quantization
    speculative: str
    proposed_tokens: int
    accepted_tokens: int
    start_s: float
    peak_memory_bytes: int
    weights_bytes: int
    kv_bytes: int
    measured: Measured
    cpu: str
    cpu_count: int
    threads: int | None
    versions: dict[str, str]


def engine(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A directory in Hugging Face layout, hf://org/name or org/name; without one: pydoc, the bundled model."
        ),
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests in the batch.", min=1)] = 16,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(_DTYPES)}.")] = "auto",
    exact: Annotated[bool, typer.Option("--exact/--fast", help="Exact mode or the fast one.")] = False,
    quantization: Annotated[Quantization, typer.Option(help="Keep weights in 8 or 4 bits.")] = "none",
    runs: Annotated[int, typer.Option(help="Batches; the first one warms up.", min=2)] = 2,
    kv_memory: Annotated[
        int | None, typer.Option(help="For the KV cache, for example 2G.", parser=parse_size, metavar="SIZE")
    ] = None,
    max_step_tokens: Annotated[int, typer.Option(help="Token budget of a step.", min=1)] = 512,
    speculative: Annotated[
        str, typer.Option(help="none, prompt-lookup or a draft model.", metavar="none|prompt-lookup|MODEL")
    ] = NO_SPECULATION,
    threads: Annotated[int | None, typer.Option(help="Torch threads.", min=1)] = None,
    lora_modules: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a LoRA adapter for a batch with adapters; again for more.", metavar="PATH"),
    ] = None,
    max_lora_rank: Annotated[int, typer.Option(help="Largest rank of an adapter.", min=1, max=4096)] = 16,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say also where the time of compiled steps goes, by kind of job.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the engine without a server: a batch of requests, then a lone one."""
    begin = time.perf_counter()
    if dtype not in _DTYPES:
        raise Problem("invalid_setting", f"dtype: {dtype!r} is none of {', '.join(_DTYPES)}.", param="dtype")

    from penstock.cli.boot import boot
    from penstock.cli.diagnosis.probe import read_cpu
    from penstock.cli.wiring.engines import speculative_of
    from penstock.store.sources import resolve

    resolved = resolve(model)
    settings = EngineSettings(
        replica="bench",
        socket="",
        model_dir=str(resolved.directory),
        served_name=resolved.name,
        dtype=_DTYPES[dtype],
        exact=exact,
        quantization=quantization,
        kv_memory_bytes=kv_memory,
        max_step_tokens=max_step_tokens,
        prefix_caching=False,
        speculative=speculative_of(speculative),
        threads=threads,
        max_loras=len(lora_modules or ()),
        max_lora_rank=max_lora_rank,
    )
    say = progress_line()
    guessed = _Guessed()
    booted = boot(settings, lambda share, what: say(f"{what} {share:.0%}"), guessed)
    start_s = time.perf_counter() - begin
    cpu = read_cpu()
    vocabulary = min(VOCABULARY, booted.vocab_size)
    adapters = [booted.adapters.read(path) for path in lora_modules or () if booted.adapters is not None]
    watched = _watched(booted.executor) if profile else None
    measured = measure(
        booted.loop,
        booted.executor,
        requests,
        runs,
        vocabulary,
        booted.context_tokens,
        say,
        adapters=adapters,
        watched=watched,
    )
    say("")
    report = EngineReport(
        model=model or resolved.name,
        dtype=booted.dtype,
        exact=exact,
        quantization=quantization,
        speculative=speculative,
        proposed_tokens=guessed.proposed,
        accepted_tokens=guessed.accepted,
        start_s=start_s,
        peak_memory_bytes=_peak_memory_bytes(),
        weights_bytes=booted.weights_bytes,
        kv_bytes=booted.kv_bytes,
        measured=measured,
        cpu=cpu.model,
        cpu_count=cpu.allowed_cores,
        threads=threads,
        versions=_versions(),
    )
    print(_json(report) if as_json else "\n".join(_lines(report)))


class Watched(Protocol):
    """What sums how long each kind of job takes."""

    def watch(self) -> None: ...

    def shares(self) -> dict[str, float]: ...


def _watched(executor: object) -> Watched:
    """Raises ``invalid_setting`` where steps are computed op by op."""
    planned: Watched | None = getattr(executor, "planned", None)
    if planned is None:
        message = "--profile tells of compiled steps; this engine computes op by op (--exact, float32 or its model)."
        raise Problem("invalid_setting", message, param="--profile")
    return planned


class _Guessed:
    """Counts what was guessed ahead, in all runs."""

    def __init__(self) -> None:
        self.proposed = self.accepted = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.proposed += event.proposed_tokens
            self.accepted += event.accepted_tokens


def measure(
    loop: Loop,
    executor: Executor,
    requests: int,
    runs: int,
    vocabulary: int,
    context_tokens: int,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
    adapters: Sequence[Adapter] = (),
    watched: Watched | None = None,
) -> Measured:
    """The batch ``runs`` times and the lone request ``runs - 1`` times.  Raises ``context_length_exceeded``.

    ``watched`` is asked for shares of all batches but the first, and of the lone requests.
    """
    import statistics

    from penstock.engine.offline import run_offline
    from penstock.loadgen.workloads import FIRST_TOKEN_ID, offline_batch

    if vocabulary <= FIRST_TOKEN_ID:
        raise Problem("checkpoint_unsupported", f"A vocabulary of {vocabulary} is too small for random prompts.")
    prompts, lengths = offline_batch(requests, vocabulary=vocabulary)
    longest = max(len(prompt) + length for prompt, length in zip(prompts, lengths, strict=True))
    if longest > context_tokens:
        message = f"The workload's longest request has {longest} tokens; the context is {context_tokens}."
        raise Problem("context_length_exceeded", message)

    def batch(run: int, adapters: Sequence[Adapter | None] = (None,)) -> OfflineRun:
        total = sum(lengths)
        return run_offline(
            loop,
            executor,
            prompts,
            lengths,
            clock=clock,
            progress=lambda done: say(f"batch {run}: {done}/{total} tokens"),
            adapters=adapters,
        )

    def lone() -> OfflineRun:
        return run_offline(loop, executor, [prompts[0][:LONE_PROMPT_TOKENS]], [LONE_OUTPUT_TOKENS], clock=clock)

    batches, adapted = [], []
    for run in range(runs):
        if run == 1 and watched is not None:
            watched.watch()
        batches.append(batch(run))
        if adapters:
            adapted.append(batch(run, adapters))
    batch_shares = watched.shares() if watched is not None else {}
    if watched is not None:
        watched.watch()
    costs = [one.seconds / plain.seconds for one, plain in zip(adapted[1:], batches[1:], strict=bool(adapted))]
    lones = [lone() for _ in range(runs - 1)]
    return Measured(
        requests=requests,
        vocabulary=vocabulary,
        input_tokens=batches[0].input_tokens,
        output_tokens=batches[0].output_tokens,
        output_tokens_per_s=statistics.median(run.output_tokens_per_s for run in batches[1:]),
        lone_tokens_per_s=statistics.median(run.output_tokens_per_s for run in lones),
        batch=batches,
        lone=lones,
        adapted=adapted,
        adapted_cost=statistics.median(costs) if costs else None,
        batch_shares=batch_shares,
        lone_shares=watched.shares() if watched is not None else {},
    )


def _json(report: EngineReport) -> str:
    """One flat object: the report's fields and, beside them, those of ``measured``."""
    fields = msgspec.to_builtins(report)
    measured = fields.pop("measured")
    return msgspec.json.encode(fields | measured).decode()


def _numbers(report: EngineReport) -> str:
    quantised = "" if report.quantization == "none" else f", {report.quantization} weights"
    return f"{report.dtype}{quantised}{', exact' if report.exact else ''}"


def _lines(report: EngineReport) -> list[str]:
    measured, last = report.measured, report.measured.batch[-1]
    lines = [
        f"{report.model}, {_numbers(report)}, {report.cpu}, {report.cpu_count} cores",
        f"start       {report.start_s:.2f} s",
        f"warm-up     {measured.batch[0].output_tokens_per_s:.1f} output tokens/s in {measured.batch[0].seconds:.2f} s",
        f"batch       {measured.output_tokens_per_s:.1f} output tokens/s in {last.seconds:.2f} s",
        f"workload    {measured.requests} requests, {measured.input_tokens} tokens in, {measured.output_tokens} out",
        f"lone        {measured.lone_tokens_per_s:.1f} output tokens/s",
    ]
    lines += [
        f"{name:<11} {one.steps} steps of {one.mean_step_s * 1000:.2f} ms, {one.tokens / one.steps:.0f} tokens each"
        for name, one in (("prefill", last.prefill), ("decode", last.decode))
        if one.mean_step_s is not None
    ]
    if measured.adapted_cost is not None:
        lines.append(f"adapters    {measured.adapted_cost:.3f} times as long as the batch without")
    for name, shares in (("batch", measured.batch_shares), ("lone", measured.lone_shares)):
        if shares:
            lines.append(f"of {name:<8} {', '.join(f'{job} {share:.1%}' for job, share in shares.items())}")
    lines += [f"scheduling  {1 - last.executor_s / last.seconds:.1%} of the time"]
    lines += [f"memory      {report.peak_memory_bytes / 2**20:.0f} MiB at most"]
    if report.speculative != NO_SPECULATION:
        lines.append(
            f"guessed     {report.proposed_tokens} tokens by {report.speculative}, {report.accepted_tokens} right"
        )
    if measured.vocabulary < VOCABULARY:
        lines.append(f"note        token ids below {measured.vocabulary}, the model's vocabulary, not {VOCABULARY}")
    return lines


def _peak_memory_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from penstock import __version__

    found = {"penstock": __version__, "python": platform.python_version()}
    for package in ("torch", "numba"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
