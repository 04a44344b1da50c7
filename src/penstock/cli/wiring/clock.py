"""The production clock."""

from __future__ import annotations

import time


class Monotonic:
    """Implements ``ports.Clock``: seconds that never go back."""

    now = staticmethod(time.monotonic)  # asked for several times per request, so without a call of our own
