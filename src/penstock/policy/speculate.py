"""How many tokens the decodes of a step propose, so that streams get faster by it and never noticeably slower.

In: what sequences could propose, the step's shape, what steps took, what speculation may still lose; out: lengths, and
that memory.  Pure.  A proposed token is verified in a row of its own: it costs a row's time and brings a token where it
is accepted.  Argued in docs/decisions/027-speculation-within-an-allowance.md.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from penstock.policy.step_time import StepModel, StepShape

_PRIOR_CHANCE, _PRIOR_WEIGHT = 0.5, 2.0
"""What is believed of proposals before one was verified, and as how many tokens that counts."""
_KNOWN_WEIGHT = 2.0
"""As how many tokens of a sequence's own counts what is known of others."""
_KEEP_OWN, _KEEP_KNOWN = 0.9, 0.98
"""What a verification leaves of the weight of those before it."""
_MARGIN = 1.1
"""So many times what a row's time is worth must be expected of it."""
_SHARE = 0.01
"""Of the streams' time speculation may lose."""
_FIRST_STEPS, _MOST_STEPS, _MOST_SAVED_STEPS = 2.0, 4.0, 16.0
"""So many steps' time may be lost at first; may be put by for losing; may be left of what was saved."""
_RESUME_STEPS = 1.0
"""With so many steps' time to lose it goes on after a rest, or tries what is not expected to pay."""
_WATCHED = 4
"""Plain steps of a mix are measured before the first that speculates, and now and then as many in a row."""
_IN_A_ROW, _IN_A_ROW_FOR_EACH = 96, 8
"""So many steps speculate between these; as long as few were measured so many for each."""
_NEWEST = 0.03
"""Of the mean of plain steps' times is the last one's, once they are many."""
_LATEST = 0.4
"""Of the mean of the latest few."""
_SHIFT, _SHIFT_SCATTER = 0.15, 2.0
"""The machine's speed has changed where these differ from the others by so much, and by so many times their scatter."""
_VARIANCE = 0.01
"""Of a plain step's time around the mean, as a share of it, squared: what is believed before some were measured."""
_DOUBT = 1.0
"""So many times its likely error is taken off that mean beside steps that speculate: chance must not pass for gain."""
_STALL_STEPS, _SLOWEST_STEPS = 4.0, 16.0
"""A step that takes as long as so many plain ones has stalled; rows of proposals alone make none take so many."""
_STALL_RATE, _MOST_PARDONS = 1 / 64, 2.0
"""Of the steps may stall uncharged, or as many as of the plain ones; of those that speculate so many in a row."""
_WARMING, _WARM_STEPS = 4, 1.5
"""The first steps that speculate come slowly, as all that is new: so many count for so many plain ones at most."""
_CATCH_UP, _FIRST_CATCH_UP = 128, 16
"""Rows by which the draft model catches up in one step, at most; and as long as nobody knows what they take."""
_TRIAL = 2
"""Tokens of a proposal that is made to learn."""


class Candidate(NamedTuple):
    """A proposal that could be made: the chance of each of its tokens once those before it were accepted."""

    chance: float
    length: int


class Acceptance(NamedTuple):
    """How many proposed tokens were verified and how many of them were accepted, the latest counting most."""

    tried: float = 0.0
    accepted: float = 0.0

    def after(self, proposed: int, accepted: int, *, of_many: bool = False) -> Acceptance:
        """With one more proposal, of one sequence or ``of_many``.  What follows its first wrong token says nothing."""
        keep = _KEEP_KNOWN if of_many else _KEEP_OWN
        return Acceptance(self.tried * keep + min(accepted + 1, proposed), self.accepted * keep + accepted)


