"""The second stage: how much.

In: a call whose principal is known; out: nothing, or a ``Problem`` that says why it is not taken and when to try again.
"""

from __future__ import annotations

from penstock.gateway.call import Call
from penstock.gateway.replicas import Replicas
from penstock.wire.errors import Problem


class Limit:
    """Refuses what this gateway does not take now."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    @property
    def draining(self) -> bool:
        """The desired state admits no new requests."""
        return self._replicas.version > 0 and not self._replicas.admitting

    def arrive(self, call: Call) -> None:
        """The head is read, the body is not."""
        if self.draining:
            raise Problem("draining", "This server is shutting down and takes no new requests.", retry_after_s=1.0)
