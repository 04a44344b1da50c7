"""What the lock files promise."""

from __future__ import annotations

import re

import pytest

import lock


@pytest.mark.parametrize("name", list(lock.LOCKS))
def test_a_lock_pins_everything_but_torch_with_hashes(name: str) -> None:
    """Every line is a pin or a sha256, no line is an option or an address, and every pin has a hash."""
    text = (lock.ROOT / "locks" / f"{name}.txt").read_text()
    lines = lock.body(text).splitlines()
    assert "://" not in text
    assert not any(line.startswith(lock.INSTALLED_APART) for line in lines)
    entries = re.split(r"^(?=\S)", "\n".join(lines), flags=re.MULTILINE)[1:]
    assert len(entries) == len(lock.pins(text))
    assert all("--hash=sha256:" in entry for entry in entries)


def test_each_lock_contains_the_one_before_it() -> None:
    """Tests run with exactly the versions that serve."""
    serve, test, test_all = (set(lock.pins((lock.ROOT / "locks" / f"{name}.txt").read_text())) for name in lock.LOCKS)
    assert serve < test < test_all


@pytest.mark.parametrize("name", list(lock.LOCKS))
def test_a_lock_covers_what_the_project_asks_for(name: str) -> None:
    """A requirement added to pyproject.toml without `make lock` is noticed."""
    locked = {pin.split("==")[0] for pin in lock.pins((lock.ROOT / "locks" / f"{name}.txt").read_text())}
    assert {lock.name_of(line) for line in lock.requirements(lock.LOCKS[name])} <= locked
