"""How fast a replica is, learned from what its sequences took: prefill, a decoding step, and a step's growth per row.

In: one observation at a time; out: rates.  Pure.  An observation counts for a little and never for more than four
times what was believed, so that a stall or a cache hit that nobody knew of does not turn the picture over.
"""

from __future__ import annotations

import msgspec

_WEIGHT = 0.1
_MOST = 4.0
_FADE = 0.98


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What is believed.  A step of ``n`` rows takes ``step_s + growth_s * n`` seconds.

    The sums are of the observed steps, fading: weight, rows, seconds, rows squared, rows times seconds.
    """

    prefill_tokens_per_s: float = 4000.0
    step_s: float = 0.02
    growth_s: float = 0.0005
    sums: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)


def after_first_token(rates: Rates, work_tokens: int, seconds: float) -> Rates:
    """``work_tokens`` had to be prefilled, its own and those before it, until a first token came after ``seconds``."""
    if work_tokens <= 0 or seconds <= 0:
        return rates
    known = rates.prefill_tokens_per_s
    seen = min(max(work_tokens / seconds, known / _MOST), known * _MOST)
    return msgspec.structs.replace(rates, prefill_tokens_per_s=known + _WEIGHT * (seen - known))


def after_stream(rates: Rates, rows: int, seconds_per_token: float) -> Rates:
    """A sequence decoded beside ``rows`` others at this pace.  Weighted least squares over what was seen lately."""
    believed = rates.step_s + rates.growth_s * rows
    seen = min(max(seconds_per_token, believed / _MOST), believed * _MOST)
    weight, x, y, xx, xy = (_FADE * value for value in rates.sums)
    weight, x, y, xx, xy = weight + 1, x + rows, y + seen, xx + rows * rows, xy + rows * seen
    spread = weight * xx - x * x
    growth_s = rates.growth_s
    if spread > 1e-9 * max(xx, 1.0) * weight:
        growth_s = max((weight * xy - x * y) / spread, 0.0)
    step_s = max((y - growth_s * x) / weight, 1e-6)
    return msgspec.structs.replace(rates, step_s=step_s, growth_s=growth_s, sums=(weight, x, y, xx, xy))
