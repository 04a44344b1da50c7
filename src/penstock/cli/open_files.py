"""How many files and sockets this process may have open at once.

In: a wish or none; out: nothing.  Raises the soft limit as far as the system lets it, and never complains.
"""

from __future__ import annotations

import resource
from contextlib import suppress


def allow_open_files(wanted: int | None = None) -> None:
    """At least ``wanted`` at once, ``None``: as many as there may be.  One stream needs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    most = hard if wanted is None else wanted if hard == unlimited else min(wanted, hard)
    if soft != unlimited and (most == unlimited or most > soft):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
