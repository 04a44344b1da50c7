"""What others depend on grows and shrinks only as a visible diff of tests/surface/snapshots/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import surface

SNAPSHOTS = Path(__file__).parent / "snapshots"
KINDS = ("routes", "flags", "environment", "errors", "events", "settings", "metrics")


@pytest.fixture(scope="module")
def code() -> dict[str, list[str]]:
    return surface.snapshot()


@pytest.mark.parametrize("kind", KINDS)
def test_the_surface_is_what_its_snapshot_says(kind: str, code: dict[str, list[str]]) -> None:
    """The code offers exactly what the snapshot lists; `make surface` writes it again for review."""
    path = SNAPSHOTS / f"{kind}.txt"
    if os.environ.get("UPDATE_SURFACE"):
        path.write_text("\n".join(code[kind]) + "\n")
    known = path.read_text().splitlines()
    added, gone = sorted(set(code[kind]) - set(known)), sorted(set(known) - set(code[kind]))
    assert (added, gone) == ([], []), f"{path.name} differs from the code; `make surface` if that is meant"


def test_every_kind_of_surface_has_a_snapshot(code: dict[str, list[str]]) -> None:
    """No kind is left out, and none is empty."""
    assert set(code) == set(KINDS) == {path.stem for path in SNAPSHOTS.glob("*.txt")}
    assert all(code.values())


def test_every_module_of_the_command_line_is_registered() -> None:
    """A command is never lost because its module failed to import."""
    paths = {command.path for command in surface.commands()}
    for path in (
        "serve",
        "chat",
        "ps",
        "doctor",
        "bench serve",
        "bench engine",
        "bench engines",
        "bench gateway",
        "mock-engine",
    ):
        assert f"penstock {path}" in paths
