"""An engine has at most so many adapters, and counts the memory of those that were dropped and are still in use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.engine.adapters import AdapterRules, Adapters
from penstock.wire.errors import Problem


@dataclass(eq=False)
class Held:
    digest: str
    num_bytes: int = 100


def room_for(most: int) -> Adapters:
    return Adapters(AdapterRules(most, 100), lambda path: Held(path.name))


def loaded(adapters: Adapters, name: str) -> Held:
    adapters.check_room()
    adapters.add(adapter := adapters.read(Path(name)))
    assert isinstance(adapter, Held)
    return adapter


def test_as_many_as_there_is_room_for() -> None:
    """One more is refused by the flag's name; after one was dropped it fits."""
    adapters = room_for(2)
    loaded(adapters, "a")
    loaded(adapters, "b")
    with pytest.raises(Problem, match="--max-loras is 2"):
        adapters.check_room()
    adapters.drop("a")
    loaded(adapters, "c")
    assert adapters.digests == ["b", "c"] and adapters.get("a") is None
    with pytest.raises(Problem, match="adapter") as refused:
        adapters.find("a")
    assert refused.value.code == "not_ready"


def test_what_is_dropped_counts_until_nobody_uses_it() -> None:
    """A sequence that runs with it keeps its memory taken; when it ends, another fits."""
    adapters = room_for(1)
    running = loaded(adapters, "a")
    adapters.drop("a")
    with pytest.raises(Problem, match="still use") as refused:
        adapters.check_room()
    assert refused.value.code == "insufficient_memory"
    del running
    loaded(adapters, "b")


def test_without_room_there_are_none() -> None:
    """The refusal names the flag that makes some."""
    with pytest.raises(Problem, match="--max-loras NUMBER"):
        room_for(0).check_room()
