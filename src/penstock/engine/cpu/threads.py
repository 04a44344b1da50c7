"""How many threads torch computes with.

In: a wish or none; out: the number set.  Called once, before the first tensor operation of an engine process.
"""

from __future__ import annotations

import torch

from penstock.engine.cpu.cores import available_cores


def use_threads(wanted: int | None) -> int:
    """Set torch's threads to ``wanted``, else to the cores this process may use; returns the number."""
    num_threads = wanted if wanted is not None else available_cores()
    torch.set_num_threads(num_threads)
    return num_threads
