"""How long the parts of an engine's start take.

In: the end of each; out: an event per part, whose seconds add up to the time since the process began.
"""

from __future__ import annotations

import time
from typing import Literal

import psutil

from penstock.events.list import StartPartDone
from penstock.ports import Emit


class StartParts:
    """A watch that was started with the process."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._then = time.perf_counter() - (time.time() - psutil.Process().create_time())

    def done(self, part: Literal["settings", "imports", "tokenizer", "weights", "memory"]) -> None:
        """This part is over, and the next one begins."""
        now = time.perf_counter()
        self._emit(StartPartDone(part=part, seconds=now - self._then))
        self._then = now
