"""Run directories: locked while their service lives, removed once it is dead."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cluster.rundir import RunDir, Service, running
from penstock.wire.errors import Problem


def service(pid: int) -> Service:
    return Service(pid=pid, model="m", url="http://u", admin_url="http://a", started_at=float(pid), version="0")


def test_a_described_service_is_listed_until_it_is_removed(tmp_path: Path) -> None:
    """running() shows what describe() said, and nothing after remove()."""
    run = RunDir.create(tmp_path, 7)
    assert running(tmp_path) == []
    run.describe(service(7))
    assert running(tmp_path) == [service(7)]
    run.remove()
    assert running(tmp_path) == []
    assert list((tmp_path / "run").iterdir()) == []


def test_only_its_user_can_look_into_a_run_directory(tmp_path: Path) -> None:
    """Sockets without a key lie there, so the mode is 0700."""
    run = RunDir.create(tmp_path / "home", 7)
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    run.remove()


def test_what_a_killed_service_left_is_removed_by_whoever_looks(tmp_path: Path) -> None:
    """The lock dies with the process, although the file, the process id and its sockets' directory stay."""
    home = tmp_path / ("a-long-path-" * 12)
    script = (
        "import os, sys, time; from pathlib import Path; from penstock.cluster.rundir import RunDir, Service\n"
        "run = RunDir.create(Path(sys.argv[1]), os.getpid())\n"
        "run.describe(Service(pid=1, model='m', url='', admin_url='', started_at=0.0, version=''))\n"
        "print(run.sockets, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(home)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    sockets = Path(process.stdout.readline().strip())
    assert len(running(home)) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert sockets.is_dir()
    assert running(home) == []
    assert list((home / "run").iterdir()) == []
    assert not sockets.exists()


def test_two_services_with_one_process_id_do_not_share(tmp_path: Path) -> None:
    """Containers on one volume are all process 1: the second gets a directory of its own."""
    first, second = RunDir.create(tmp_path, 1), RunDir.create(tmp_path, 1)
    assert first.path != second.path
    assert first.path.is_dir()
    first.remove()
    second.remove()


def test_leftovers_under_the_own_process_id_are_not_taken_over(tmp_path: Path) -> None:
    """A reused process id starts with an empty directory."""
    (tmp_path / "run" / "7").mkdir(parents=True)
    (tmp_path / "run" / "7" / "store.sqlite").touch()
    run = RunDir.create(tmp_path, 7)
    assert [path.name for path in run.path.iterdir()] == ["lock"]
    run.remove()


def test_sockets_fit_their_limit_however_long_the_home_is(tmp_path: Path) -> None:
    """A path that exceeds what a Unix socket takes moves the sockets, and removing removes them."""
    run = RunDir.create(tmp_path / ("a-long-path-" * 12), 7)
    assert len(os.fsencode(run.sockets / "gateway-000.sock")) <= 107
    assert run.sockets.is_dir()
    run.remove()
    assert not run.sockets.exists()


def test_a_home_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    """The message names the path and the variable."""
    (tmp_path / "home").touch()
    with pytest.raises(Problem, match="PENSTOCK_HOME") as caught:
        RunDir.create(tmp_path / "home", 7)
    assert str(tmp_path / "home") in caught.value.message


def test_a_damaged_description_hides_one_service_and_no_other(tmp_path: Path) -> None:
    """What cannot be read is not listed; the rest is."""
    good, bad = RunDir.create(tmp_path, 7), RunDir.create(tmp_path, 8)
    good.describe(service(7))
    (bad.path / "controller.json").write_text("{")
    assert [found.pid for found in running(tmp_path)] == [7]
    good.remove()
    bad.remove()
