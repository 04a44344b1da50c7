"""``penstock bench engine``: the engine without a server, on a fixed workload.

In: a model and flags; out: a table on standard output, or one JSON object with ``--json``; progress on standard error.
The batch (prompts of 32..256 tokens, outputs of 32..128, greedy, EOS ignored, no prefix cache, all present at the
start) runs first to warm up, then for the figure; then a lone request, 32 tokens in and 64 out.
With adapters each figure's batch is followed by one that uses them in turn, so that the two are of the same minute.
With speculation the engine is compared with itself without instead, over workloads that repeat themselves or do not.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from penstock.cli.bench_batch import Measured, Watched, measure
from penstock.cli.bench_speculative import Speculated, compare, table
from penstock.cli.progress_line import progress_line
from penstock.cli.sizes import parse_size
from penstock.config.settings import NO_SPECULATION, DType, EngineSettings, KvCacheDType, Quantization
from penstock.loadgen.turns import VOCABULARY
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from penstock.engine.adapters import Adapter
    from penstock.engine.server.booted import Booted

_DTYPES: dict[str, DType] = {
    "auto": "auto",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp32": "float32",
    "float32": "float32",
}


_FEWEST_PAIRS = 6
"""Of runs with speculation and without: the machine is never quite the same."""


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """Field names are stable.  ``start_s``: from the command's first line to ready, imports included.

    With speculation there is no ``measured``, without no ``speculated``.
    """

    model: str
    dtype: str
    exact: bool
    quantization: Quantization
    kv_cache_dtype: KvCacheDType
    start_s: float
    peak_memory_bytes: int
    weights_bytes: int
    kv_bytes: int
    speculative: str
    measured: Measured | None
    speculated: list[Speculated]
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
    kv_cache_dtype: Annotated[KvCacheDType, typer.Option(help="Numbers of the KV cache.")] = "auto",
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
        bool,
        typer.Option("--profile", help="Say also where the time of compiled steps goes, by kinds of jobs and steps."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the engine without a server: a batch of requests, then a lone one."""
    begin = time.perf_counter()
    if dtype not in _DTYPES:
        raise Problem("invalid_setting", f"dtype: {dtype!r} is none of {', '.join(_DTYPES)}.", param="dtype")

    from penstock.cli.boot import boot
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
        kv_cache_dtype=kv_cache_dtype,
        kv_memory_bytes=kv_memory,
        max_step_tokens=max_step_tokens,
        prefix_caching=False,
        speculative=speculative_of(speculative),
        threads=threads,
        max_loras=len(lora_modules or ()),
        max_lora_rank=max_lora_rank,
    )
    say = progress_line()
    booted = boot(settings, lambda share, what: say(f"{what} {share:.0%}"))
    start_s = time.perf_counter() - begin
    adapters = [booted.adapters.read(path) for path in lora_modules or () if booted.adapters is not None]
    watched = _watched(booted.executor) if profile else None
    measured, speculated = _figures(booted, speculative, requests, runs, adapters, watched)
    report = _report(model or resolved.name, speculative, settings, booted, start_s, measured, speculated)
    print(_json(report) if as_json else "\n".join(_lines(report)))


def _figures(
    booted: Booted, speculative: str, requests: int, runs: int, adapters: list[Adapter], watched: Watched | None
) -> tuple[Measured | None, list[Speculated]]:
    """Of the fixed workload or, with speculation, of the comparison."""
    say = progress_line()
    vocabulary = min(VOCABULARY, booted.vocab_size)
    measured, speculated = None, list[Speculated]()
    if speculative == NO_SPECULATION:
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
    else:
        speculated = compare(booted, sorted({1, requests}), max(runs - 1, _FEWEST_PAIRS), vocabulary, say=say)
    say("")
    return measured, speculated


def _report(
    model: str,
    speculative: str,
    settings: EngineSettings,
    booted: Booted,
    start_s: float,
    measured: Measured | None,
    speculated: list[Speculated],
) -> EngineReport:
    from penstock.cli.diagnosis.probe import read_cpu

    cpu = read_cpu()
    return EngineReport(
        model=model,
        dtype=booted.dtype,
        exact=settings.exact,
        quantization=settings.quantization,
        kv_cache_dtype=settings.kv_cache_dtype,
        start_s=start_s,
        peak_memory_bytes=_peak_memory_bytes(),
        weights_bytes=booted.weights_bytes,
        kv_bytes=booted.kv_bytes,
        speculative=speculative,
        measured=measured,
        speculated=speculated,
        cpu=cpu.model,
        cpu_count=cpu.allowed_cores,
        threads=settings.threads,
        versions=_versions(),
    )


def _watched(executor: object) -> Watched:
    """Raises ``invalid_setting`` where steps are computed op by op."""
    planned: Watched | None = getattr(executor, "planned", None)
    if planned is None:
        message = "--profile tells of compiled steps; this engine computes op by op (--exact, float32 or its model)."
        raise Problem("invalid_setting", message, param="--profile")
    return planned


def _json(report: EngineReport) -> str:
    """One flat object: the report's fields and, beside them, those of ``measured``."""
    fields = msgspec.to_builtins(report)
    measured = fields.pop("measured") or {}
    return msgspec.json.encode(fields | measured).decode()


def _numbers(report: EngineReport) -> str:
    quantised = "" if report.quantization == "none" else f", {report.quantization} weights"
    kept = "" if report.kv_cache_dtype == "auto" else f", {report.kv_cache_dtype} KV cache"
    return f"{report.dtype}{quantised}{kept}{', exact' if report.exact else ''}"


def _lines(report: EngineReport) -> list[str]:
    head = [
        f"{report.model}, {_numbers(report)}, {report.cpu}, {report.cpu_count} cores",
        f"start       {report.start_s:.2f} s",
    ]
    memory = f"memory      {report.peak_memory_bytes / 2**20:.0f} MiB at most"
    if report.measured is None:
        return [*head, f"proposals   by {report.speculative}", *table(report.speculated), memory]
    return [*head, *_measured_lines(report.measured), memory]


def _measured_lines(measured: Measured) -> list[str]:
    last = measured.batch[-1]
    lines = [
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
    told = {
        "batch": measured.batch_shares,
        "prefill": measured.prefill_shares,
        "decode": measured.decode_shares,
        "lone": measured.lone_shares,
    }
    for name, shares in told.items():
        if shares:
            lines.append(f"of {name:<8} {', '.join(f'{job} {share:.1%}' for job, share in shares.items())}")
    lines += [f"scheduling  {1 - last.executor_s / last.seconds:.1%} of the time"]
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
