"""``penstock evaluate FILE``: what quantised weights and keys cost, as perplexity and divergence on a text.

In: a text file and a model; out: a table on standard output, or one JSON object with ``--json``.
The reference is the same checkpoint in bfloat16, as released; both are in memory at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from penstock.cli.progress_line import progress_line
from penstock.config.settings import EngineSettings, KvCacheDType, Quantization
from penstock.wire.errors import Problem

if TYPE_CHECKING:
    from torch import Tensor

    from penstock.evaluate.divergence import Distributions, Divergence
    from penstock.models.config import ModelConfig
    from penstock.models.decoder import Decoder


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of weights, by ``num_bytes`` of memory, and of KV cache against the reference."""

    quantization: Quantization
    kv_cache_dtype: KvCacheDType
    num_bytes: int
    divergence: Divergence


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate", help="Measure what quantised weights and a quantised KV cache cost, on a text.")(evaluate)


def evaluate(
    text: Annotated[Path, typer.Argument(help="A file of plain text, UTF-8.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="A directory in Hugging Face layout, hf://org/name or org/name; without one: pydoc, the bundled model."
        ),
    ] = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="What to measure; by default all, one after the other.")
    ] = None,
    kv_cache_dtype: Annotated[
        KvCacheDType | None, typer.Option(help="The KV cache to measure with; by default the model's own and int8.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to take at most.", min=2)] = 16384,
    window: Annotated[int, typer.Option(help="Tokens that are seen together.", min=2)] = 512,
    threads: Annotated[int | None, typer.Option(help="Torch threads.", min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Perplexity of a quantised model, and how far its distributions are from those in bfloat16."""
    content = _read(text)

    from penstock.engine.cpu.threads import use_threads
    from penstock.models.config import ModelConfig
    from penstock.models.load import load_decoder
    from penstock.store.sources import resolve
    from penstock.text.tokenizer import Tokenizer

    use_threads(threads)
    directory = resolve(model).directory
    token_ids = Tokenizer.load(directory).encode(content)[:tokens]
    say = progress_line()
    config = dataclasses.replace(ModelConfig.from_directory(directory), dtype="bfloat16")
    reference = load_decoder(directory, "bfloat16", lambda share, what: say(f"reference: {what}"))
    window = min(window, reference.config.max_position)
    windows = [part for part in _cut(token_ids, window) if len(part) > 1]
    if not windows:
        raise Problem("invalid_setting", f"{text} has fewer than two tokens.", param="text")
    weights: tuple[Quantization, ...] = ("none", "int8", "int4") if quantization is None else (quantization,)
    kept = caches(config) if kv_cache_dtype is None else [kv_cache_dtype]
    rows = [row for kind in weights for row in _evaluated(kind, kept, directory, config, reference, windows, say)]
    say("")
    typer.echo(msgspec.json.encode(rows).decode() if as_json else "\n".join(table(rows)))


def distributions(decoder: Decoder, kv_cache_dtype: KvCacheDType = "auto", rows_at_a_time: int = 64) -> Distributions:
    """A decoder's log-probabilities, over a whole window with keys and values as a cache would give them back."""
    import torch

    from penstock.models.attention import packed_causal, packed_positions
    from penstock.models.fast.pages import as_kept

    def of(token_ids: Sequence[int]) -> Iterator[Tensor]:
        lengths = [len(token_ids)]
        # Not around the yields: a mode that is on there is on for whoever reads.
        with torch.inference_mode():
            attend = packed_causal(lengths)
            if kv_cache_dtype == "int8":
                attend = as_kept(attend)
            hidden = decoder(torch.tensor(token_ids), packed_positions(lengths), attend)[:-1]
        for part in hidden.split(rows_at_a_time):
            with torch.inference_mode():
                rows = decoder.logits(part).log_softmax(-1)
            yield rows

    return of


def caches(config: ModelConfig) -> list[KvCacheDType]:
    """What a model can keep keys and values in on this machine."""
    from penstock.models.fast.int8 import is_supported
    from penstock.models.fast.pages import holds_bytes

    return ["auto", "int8"] if holds_bytes(config.head_dim) and is_supported() else ["auto"]


def table(rows: list[Evaluated]) -> list[str]:
    """Columns of fixed width."""
    first = rows[0].divergence
    lines = [
        f"{first.num_tokens:,} tokens; bf16 as released: perplexity {first.reference_perplexity:.4f}",
        f"{'weights':10}{'KV cache':10}{'memory':>12}{'perplexity':>12}{'change':>9}"
        f"{'KL, nats':>11}{'99th of 100':>13}{'same best':>11}",
    ]
    for row in rows:
        found = row.divergence
        name = "packed" if row.quantization == "none" else row.quantization
        kept = "bfloat16" if row.kv_cache_dtype == "auto" else row.kv_cache_dtype
        change = found.perplexity / found.reference_perplexity - 1
        lines.append(
            f"{name:10}{kept:10}{row.num_bytes / 1e6:>9,.1f} MB{found.perplexity:>12.4f}{change:>+9.2%}"
            f"{found.kl:>11.5f}{found.kl_p99:>13.5f}{found.same_best:>11.2%}"
        )
    return lines


def _evaluated(
    kind: Quantization,
    kept: Sequence[KvCacheDType],
    directory: Path,
    config: ModelConfig,
    reference: Decoder,
    windows: list[Sequence[int]],
    say: Callable[[str], None],
) -> Iterator[Evaluated]:
    """Weights of one kind, loaded once, under each KV cache of ``kept``."""
    from penstock.cli.numerics import numerics
    from penstock.evaluate.divergence import divergence
    from penstock.models.load import load_decoder
    from penstock.models.packed import num_weight_bytes

    settings = EngineSettings(
        replica="", socket="", model_dir=str(directory), served_name="", quantization=kind, kv_cache_dtype=kept[-1]
    )
    chosen = numerics(settings, config)
    decoder = load_decoder(
        directory, "bfloat16", lambda share, what: say(f"{kind}: {what}"), chosen.ops, pack=chosen.pack
    ).requires_grad_(False)
    total = sum(len(part) - 1 for part in windows)

    def told(cache: KvCacheDType) -> Callable[[int], None]:
        return lambda done: say(f"{kind}, KV cache {cache}: {done:,} of {total:,} tokens")

    for cache in kept:
        found = divergence(windows, distributions(reference), distributions(decoder, cache), told(cache))
        yield Evaluated(quantization=kind, kv_cache_dtype=cache, num_bytes=num_weight_bytes(decoder), divergence=found)


def _cut(token_ids: list[int], window: int) -> Iterator[Sequence[int]]:
    for begin in range(0, len(token_ids), window):
        yield token_ids[begin : begin + window]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Problem("invalid_setting", f"{path} cannot be read: {error.strerror}.", param="text") from None
    except UnicodeDecodeError as error:
        raise Problem("invalid_setting", f"{path} is not UTF-8: {error.reason}.", param="text") from None
