"""The production clock."""

from __future__ import annotations

import time


class Monotonic:
    """Implements ``ports.Clock``: seconds that never go back."""

    def now(self) -> float:
        return time.monotonic()
