"""The command as a process: what it imports, how it ends, and that its children end with it."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "transformers",
    "aiohttp",
    "uvicorn",
    "rich",
    "numpy",
    "huggingface_hub",
    "sqlite3",
    "penstock.engine",
)


def penstock(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "penstock", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PENSTOCK_HOME": str(home), **environment},
        check=False,
    )


def test_help_imports_nothing_heavy() -> None:
    """--help lists every command without a module that costs more than a few milliseconds."""
    script = (
        "import sys\nsys.argv = ['penstock', '--help']\nfrom penstock.cli.main import main\n"
        f"try:\n    main()\nfinally:\n    print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    for command in ("serve", "chat", "ps", "bench", "doctor"):
        assert f"\n  {command} " in out
    for hidden in ("engine", "gateway"):
        assert f"\n  {hidden} " not in out


def test_an_interrupt_while_modules_are_imported_is_no_traceback() -> None:
    """Ctrl-C in the first moments: 130, as later, and not a word."""
    script = (
        "import builtins, runpy\nreal = builtins.__import__\n"
        "def interrupted(name, *more, **other):\n"
        "    if name == 'penstock.cli.main': raise KeyboardInterrupt\n"
        "    return real(name, *more, **other)\n"
        "builtins.__import__ = interrupted\nrunpy.run_module('penstock', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_a_problem_is_one_message_with_its_hint_and_exit_code_one(tmp_path: Path) -> None:
    """No traceback, and nothing on standard output."""
    ended = penstock("serve", str(tmp_path / "nowhere"), "--port", "0", "--admin-port", "0", home=tmp_path / "home")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert f"error: There is no directory {tmp_path / 'nowhere'}." in ended.stderr
    assert "[source_not_found]" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_ends_serve_before_anything_is_loaded(tmp_path: Path) -> None:
    """The message names the port; the model that does not exist was not even looked at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = penstock("serve", "/nowhere", "--port", port, home=tmp_path)
    assert ended.returncode == 1
    assert f"Port {port} on 127.0.0.1" in ended.stderr
    assert "[port_in_use]" in ended.stderr