class Allowance(NamedTuple):
    """Memory of steps with about as many decodes: what speculation may still lose in them.

    ``seconds``: what it may lose; ``most``: what that may become by what was accepted since the last plain step, as
    nothing else saves time.  ``plain_s``: what plain steps took, which look nothing up and verify nothing: a mean
    of ``num_plain``, whose mean shape had ``decodes`` and ``context`` tokens; ``variance``: of one, over its mean's
    square; ``latest``: what the latest took, as a share of what was expected.  ``is_resting``: it lost what it may.
    ``to_come``: steps that may speculate before some plain ones are measured.  ``stall_rate``: of the plain steps have
    stalled; ``pardons``: steps that speculate may do so without being charged with it; ``warming``: the next are the
    first ones.
    ``token_s``: what making a proposed token takes, beside verifying it; ``row_s``: what a row of the draft model takes
    that catches up.
    """

    seconds: float = 0.0
    most: float = 0.0
    plain_s: float = 0.0
    decodes: float = 0.0
    context: float = 0.0
    variance: float = _VARIANCE
    latest: float = 1.0
    num_plain: int = 0
    is_resting: bool = False
    to_come: int = 0
    stall_rate: float = _STALL_RATE
    pardons: float = 1.0
    warming: int = _WARMING
    token_s: float = 0.0
    row_s: float = 0.0

    def usual_s(self, model: StepModel, shape: StepShape) -> float:
        """What a plain step of this shape takes.

        As those that were measured, which the model only carries over to another shape: it learns from steps that
        speculate, too, and may take what these cost for the machine's own time.  So a context that has grown since
        counts for nothing: what it takes may be speculation's doing.
        """
        measured_s = _seconds(model, self.decodes, self.context)
        wanted_s = _seconds(model, shape.num_decodes, min(shape.context_tokens, self.context))
        return self.plain_s * wanted_s / measured_s if measured_s > 0 else self.plain_s

    @property
    def has_shifted(self) -> bool:
        """Whether the latest plain steps took another time than those before, and more than by chance."""
        return abs(self.latest - 1) > max(_SHIFT, _SHIFT_SCATTER * math.sqrt(self.variance))

    @property
    def error(self) -> float:
        """By what share of it the mean of plain steps' times is likely to be wrong."""
        return math.sqrt(self.variance * max(1 / self.num_plain, _NEWEST / 2))


def mix(num_decodes: int) -> int:
    """Steps of one mix have an allowance of their own: from a power of two decodes to the next."""
    return num_decodes.bit_length()


def speculates(allowance: Allowance) -> bool:
    """Whether the next step looks for proposals at all.  Where not, it is plain: as fast as without speculation."""
    return not allowance.is_resting and allowance.to_come > 0 and allowance.num_plain >= _WATCHED


def chance(own: Acceptance, known: Acceptance) -> float:
    """How likely a sequence's next proposed token is accepted: by its ``own``, and what is ``known`` of others'."""
    believed = (known.accepted + _PRIOR_WEIGHT * _PRIOR_CHANCE) / (known.tried + _PRIOR_WEIGHT)
    return (own.accepted + _KNOWN_WEIGHT * believed) / (own.tried + _KNOWN_WEIGHT)


def lengths(
    candidates: Sequence[Candidate], shape: StepShape, model: StepModel, allowance: Allowance, most_rows: int
) -> list[int]:
    """How many tokens of each to verify beside the decodes of ``shape``, at most ``most_rows`` together.

    Rows are given where they are likeliest to bring a token, for as long as they bring more per second than the step
    does without them: so the expected tokens per second are the most that there are.
    Where no row is worth its time, one candidate is tried now and then, of what the allowance has put by.
    """
    counts = [0] * len(candidates)
    if most_rows <= 0 or not candidates:
        return counts
    plain_s = allowance.usual_s(model, shape)
    tokens, seconds, row_s = float(shape.num_decodes), plain_s, model.rates[1] + allowance.token_s
    heap = [(-candidate.chance, index) for index, candidate in enumerate(candidates)]
    heapq.heapify(heap)
    while heap and most_rows:
        brings, index = -heap[0][0], heap[0][1]
        if brings * seconds <= _MARGIN * tokens * row_s:
            break
        counts[index] += 1
        most_rows -= 1
        tokens, seconds = tokens + brings, seconds + row_s
        if counts[index] < candidates[index].length:
            heapq.heapreplace(heap, (-brings * candidates[index].chance, index))
        else:
            heapq.heappop(heap)
    if allowance.seconds >= _RESUME_STEPS * plain_s and not any(counts):
        best = heap[0][1]
        counts[best] = min(_TRIAL, candidates[best].length, most_rows)
    return counts


def rows_to_catch_up(lacking: int, allowance: Allowance) -> int:
    """How many of the rows that the draft model lacks of a sequence it computes beside the next step.

    What they take is lost if its proposals do not save it again, so no more than the allowance has.
    """
    affordable = int(allowance.seconds / allowance.row_s) if allowance.row_s > 0 else _FIRST_CATCH_UP
    return max(0, min(lacking, _CATCH_UP, affordable))


def drafted(allowance: Allowance, num_proposed: int, num_rows: int, seconds: float) -> Allowance:
    """After the draft model made so many proposed tokens, or caught up by so many rows."""
    if num_proposed:
        return allowance._replace(token_s=_mean(allowance.token_s, seconds / num_proposed))
    return allowance._replace(row_s=_mean(allowance.row_s, seconds / num_rows))


