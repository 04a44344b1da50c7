"""How long a step takes, from what it computes.

In: counts; out: seconds.  A linear model: a + b * tokens + c * KV tokens read, the form that fits measured steps of
one machine and one model well enough to plan with (engine steps are bandwidth-bound in weights and KV).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTime:
    """Coefficients in seconds: per step, per computed token, per KV token read."""

    base_s: float
    per_token_s: float
    per_kv_token_s: float

    def seconds(self, num_tokens: int, num_kv_tokens: int) -> float:
        return self.base_s + self.per_token_s * num_tokens + self.per_kv_token_s * num_kv_tokens
