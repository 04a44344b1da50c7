"""``penstock bench start``: a service is started, asked until it is ready, and ended."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.cli import bench_start
from penstock.cli.bench_start import _parts
from penstock.events.list import StartPartDone
from penstock.observe import exposition
from penstock.observe.folds import Folds

TALKATIVE = f"""#!{sys.executable}
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stderr.write("w" * 1_000_000)
open(os.environ["PENSTOCK_HOME"] + "/written", "w")
signal.pause()
"""


def bench(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", "bench", "start", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_start_is_timed_from_the_command_to_the_first_answer() -> None:
    """One that warms up and one that counts; an engine that is only pretended has no parts."""
    ended = bench("mock://", "--runs=1", "--json")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert len(report["runs"]) == 1
    assert report["ready_s"] == report["runs"][0]["ready_s"] > 0
    assert report["parts"] == {}


def test_a_service_that_does_not_start_is_told_with_its_own_words() -> None:
    """Instead of waiting for it."""
    ended = bench("/no/such/model", "--runs=1")
    assert ended.returncode == 1
    assert "There is no directory /no/such/model" in ended.stderr


def test_a_service_that_says_much_and_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says blocks it nowhere, and it is waited for within bounds."""
    program = tmp_path / "program"
    program.write_text(TALKATIVE)
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(bench_start, "_END_S", 0.2)
    with bench_start._serving(None, "none", tmp_path, 0) as process:
        end = time.monotonic() + 20
        while not (tmp_path / "written").exists():
            assert time.monotonic() < end, "it is blocked"
            time.sleep(0.01)
    assert process.returncode == -9


def test_parts_are_read_from_the_page_of_metrics_in_their_order() -> None:
    """As the engine's events get there."""
    folds = Folds()
    for part, seconds in (("settings", 0.5), ("imports", 1.25), ("weights", 2.0)):
        folds(StartPartDone(part=part, seconds=seconds))  # type: ignore[arg-type]  # of the event's own words
    page = exposition.render({"engine-0": folds.samples()})
    text = page.decode() if isinstance(page, bytes) else page
    assert list(_parts(text).items()) == [("settings", 0.5), ("imports", 1.25), ("weights", 2.0)]