def plain(
    allowance: Allowance, model: StepModel, shape: StepShape, seconds: float, num_steps: int = 1, *, settled: bool
) -> Allowance:
    """After a plain step, or ``num_steps`` computed as one that took ``seconds`` each.

    ``settled``: the one before it was plain, too.  What another left for it to do again is a cost of speculation.
    """
    decodes, context = shape.num_decodes, shape.context_tokens
    if not allowance.num_plain:
        # One behind prompts is like no other.
        if not settled:
            return allowance
        return allowance._replace(
            seconds=_FIRST_STEPS * seconds,
            most=_FIRST_STEPS * seconds,
            plain_s=seconds,
            decodes=decodes,
            context=context,
            num_plain=1,
            to_come=-1,
        )
    usual_s = allowance.usual_s(model, shape)
    has_stalled = seconds > _STALL_STEPS * usual_s
    seconds = min(seconds, _STALL_STEPS * usual_s)
    before, num_plain, is_resting = allowance.seconds, allowance.num_plain, allowance.is_resting
    earned = _SHARE * usual_s * num_steps
    if settled:
        num_plain = min(num_plain + 1, _IN_A_ROW)
        weight = max(1 / num_plain, min(_NEWEST * num_steps, 0.5))
        mean_s = allowance.plain_s + weight * (seconds - allowance.plain_s)
        allowance = allowance._replace(
            # The first ones of a mix come slowly, so the fastest of them counts.
            plain_s=mean_s if num_plain > _WATCHED else min(allowance.plain_s, seconds),
            decodes=allowance.decodes + weight * (decodes - allowance.decodes),
            context=allowance.context + weight * (context - allowance.context),
            stall_rate=max(_STALL_RATE, allowance.stall_rate + weight * (has_stalled - allowance.stall_rate)),
            variance=allowance.variance + weight * ((seconds / usual_s - 1) ** 2 - allowance.variance),
            latest=allowance.latest + _LATEST * (seconds / usual_s - allowance.latest),
        )
    else:
        earned -= (seconds - usual_s) * num_steps
    left = before + earned if earned < 0 else max(before, min(before + earned, _MOST_STEPS * usual_s))
    is_resting = is_resting and left < _RESUME_STEPS * usual_s
    to_come = allowance.to_come - num_steps
    if settled and to_come <= -_WATCHED and allowance.has_shifted:
        # What was measured is of another machine, and so is what seemed saved; soon it is to be seen again.
        num_plain, left = _WATCHED, min(left, _RESUME_STEPS * usual_s)
        allowance = allowance._replace(plain_s=allowance.plain_s * allowance.latest, latest=1.0)
    if (settled and to_come <= -_WATCHED) or is_resting != allowance.is_resting:
        to_come = min(_IN_A_ROW, _IN_A_ROW_FOR_EACH * num_plain)
    return allowance._replace(seconds=left, most=left, num_plain=num_plain, is_resting=is_resting, to_come=to_come)


def speculated(
    allowance: Allowance,
    model: StepModel,
    shape: StepShape,
    seconds: float,
    num_accepted: int,
    draft_s: float = 0.0,
) -> Allowance:
    """After a step that looked for proposals, whether it verified any or not, and made any with a draft model.

    ``shape``: without proposals.  It lost what it took longer than the plain steps in which its tokens would have
    come; or saved that.  ``draft_s`` of the seconds went into making proposals, which are nobody else's doing.
    """
    usual_s = allowance.usual_s(model, shape) * (1 - _DOUBT * allowance.error)
    seconds -= draft_s
    pardons = min(allowance.pardons + allowance.stall_rate, _MOST_PARDONS)
    if allowance.warming:
        seconds = min(seconds, _WARM_STEPS * usual_s)
    elif seconds > _STALL_STEPS * usual_s and pardons >= 1:
        seconds, pardons = usual_s, pardons - 1
    gained = usual_s * (_SHARE + num_accepted / shape.num_decodes)
    lost = min(seconds, _SLOWEST_STEPS * usual_s) + draft_s - usual_s
    most = min(allowance.most + gained, _MOST_SAVED_STEPS * usual_s)
    left = min(allowance.seconds + gained - lost, most)
    return allowance._replace(
        seconds=left,
        most=most,
        is_resting=left <= 0,
        to_come=allowance.to_come - 1,
        pardons=pardons,
        warming=max(0, allowance.warming - 1),
    )


def _seconds(model: StepModel, decodes: float, context: float) -> float:
    step_s, decode_s, context_s, _, _ = model.rates
    return step_s + decode_s * decodes + context_s * context / 1024


def _mean(before: float, value: float) -> float:
    """A running one; a value far below it says that what took so long has gone."""
    return value if not before or value < before / 2 else before + 0.25 * (value - before)
