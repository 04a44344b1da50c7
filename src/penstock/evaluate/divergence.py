"""How far a model's distributions are from a reference's on the same text: what quantising its weights costs.

In: windows of token ids and two functions that give log-probabilities; out: perplexities and the divergence.
A window's first token is given; every later one is predicted from those before it in the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import torch
from torch import Tensor

Distributions = Callable[[Sequence[int]], Iterator[Tensor]]
"""Token ids -> the log-probabilities [R, vocab] float32 after each, some rows at a time, the last id's left out."""


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """``kl`` is the divergence of Kullback and Leibler of the model from the reference in nats per token.

    ``kl_p99`` is what 99 of 100 tokens stay below; ``same_best`` the share of tokens with the same most likely one.
    """

    num_tokens: int
    reference_perplexity: float
    perplexity: float
    kl: float
    kl_p99: float
    same_best: float


def divergence(
    windows: Iterable[Sequence[int]],
    reference: Distributions,
    model: Distributions,
    progress: Callable[[int], None] = lambda done: None,
) -> Divergence:
    """Over all predicted tokens of ``windows``; ``progress`` hears how many there were so far.

    Raises ``ValueError`` where nothing is predicted.
    """
    divergences: list[Tensor] = []
    nats = torch.zeros(2, dtype=torch.float64)
    num_tokens = num_same = 0
    for window in windows:
        at = 1
        for expected, found in zip(reference(window), model(window), strict=True):
            following = torch.tensor(window[at : at + len(expected)])[:, None]
            nats -= torch.stack([rows.gather(1, following).double().sum() for rows in (expected, found)])
            divergences.append(_kl(expected, found))
            num_same += int((expected.argmax(-1) == found.argmax(-1)).sum())
            num_tokens += len(expected)
            at += len(expected)
            progress(num_tokens)
    if not num_tokens:
        raise ValueError("there is no text to measure on")
    each = torch.cat(divergences)
    reference_nats, model_nats = (nats / num_tokens).tolist()
    return Divergence(
        num_tokens=num_tokens,
        reference_perplexity=math.exp(reference_nats),
        perplexity=math.exp(model_nats),
        kl=float(each.mean()),
        kl_p99=float(each.sort().values[math.ceil(0.99 * num_tokens) - 1]),
        same_best=num_same / num_tokens,
    )


def _kl(expected: Tensor, found: Tensor) -> Tensor:
    """[R] float64, of log-probabilities [R, V]; what the reference excludes adds nothing."""
    terms = expected.exp() * (expected - found)
    return terms.masked_fill(expected == -torch.inf, 0.0).double().sum(-1)
