"""Work shared out over threads, for kernels that release the interpreter's lock.

In: jobs; out: nothing, when all are done.  How work is cut changes no result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import torch

_WORTH_A_THREAD = 200_000
"""Multiplications that take several times as long as handing work to a thread (some 50 microseconds)."""


def num_parts(most: int, work: int) -> int:
    """Into how many parts to cut ``work`` multiplications: at most ``most``, one where threads would not pay."""
    return max(1, min(torch.get_num_threads(), most, work // _WORTH_A_THREAD))


def run_all(jobs: Sequence[Callable[[], None]]) -> None:
    """Run the jobs beside one another, the first on this thread; raises what one of them raises."""
    others = [_pool().submit(job) for job in jobs[1:]]
    jobs[0]()
    for other in others:
        other.result()


def over_rows(num_rows: int, work_per_row: int, run: Callable[[int, int], None]) -> None:
    """``run(begin, end)`` over 0 .. ``num_rows``; ``work_per_row`` counts multiplications, roughly."""
    parts = num_parts(num_rows, num_rows * work_per_row)
    edges = [num_rows * part // parts for part in range(parts + 1)]
    run_all([partial(run, begin, end) for begin, end in itertools.pairwise(edges)])


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="kernel")
