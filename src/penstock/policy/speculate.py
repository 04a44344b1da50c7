"""How many tokens the decodes of a step guess ahead, so that streams get faster by it and never noticeably slower.

In: what sequences offer, the step's shape, what steps take, what guessing may still lose; out: counts, and that memory.
Pure.  A guess is verified in a row of its own: it costs a row's time and brings a token where it is right.
Argued in docs/decisions/023-speculation.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from penstock.policy.step_time import StepModel, StepShape

_PRIOR_CHANCE, _PRIOR_WEIGHT = 0.5, 2.0
"""What is believed of proposals before one was verified, and as how many guesses that counts."""
_KNOWN_WEIGHT = 2.0
"""As how many guesses of a sequence's own counts what is known of others."""
_KEEP_OWN, _KEEP_KNOWN = 0.9, 0.98
"""What a verification leaves of the weight of those before it."""
_MARGIN = 1.1
"""So many times what a row's time is worth must be expected of it."""
_SHARE = 0.015
"""Of the streams' time guessing may lose."""
_FULL_STEPS = 4.0
"""So many steps' time may be saved up for losing, and is there at first."""
_CATCH_UP, _FIRST_CATCH_UP = 128, 16
"""Rows by which the draft model catches up in one step, at most; and as long as nobody knows what they take."""
_TRIAL = 2
"""Tokens of a proposal that is made to learn."""


class Offer(NamedTuple):
    """A proposal that could be verified: the chance of each of its tokens once those before it were right."""

    chance: float
    length: int


class Acceptance(NamedTuple):
    """How many guesses were verified and how many of them were right, the latest counting most."""

    tried: float = 0.0
    right: float = 0.0

    def after(self, proposed: int, accepted: int, *, of_many: bool = False) -> Acceptance:
        """With one more proposal, of one sequence or ``of_many``.  What follows its first wrong token says nothing."""
        keep = _KEEP_KNOWN if of_many else _KEEP_OWN
        return Acceptance(self.tried * keep + min(accepted + 1, proposed), self.right * keep + accepted)


@dataclass(frozen=True, slots=True)
class Allowance:
    """Memory: ``seconds`` that guessing may still lose, ``full`` at most.  ``None``: no step was seen.

    ``guess_s``: what making a guess takes, beside verifying it; ``row_s``: what a row of the draft model takes that
    catches up.
    """

    seconds: float = 0.0
    full: float | None = None
    guess_s: float = 0.0
    row_s: float = 0.0

    @property
    def is_full(self) -> bool:
        return self.full is not None and self.seconds >= self.full


def chance(own: Acceptance, known: Acceptance) -> float:
    """How likely a sequence's next guess is right: by its ``own`` ones, and what is ``known`` of such in others."""
    believed = (known.right + _PRIOR_WEIGHT * _PRIOR_CHANCE) / (known.tried + _PRIOR_WEIGHT)
    return (own.right + _KNOWN_WEIGHT * believed) / (own.tried + _KNOWN_WEIGHT)


def grants(
    offers: Sequence[Offer], shape: StepShape, model: StepModel, allowance: Allowance, most_rows: int
) -> list[int]:
    """How many tokens of each offer to verify beside the decodes of ``shape``, at most ``most_rows`` together.

    Rows are given where they are likeliest to bring a token, for as long as they bring more per second than the step
    does without them: so the expected tokens per second are the most that there are.
    Where no row is worth its time, one offer is tried now and then, of what the allowance has saved up.
    """
    counts = [0] * len(offers)
    if allowance.seconds <= 0 or most_rows <= 0 or not offers:
        return counts
    tokens, seconds, row_s = float(shape.num_decodes), model.seconds(shape), model.rates[1] + allowance.guess_s
    heap = [(-offer.chance, index) for index, offer in enumerate(offers)]
    heapq.heapify(heap)
    while heap and most_rows:
        brings, index = -heap[0][0], heap[0][1]
        if brings * seconds <= _MARGIN * tokens * row_s:
            break
        counts[index] += 1
        most_rows -= 1
        tokens, seconds = tokens + brings, seconds + row_s
        if counts[index] < offers[index].length:
            heapq.heapreplace(heap, (-brings * offers[index].chance, index))
        else:
            heapq.heappop(heap)
    if allowance.is_full and not any(counts):
        best = heap[0][1]
        counts[best] = min(_TRIAL, offers[best].length, most_rows)
    return counts


def rows_to_catch_up(lacking: int, known: Acceptance, model: StepModel, allowance: Allowance) -> int:
    """How many of the rows that the draft model lacks of a sequence it computes beside the next step.

    Where guesses are expected to pay, as many as a step may have; else what the allowance has saved up for trying.
    """
    if allowance.seconds <= 0:
        return 0
    alone = StepShape(1, 0)
    if chance(Acceptance(), known) * model.seconds(alone) > _MARGIN * (model.rates[1] + allowance.guess_s):
        return min(lacking, _CATCH_UP)
    if not allowance.is_full:
        return 0
    affordable = int(allowance.seconds / allowance.row_s) if allowance.row_s > 0 else _FIRST_CATCH_UP
    return min(lacking, _CATCH_UP, affordable)


def drafted(allowance: Allowance, num_guesses: int, num_rows: int, seconds: float) -> Allowance:
    """After the draft model made so many guesses, or caught up by so many rows."""
    if num_guesses:
        return replace(allowance, guess_s=_mean(allowance.guess_s, seconds / num_guesses))
    return replace(allowance, row_s=_mean(allowance.row_s, seconds / num_rows))


def rested(allowance: Allowance, seconds: float) -> Allowance:
    """After a step of decodes alone that guessed nothing."""
    if allowance.full is None:
        return replace(allowance, seconds=_FULL_STEPS * seconds, full=_FULL_STEPS * seconds)
    full = allowance.full + 0.1 * (_FULL_STEPS * seconds - allowance.full)
    return replace(allowance, seconds=min(allowance.seconds + _SHARE * seconds, full), full=full)


def settled(
    allowance: Allowance,
    model: StepModel,
    decodes: StepShape,
    plain: StepShape,
    num_accepted: int,
    seconds: float,
    draft_s: float = 0.0,
) -> Allowance:
    """After a step that guessed and took ``seconds``.

    ``decodes``: its shape without guesses and without prompts; ``plain``: without guesses.
    ``draft_s`` of the seconds went into making them.
    What it took longer is a loss, and what its right guesses would have taken without guessing a gain.
    A stall counts for no more than two steps.
    """
    if allowance.full is None:
        return allowance
    decode_s = model.seconds(decodes)
    loss = draft_s + min(max(seconds - draft_s - model.seconds(plain), 0.0), 2 * decode_s)
    gain = num_accepted * decode_s / decodes.num_decodes + _SHARE * decode_s
    left = max(min(allowance.seconds + gain - loss, allowance.full), -allowance.full)
    return replace(allowance, seconds=left)


def _mean(before: float, value: float) -> float:
    """A running one; a value far below it says that what took so long has gone."""
    return value if not before or value < before / 2 else before + 0.25 * (value - before)
