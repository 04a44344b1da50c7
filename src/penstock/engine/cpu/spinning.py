"""How long a thread of OpenMP's spins before it sleeps.

In: the environment, which a user's own words in it outrank; out: one variable, read when torch brings its OpenMP in.
By itself GCC's library spins 300,000 pauses, 17 ms on a CPU whose pause takes 140 cycles, on a core that a neighbour
may be waiting for: three engines on two cores then took 8 to 50 ms for a product of 25 us.
"""

from __future__ import annotations

from collections.abc import MutableMapping

PAUSES = 8_000
"""Half a millisecond: longer than what runs between two compiled calls of a step."""


def bound_spinning(environment: MutableMapping[str, str]) -> None:
    """Before torch is imported for the first time; afterwards it does nothing."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(PAUSES))
