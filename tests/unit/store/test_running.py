"""What a killed gateway's requests had used: kept without a system call, found by the next, counted once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from usage import ROW, row

from penstock.cost.money import Rate
from penstock.store.ledger import Ledger
from penstock.store.running import Running, recover
from penstock.store.sql.database import Database
from penstock.store.sql.migrations import migrate

RATE = Rate(150_000, 30_000, 610_000)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    database = Database(f"sqlite:///{tmp_path / 'penstock.sqlite'}")
    database.create()
    migrate(database)
    yield Ledger(database)
    database.close()


def killed(directory: Path, num_requests: int) -> None:
    """A process with so many requests, every third of which has ended, is killed by SIGKILL."""
    code = f"""
import os, signal
from pathlib import Path
import msgspec
from usage import row
from penstock.cost.money import Rate
from penstock.store.running import Running

running = Running(Path({str(directory)!r}), "killed")
for number in range({num_requests}):
    slot = running.begin(row(f"r{{number}}"), Rate{tuple(RATE)})
    running.count(slot, 10, 4, 1, 2)
    running.count_output(slot, number)
    if number % 3 == 0:
        running.end(slot)
os.kill(os.getpid(), signal.SIGKILL)
"""
    support = str(Path(__file__).parents[2] / "support")
    done = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | {"PYTHONPATH": support})
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("num_requests", [1, 5, 500])
def test_what_ran_when_a_process_was_killed_is_in_the_ledger(ledger: Ledger, tmp_path: Path, num_requests: int) -> None:
    """The last count of each request that had not ended, at its price, once; and the file is gone."""
    killed(tmp_path / "usage", num_requests)
    expected = [number for number in range(num_requests) if number % 3]
    assert recover(tmp_path / "usage", ledger) == len(expected)
    assert recover(tmp_path / "usage", ledger) == 0
    totals = ledger.totals()
    assert sum(total.requests for total in totals) == len(expected)
    assert sum(total.output_tokens for total in totals) == sum(expected)
    assert sum(total.cost_nusd for total in totals) == sum(6 * 150 + 4 * 30 + number * 610 for number in expected)
    assert list((tmp_path / "usage").iterdir()) == []


def test_a_row_that_was_written_counts_and_not_what_was_kept_of_it(ledger: Ledger, tmp_path: Path) -> None:
    """A kill between the row of a request that ended and the end of its slot charges nothing twice."""
    killed(tmp_path / "usage", 2)
    ledger.write([row("r1", output_tokens=77)])
    recover(tmp_path / "usage", ledger)
    [total] = ledger.totals()
    assert (total.requests, total.output_tokens) == (1, 77)


def test_what_a_living_process_runs_is_its_own(ledger: Ledger, tmp_path: Path) -> None:
    """Nobody takes the rows of a process that goes on."""
    running = Running(tmp_path / "usage", "alive")
    slot = running.begin(ROW, RATE)
    assert slot is not None and recover(tmp_path / "usage", ledger) == 0
    running.count(slot, 1, 0, 1, 0)
    running.end(slot)
    running.close()
    assert list((tmp_path / "usage").iterdir()) == [] and ledger.totals() == []


def test_slots_are_used_again(tmp_path: Path) -> None:
    """Ten thousand requests, a hundred at a time, take the room of a hundred."""
    running = Running(tmp_path, "g")
    open_slots: list[int] = []
    for number in range(10_000):
        slot = running.begin(row(str(number)), RATE)
        assert slot is not None and slot not in open_slots
        open_slots.append(slot)
        if len(open_slots) == 100:
            for slot in open_slots:
                running.end(slot)
            open_slots.clear()
    assert (tmp_path / "g.running").stat().st_size < 300 * 1024
    running.close()


def test_a_full_disk_costs_the_keeping_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks are taken before they are stored into; where there are none it is said once, and requests go on."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    running = Running(tmp_path, "g")
    assert running.begin(ROW, RATE) is None and running.begin(ROW, RATE) is None
    assert len(caplog.records) == 1
    monkeypatch.undo()
    assert running.begin(ROW, RATE) is not None
    running.close()


def test_a_row_that_is_too_long_is_not_kept(tmp_path: Path) -> None:
    """It is written when it ends, as ever."""
    running = Running(tmp_path, "g")
    assert running.begin(msgspec.structs.replace(ROW, scopes="x" * 4000), RATE) is None
    assert running.begin(ROW, RATE) is not None
    running.close()


def test_garbage_is_no_row(ledger: Ledger, tmp_path: Path) -> None:
    """A file that something else wrote to is looked through and removed."""
    (tmp_path / "usage").mkdir()
    (tmp_path / "usage" / "x.running").write_bytes(os.urandom(3 * 2048 + 17) + (100).to_bytes(8, "little") * 600)
    assert recover(tmp_path / "usage", ledger) == 0 and ledger.totals() == []


def test_what_is_damaged_keeps_nothing_else_from_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    """A count that no column takes, a row that is no text, and files that are none: the other slots' rows arrive."""
    directory = tmp_path / "usage"
    killed(directory, 5)
    [path] = directory.iterdir()
    data = bytearray(path.read_bytes())
    used = [slot for slot in range(0, len(data), 2048) if data[slot : slot + 8] != bytes(8)]
    assert len(used) == 3
    data[used[0] + 24 : used[0] + 32] = b"\xff" * 8
    at = data.index(b'"id":"', used[1]) + 6
    data[at : at + 1] = b"\xff"
    path.write_bytes(data)
    (directory / "0.running").mkdir()
    (directory / "1.running").symlink_to("1.running")
    assert recover(directory, ledger) == 1
    assert sum(total.requests for total in ledger.totals()) == 1
