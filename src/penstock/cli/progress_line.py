"""One line for a person who waits, written over again and again.

In: words; out: a line on standard error where that is a terminal, nothing elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


def progress_line() -> Callable[[str], None]:
    """What shows its words in place of the words before; nothing, with ``""``."""
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
