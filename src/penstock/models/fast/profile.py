"""Where the time of compiled steps goes: by job, and apart for steps that read prompts and steps that only decode.

In: the names of a program's jobs, and ticks that programs of these jobs count; out: shares of their sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

StepKind = Literal["prefill", "decode"]
"""A step that computes any prompt token is one of ``prefill``."""


class Profile:
    """``ticks``: where a program counts [J], by kind of step."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.ticks: dict[StepKind, npt.NDArray[np.int64]] = {
            "prefill": np.zeros(len(names), np.int64),
            "decode": np.zeros(len(names), np.int64),
        }

    def shares(self, kind: StepKind | None = None) -> dict[str, float]:
        """Of the time in steps of ``kind`` (all), by jobs of one name, the largest first."""
        ticks = sum(self.ticks.values()) if kind is None else self.ticks[kind]
        sums: Counter[str] = Counter()
        for name, own in zip(self._names, np.asarray(ticks).tolist(), strict=True):
            sums[name] += own
        total = max(1, sums.total())
        return {name: own / total for name, own in sums.most_common()}
