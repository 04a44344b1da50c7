"""What was measured.  In: one outcome per request; out: one :class:`Report`, whose field names are stable.

Pure: no clock, no I/O.  All times in seconds.  Latencies count from the scheduled arrival, so a request that the
client or the network delayed is charged with the delay (no coordinated omission); ``from_send`` has the other clock.
Percentiles are exact, by nearest rank: each is one of the samples.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock.wire.errors import Problem


@dataclass(slots=True)
class Outcome:
    """One request as the client saw it; seconds since the start of the run.

    ``error`` is a code; ``None`` with ``finished_s`` set means success; ``finished_s`` unset means it was cut short.
    ``gaps_s`` are the times between successive chunks that carried text.
    """

    scheduled_s: float
    sent_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    finished_s: float | None = None
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    num_chunks: int = 0
    usage_reported: bool = False
    error: str | None = None
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.finished_s is not None and self.error is None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; ``None`` for a single token."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)


class Slo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Upper bounds in seconds that a request has to meet, all of them, to count as good."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """``"ttft=0.5,tpot=0.05,e2e=10"``, any part of it.  Raises ``invalid_setting``."""
        bounds: dict[str, float] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            try:
                bounds[name.strip()] = float(value)
            except ValueError:
                raise Problem("invalid_setting", f"slo: {part!r} is not NAME=SECONDS.", param="slo") from None
        wrong = [
            name for name, bound in bounds.items() if name not in cls.__struct_fields__ or not 0 < bound < math.inf
        ]
        if wrong:
            allowed = ", ".join(cls.__struct_fields__)
            message = f"slo: {', '.join(wrong)}: the names are {allowed}, and each needs positive seconds."
            raise Problem("invalid_setting", message, param="slo")
        return cls(**bounds)

    def met_by(self, outcome: Outcome) -> bool:
        """A request without a second token has no time per output token and meets any bound on it."""
        if not outcome.ok:
            return False
        assert outcome.first_s is not None and outcome.finished_s is not None
        measured = (
            (self.ttft, outcome.first_s - outcome.scheduled_s),
            (self.tpot, outcome.tpot_s),
            (self.e2e, outcome.finished_s - outcome.scheduled_s),
        )
        return all(bound is None or value is None or value <= bound for bound, value in measured)


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """Samples in seconds, summed up.  All ``None`` when ``count`` is 0."""

    count: int
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


class FromSend(msgspec.Struct, frozen=True, kw_only=True):
    """The same latencies counted from when the request was really sent."""

    ttft_s: Distribution
    e2e_s: Distribution


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that met every bound; ``share`` is of all that succeeded or failed."""

    slo: Slo
    requests: int
    share: float
    requests_per_s: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    ``duration_s`` runs from the first scheduled second to the last completion.
    ``offered_requests_per_s`` is what the schedule asked for (``None``: all at once),
    ``requests_per_s`` what succeeded.
    ``requests_cut_short`` were unsent or unfinished when the run was interrupted and count nowhere else.
    ``lag_s`` is how late the client itself sent: large values mean that the client, not the server, was measured.
    ``usage_missing`` counts answers without ``usage``, whose output tokens were taken to be their chunks.
    ``errors`` maps code to count, ``error_messages`` to the first message.  Token counts are of successful requests.
    """

    target: dict[str, Any]
    workload: dict[str, Any]
    interrupted: bool
    duration_s: float
    requests_planned: int
    requests_sent: int
    requests_ok: int
    requests_failed: int
    requests_cut_short: int
    offered_requests_per_s: float | None
    requests_per_s: float
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    input_tokens_per_s: float
    output_tokens_per_s: float
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    from_send: FromSend
    lag_s: Distribution
    usage_missing: int
    goodput: Goodput | None
    errors: dict[str, int]
    error_messages: dict[str, str]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest sample with at least ``percent`` % of all samples at or below it; ``ordered`` rises."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def distribution(samples: Iterable[float | None]) -> Distribution:
    """Sum up the samples that exist."""
    ordered = sorted(sample for sample in samples if sample is not None)
    if not ordered:
        return Distribution(count=0)
    return Distribution(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def summarise(
    outcomes: Sequence[Outcome],
    *,
    target: dict[str, Any],
    workload: dict[str, Any],
    slo: Slo | None = None,
    interrupted: bool = False,
) -> Report:
    """The report of a run, from what the client recorded."""
    ok = [outcome for outcome in outcomes if outcome.ok]
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    sent = [outcome for outcome in outcomes if outcome.sent_s is not None]
    duration_s = max((outcome.finished_s or 0.0 for outcome in outcomes), default=0.0)
    horizon_s = max((outcome.scheduled_s for outcome in outcomes), default=0.0)
    input_tokens, output_tokens = (sum(o.prompt_tokens for o in ok), sum(o.output_tokens for o in ok))

    def per_s(amount: float) -> float:
        return amount / duration_s if duration_s > 0 else 0.0

    return Report(
        target=target,
        workload=workload,
        interrupted=interrupted,
        duration_s=duration_s,
        requests_planned=len(outcomes),
        requests_sent=len(sent),
        requests_ok=len(ok),
        requests_failed=len(failed),
        requests_cut_short=len(outcomes) - len(ok) - len(failed),
        offered_requests_per_s=len(outcomes) / horizon_s if horizon_s > 0 else None,
        requests_per_s=per_s(len(ok)),
        input_tokens=input_tokens,
        cached_input_tokens=sum(o.cached_tokens for o in ok),
        output_tokens=output_tokens,
        input_tokens_per_s=per_s(input_tokens),
        output_tokens_per_s=per_s(output_tokens),
        ttft_s=distribution(_since(o.first_s, o.scheduled_s) for o in ok),
        tpot_s=distribution(o.tpot_s for o in ok),
        itl_s=distribution(gap for o in ok for gap in o.gaps_s),
        e2e_s=distribution(_since(o.finished_s, o.scheduled_s) for o in ok),
        from_send=FromSend(
            ttft_s=distribution(_since(o.first_s, o.sent_s) for o in ok),
            e2e_s=distribution(_since(o.finished_s, o.sent_s) for o in ok),
        ),
        lag_s=distribution(_since(o.sent_s, o.scheduled_s) for o in sent),
        usage_missing=sum(not o.usage_reported for o in ok),
        goodput=_goodput(slo, ok, len(ok) + len(failed), duration_s) if slo else None,
        errors=dict(Counter(o.error for o in failed if o.error).most_common()),
        error_messages={o.error: o.message for o in reversed(failed) if o.error},
    )


def _goodput(slo: Slo, ok: Sequence[Outcome], num_ended: int, duration_s: float) -> Goodput:
    good = sum(slo.met_by(outcome) for outcome in ok)
    return Goodput(
        slo=slo,
        requests=good,
        share=good / num_ended if num_ended else 0.0,
        requests_per_s=good / duration_s if duration_s > 0 else 0.0,
    )


def _since(end_s: float | None, start_s: float | None) -> float | None:
    return None if end_s is None or start_s is None else end_s - start_s
