"""How the C library's allocator treats the large, short-lived tensors of a step.

By default glibc maps each allocation above 32 MiB at most afresh and unmaps it at once, so every activation of a
prefill pays for its page faults again: measured, a norm over 256 rows took ten times as long.
"""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Serve allocations up to 1 GiB from the heap and keep what is freed there.  False where libc is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    kept = [bool(libc.mallopt(parameter, _KEEP_BYTES)) for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)]
    return all(kept)
