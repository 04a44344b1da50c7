"""The first moments of ``penstock serve``, where an engine's process cannot be started yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.cli.wiring import opening
from penstock.cli.wiring.commands import FIRST_ENGINE
from penstock.cluster.rundir import RunDir
from penstock.config.settings import ServeSettings


@pytest.mark.parametrize("missing", ["log", "program"])
def test_an_engine_that_cannot_be_started_ahead_is_left_to_the_driver(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which tells what is in the way, and tries again: the service does not end of it."""
    run = RunDir.create(tmp_path, os.getpid())
    if missing == "log":
        (run.path / f"{FIRST_ENGINE}.log").mkdir()
    else:
        monkeypatch.setattr(opening, "command", lambda _: ["/no/such/program"])
    with opening._waiting(ServeSettings(), run) as waiting:
        assert waiting == {}
    run.remove()
