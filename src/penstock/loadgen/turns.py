"""What engines do in turns to be compared, and what their seconds say.

In: a workload's name and sizes; out: its parts, each a batch of prompts and output lengths per run, and figures.
Pure and seeded.  A run's prompts differ from another run's wherever a prefix cache would remember them.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from penstock.loadgen.workloads import FIRST_TOKEN_ID, offline_batch

Batch = tuple[list[list[int]], list[int]]
"""(prompts as token ids, output lengths)."""

VOCABULARY = 15000
"""Token ids of prompts are below, or below the model's own vocabulary where that is smaller."""

LONE_PROMPT_TOKENS, LONE_OUTPUT_TOKENS = 32, 64
SHARED_REQUESTS, SHARED_TOKENS, OWN_TOKENS, SHARED_OUTPUT_TOKENS = 32, 1024, 64, 32
_SHORTEST = 256
_MORE_TOKENS = 33
"""Output tokens of the longer of two equal requests; the 32 steps between them are the time of a token."""


class Part(msgspec.Struct, frozen=True):
    """One thing that every engine does once per run."""

    name: str
    batch: Callable[[int], Batch]
    figure: str = ""
    """The figure that it alone gives, output tokens/s; empty where it takes several parts."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A median over runs, its range and its unit, ``tokens/s`` or ``ms``."""

    unit: str
    median: float
    low: float
    high: float
    runs: list[float]

    @classmethod
    def of(cls, runs: list[float], unit: str) -> Figure:
        return cls(unit=unit, median=statistics.median(runs), low=min(runs), high=max(runs), runs=runs)

    def times(self, other: Figure) -> float:
        """How many times better than another of the same unit: more tokens/s, or fewer milliseconds."""
        return other.median / self.median if self.unit == "ms" else self.median / other.median


def batch_and_lone(requests: int, vocabulary: int) -> list[Part]:
    """The fixed offline batch, and a lone request with the beginning of its first prompt."""
    prompts, lengths = offline_batch(requests, vocabulary=vocabulary)
    alone = [prompts[0][:LONE_PROMPT_TOKENS]], [LONE_OUTPUT_TOKENS]
    return [Part("batch", lambda run: (prompts, lengths), "batch"), Part("lone", lambda run: alone, "lone")]


def shared_prefix(vocabulary: int) -> list[Part]:
    """32 requests with 1,024 tokens in common and 64 of their own, 32 tokens out."""

    def batch(run: int) -> Batch:
        common = _tokens(f"{run}/common", SHARED_TOKENS, vocabulary)
        prompts = [common + _tokens(f"{run}/own/{one}", OWN_TOKENS, vocabulary) for one in range(SHARED_REQUESTS)]
        return prompts, [SHARED_OUTPUT_TOKENS] * SHARED_REQUESTS

    return [Part("shared prefix", batch, "shared prefix")]


def curves(longest: int, vocabulary: int, sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> list[Part]:
    """Contexts from 256 tokens to ``longest`` with one request, and batches of ``sizes`` with 256 tokens each.

    Per point: all of it unknown and one token out; the same again with one token out, and with 33 out.
    """
    return [
        Part(f"{step} {context} x {size}", partial(_point, context, size, vocabulary, outputs))
        for context, size in points(longest, sizes)
        for step, outputs in (("cold", 1), ("one", 1), ("more", _MORE_TOKENS))
    ]


def points(longest: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(context, requests) of each point: first over contexts, doubling, then over batch sizes."""
    context = _SHORTEST
    while context <= longest:
        yield context, 1
        context *= 2
    yield from ((_SHORTEST, size) for size in sizes if size > 1)


def figures(parts: Sequence[Part], seconds: Mapping[str, Sequence[float]]) -> dict[str, Figure]:
    """Figures by name from each part's seconds, one per run that counts (runs are numbered from 1)."""
    found: dict[str, Figure] = {}
    for part in parts:
        taken = seconds[part.name]
        if part.figure:
            rates = [sum(part.batch(run)[1]) / one for run, one in enumerate(taken, 1)]
            found[part.figure] = Figure.of(rates, "tokens/s")
        elif part.name.startswith("cold "):
            point = part.name.removeprefix("cold ")
            num_tokens = sum(map(len, part.batch(1)[0]))
            found[f"prefill {point}"] = Figure.of([num_tokens / one for one in taken], "tokens/s")
            pairs = zip(seconds[f"one {point}"], seconds[f"more {point}"], strict=True)
            found[f"token {point}"] = Figure.of([(more - one) / (_MORE_TOKENS - 1) * 1000 for one, more in pairs], "ms")
    return found


def _point(context: int, size: int, vocabulary: int, outputs: int, run: int) -> Batch:
    prompts = [_tokens(f"{run}/{context}/{size}/{one}", context, vocabulary) for one in range(size)]
    return prompts, [outputs] * size


def _tokens(seed: str, count: int, vocabulary: int) -> list[int]:
    return random.Random(seed).choices(range(FIRST_TOKEN_ID, vocabulary), k=count)
