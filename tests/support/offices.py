"""An opened store and the acts on it, with a clock that tests set."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from penstock.policy.keyring import Keyring
from penstock.store.access import AccessStore
from penstock.store.administer import Administration
from penstock.store.places import Opened
from penstock.store.served import Served


@dataclass
class Office:
    """An opened store, the acts on it, and ``clock[0]`` as the time; ``served`` is what services serve."""

    home: Path
    opened: Opened
    clock: list[float] = field(default_factory=lambda: [1000.0])
    served: Served = Served()
    counter: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def store(self) -> AccessStore:
        return self.opened.store

    @property
    def acts(self) -> Administration:
        return self.opened.administration(lambda: self.clock[0], self._entropy, lambda: self.served)

    def keyring(self) -> Keyring:
        return Keyring(self.store.read(), self.opened.secret)

    def _entropy(self, num_bytes: int) -> bytes:
        return next(self.counter).to_bytes(num_bytes, "big")