@pytest.mark.parametrize("how", ["sigterm", "end of input"])
def test_a_child_ends_by_signal_and_by_the_death_of_its_controller(how: str, tmp_path: Path) -> None:
    """Both set its stop event, and it exits with 0."""
    script = (
        "from penstock.cli.children import _run\nfrom penstock.config.settings import EngineSettings\n"
        "async def serve(settings, stop):\n    print('runs', settings.replica, flush=True)\n    await stop.wait()\n"
        "_run(EngineSettings, serve)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write('{"replica": "e7", "socket": "s", "model_dir": "m", "served_name": "n"}\n')
    child.stdin.flush()
    assert child.stdout.readline() == "runs e7\n"
    if how == "sigterm":
        child.send_signal(signal.SIGTERM)
    else:
        child.stdin.close()
    assert child.wait(20) == 0
    child.stdout.close()
    child.stdin.close()


def test_an_orphan_that_cannot_finish_is_ended_after_its_bound() -> None:
    """A child that ignores its stop event does not outlive the controller by more than the bound."""
    script = (
        "import asyncio\nfrom penstock.cli import children\nfrom penstock.config.settings import EngineSettings\n"
        "children._ORPHAN_LIMIT_S = 0.2\n"
        "async def serve(settings, stop):\n    print('runs', flush=True)\n    await asyncio.Event().wait()\n"
        "children._run(EngineSettings, serve)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write('{"replica": "e7", "socket": "s", "model_dir": "m", "served_name": "n"}\n')
    child.stdin.flush()
    child.stdout.readline()
    began = time.monotonic()
    child.stdin.close()
    assert child.wait(20) == 1
    assert time.monotonic() - began < 10
    child.stdout.close()


def test_a_child_that_gets_no_settings_ends_without_a_word() -> None:
    """Whoever started it had no use for it after all, or died."""
    child = [sys.executable, "-P", "-m", "penstock.cli.children", "engine"]
    ended = subprocess.run(child, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
def test_a_service_that_cannot_start_leaves_no_process(tmp_path: Path) -> None:
    """The engine that began to import is gone when the command has ended, and so is the run directory."""
    command = [sys.executable, "-P", "-m", "penstock", "serve", str(tmp_path / "none"), "--port=0", "--admin-port=0"]
    environment = {**os.environ, "PENSTOCK_HOME": str(tmp_path)}
    service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    _, said = service.communicate(timeout=60)
    assert service.returncode == 1
    assert "There is no directory" in said
    assert not list((tmp_path / "run").iterdir())
    of_session = [
        stat
        for path in Path("/proc").glob("[0-9]*/stat")
        if (stat := _read(path).rpartition(")")[2].split()) and int(stat[3]) == service.pid
    ]
    assert not of_session


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it ended meanwhile
        return ""


_LEADER = (
    "import fcntl, signal, subprocess, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "signal.signal(signal.SIGHUP, lambda *_: None)\n"
    "sys.exit(subprocess.call(sys.argv[1:]))"
)
"""Leads a session and waits for what it started, whatever it is told: as ``make`` does."""


def test_a_closed_terminal_drains_also_where_something_that_waits_leads_its_session(tmp_path: Path) -> None:
    """The kernel tells the leader alone."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-P", "-m", "penstock", "serve", "mock://", "--port=0", "--admin-port=0"]
    environment = {**os.environ, "PENSTOCK_HOME": str(tmp_path)}
    said = tmp_path / "said"
    with said.open("wb") as log:
        leads = [sys.executable, "-c", _LEADER, *command]
        leader = subprocess.Popen(leads, stdin=end, stdout=log, stderr=log, env=environment, start_new_session=True)
    os.close(end)
    try:
        while "serving mock" not in said.read_text():
            assert leader.poll() is None, said.read_text()
            time.sleep(0.02)
        os.close(terminal)
        assert leader.wait(60) == 0, said.read_text()
        assert "draining" in said.read_text()
    finally:
        if leader.poll() is None:
            os.killpg(leader.pid, signal.SIGKILL)
            leader.wait()


def test_a_problem_of_a_child_is_written_where_the_controller_finds_it(tmp_path: Path) -> None:
    """The marked line decodes into the same problem, and the exit code says to look for it."""
    from penstock.cluster.drivers.local import EXIT_PROBLEM, written_problem

    script = (
        "from penstock.cli.children import _ending_well\nfrom penstock.wire.errors import Problem\n"
        "def run():\n    raise Problem('checkpoint_invalid', 'line\\nbreak', param='p')\n"
        "_ending_well(run)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == EXIT_PROBLEM
    problem = written_problem(ended.stderr.splitlines())
    assert problem is not None
    assert (problem.code, problem.message, problem.param) == ("checkpoint_invalid", "line\nbreak", "p")


def test_ps_without_services_says_how_to_start_one(tmp_path: Path) -> None:
    """An empty list is [] as JSON and a sentence otherwise."""
    assert penstock("ps", "--json", home=tmp_path).stdout == "[]\n"
    assert "penstock serve" in penstock("ps", home=tmp_path).stdout


def test_a_home_that_cannot_be_written_ends_serve_with_its_name(tmp_path: Path) -> None:
    """PENSTOCK_HOME below a file is a problem before any process is started."""
    (tmp_path / "file").touch()
    (tmp_path / "model").mkdir()
    ended = penstock(
        "serve", str(tmp_path / "model"), "--port", "0", "--admin-port", "0", home=tmp_path / "file" / "home"
    )
    assert ended.returncode == 1
    assert "PENSTOCK_HOME" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("command", "helps"),
    [
        (["tenants", "set", "x", "--weight", "2"], "penstock tenants list"),
        (["keys", "revoke", "key_x"], "penstock keys list"),
        (["explain", "x"], "penstock ps"),
    ],
)
def test_what_is_not_there_is_refused_with_the_command_that_lists_what_is(
    command: list[str], helps: str, tmp_path: Path
) -> None:
    """Nobody at a command line looks for a route."""
    done = penstock(*command, home=tmp_path)
    assert done.returncode == 1 and "[not_found]" in done.stderr and f"`{helps}`" in done.stderr
