"""A process that was started before its settings were known becomes a member, or ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.cluster.drivers.local import Launch, LocalDriver
from penstock.cluster.drivers.process import discard, open_log, spawn
from penstock.cluster.reconcile import Observed

CHILD = [sys.executable, str(Path(__file__).with_name("fake_child.py"))]


class Clock:
    def now(self) -> float:
        return time.monotonic()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: socket paths end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pk") as name:
        yield Path(name)


async def first_answer(folder: Path, process: subprocess.Popen[bytes]) -> Observed:
    """What the driver observes of its member as soon as that has answered."""
    line = json.dumps({"socket": str(folder / "e0.sock"), "mode": "ready"}).encode()
    launch = Launch(argv=CHILD, settings=lambda _: line, socket=str(folder / "e0.sock"), route="/engine/load")
    driver = LocalDriver({"e0": launch}, folder, Clock(), {"e0": process})
    driver.start("e0", 0)
    try:
        while (seen := driver.observe()["e0"]).load is None:
            assert seen.exit_code is None, seen.last_lines
            await asyncio.sleep(0.01)
        return seen
    finally:
        await driver.close()


def test_a_process_that_waits_becomes_the_member(folder: Path) -> None:
    """It gets the settings that a process of its own would have got, and is ended like one."""
    with open_log(folder / "e0.log") as log:
        waiting = spawn(CHILD, log)
    seen = asyncio.run(first_answer(folder, waiting))
    assert seen.pid == waiting.pid
    assert waiting.returncode is not None


def test_one_that_waits_for_settings_of_another_kind_is_ended(folder: Path) -> None:
    """The member then has a process of its own."""
    with open_log(folder / "e0.log") as log:
        waiting = spawn([*CHILD, "other"], log)
    try:
        assert asyncio.run(first_answer(folder, waiting)).pid != waiting.pid
        assert waiting.returncode is not None
    finally:
        discard(waiting)


def test_one_that_died_while_it_waited_is_seen_with_its_last_words(folder: Path) -> None:
    """As a start that failed, which is tried again."""
    with open_log(folder / "e0.log") as log:
        waiting = spawn([sys.executable, "-c", "raise SystemExit('no torch here')"], log)
    waiting.wait()
    launch = Launch(argv=waiting.args, settings=lambda _: b"{}", socket=str(folder / "e0.sock"), route="/")  # type: ignore[arg-type]

    async def seen() -> Observed:
        driver = LocalDriver({"e0": launch}, folder, Clock(), {"e0": waiting})
        driver.start("e0", 0)
        try:
            return driver.observe()["e0"]
        finally:
            await driver.close()

    observed = asyncio.run(seen())
    assert observed.exit_code == 1
    assert observed.last_lines == ("no torch here",)
